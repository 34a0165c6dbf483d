//! `hibernet passt`: the command line of passt for the stream socket and vhost-user, so that what starts passt can start this.
//!
//! It is translated into options of `attach`. What would change who may reach what, and is not there, is refused; what only tells passt how to go about its
//! own work is ignored.

use super::{AttachArgs, usage_of};
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::supervisor::{self, AttachRequest};
use crate::sandbox::target::Target;
use clap::{Args, Parser};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

pub(super) const HELP: &str = "\
As a link named `passt` to this program is started, `hibernet passt` is what runs.

What differs from passt: the guest has addresses of its own (10.0.2.15 and a stable IPv6 address, as `attach` gives them, or those of -a), not the host's; it does
not reach the host, unless --map-host-loopback says how. Ignored: --interface, --outbound*, --mac-addr, --search, --runas, --repair-path, --no-map-gw,
--host-lo-to-ns-lo, --log-size, --stats. Refused, since it would mean something else: --no-tcp, --no-udp, --no-icmp, --no-dhcp, --no-dhcpv6,
--no-ndp, --no-ra, port specifications with `all`, `auto`, or exceptions (~), and interfaces in them.";

/// passt's options.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct PasstArgs {
    /// Where to listen for QEMU [default: the first free of /tmp/passt_N.socket, from N = 1 on]
    #[arg(short, long, visible_alias = "socket-path", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// A connected socket instead, which was inherited
    #[arg(short = 'F', long, value_name = "N", conflicts_with = "socket")]
    fd: Option<i32>,
    /// Serve a vhost-user front end at the socket, in place of a stream of frames
    #[arg(long, conflicts_with = "fd")]
    vhost_user: bool,
    /// End when the first VM has left
    #[arg(short = '1', long)]
    one_off: bool,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Write the process id to this file
    #[arg(short = 'P', long, value_name = "FILE")]
    pid: Option<PathBuf>,
    /// Log details
    #[arg(short, long)]
    debug: bool,
    /// Log details
    #[arg(long)]
    trace: bool,
    /// Say nothing but warnings
    #[arg(short, long)]
    quiet: bool,
    /// Log to this file
    #[arg(short, long, value_name = "FILE")]
    log_file: Option<String>,
    /// Write what passes over the link to this file
    #[arg(short, long, value_name = "FILE")]
    pcap: Option<String>,
    /// Largest IP packet in bytes; 0 for the default
    #[arg(short, long, value_name = "N")]
    mtu: Option<String>,
    /// The guest's address; one of each family
    #[arg(short, long, value_name = "ADDR[/PREFIX]")]
    address: Vec<String>,
    /// Netmask or length of the prefix of the guest's IPv4 address
    #[arg(short, long, value_name = "MASK")]
    netmask: Option<String>,
    /// The guest's router; one of each family
    #[arg(short, long, value_name = "ADDR")]
    gateway: Vec<IpAddr>,
    /// Resolver of the host to which DNS goes
    #[arg(short = 'D', long, value_name = "ADDR")]
    dns: Vec<IpAddr>,
    /// Address at which the guest finds DNS
    #[arg(long, value_name = "ADDR")]
    dns_forward: Vec<IpAddr>,
    /// Address in the guest's world that stands for the host's loopback, or `none`
    #[arg(long, value_name = "ADDR")]
    map_host_loopback: Vec<String>,
    /// IPv4 alone
    #[arg(short = '4', long, conflicts_with = "ipv6_only")]
    ipv4_only: bool,
    /// IPv6 alone
    #[arg(short = '6', long)]
    ipv6_only: bool,
    /// TCP ports to publish: `none`, or `[ADDR/]FIRST[-LAST][:GUEST[-LAST]],...`
    #[arg(short, long, value_name = "SPEC")]
    tcp_ports: Vec<String>,
    /// UDP ports to publish
    #[arg(short, long, value_name = "SPEC")]
    udp_ports: Vec<String>,
    #[command(flatten)]
    ignored: Ignored,
}

/// What means nothing here.
#[derive(Debug, Args)]
struct Ignored {
    #[arg(short, long, hide = true)]
    interface: Option<String>,
    #[arg(short, long, hide = true)]
    outbound: Vec<String>,
    #[arg(long, hide = true)]
    outbound_if4: Option<String>,
    #[arg(long, hide = true)]
    outbound_if6: Option<String>,
    #[arg(short = 'M', long, hide = true)]
    mac_addr: Option<String>,
    #[arg(short = 'S', long, hide = true)]
    search: Vec<String>,
    #[arg(long, hide = true)]
    runas: Option<String>,
    #[arg(long, hide = true)]
    repair_path: Option<String>,
    #[arg(long, hide = true)]
    log_size: Option<String>,
    #[arg(long, hide = true)]
    stats: Option<String>,
    #[arg(long, hide = true)]
    no_map_gw: bool,
    #[arg(long, hide = true)]
    host_lo_to_ns_lo: bool,
}

/// `attach`, as a command of its own.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(flatten)]
    attach: AttachArgs,
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Status::Usage, message)
}

/// The prefix's length that a netmask means.
fn prefix(mask: &str) -> Result<u8, Failure> {
    let bad = || usage(format!("--netmask {mask}: neither a netmask nor a prefix's length"));
    if let Ok(n) = mask.parse::<u8>() {
        return if n <= 32 { Ok(n) } else { Err(bad()) };
    }
    let bits = mask.parse::<Ipv4Addr>().map_err(|_| bad())?.to_bits();
    if bits.leading_ones() + bits.trailing_zeros() >= 32 { Ok(bits.leading_ones() as u8) } else { Err(bad()) }
}

/// Ports to publish, as `attach` wants them.
fn ports(option: &str, spec: &str, protocol: &str) -> Result<Vec<String>, Failure> {
    let bad = |why: &str| usage(format!("{option} {spec}: {why}"));
    if spec == "none" {
        return Ok(Vec::new());
    }
    let (address, list) = match spec.split_once('/') {
        Some((a, _)) if a.contains('%') || a.parse::<IpAddr>().is_err() => {
            return Err(bad("what stands before / must be an address; interfaces are not supported"));
        }
        Some((a, list)) if a.contains(':') => (format!("[{a}]:"), list),
        Some((a, list)) => (format!("{a}:"), list),
        None => (String::new(), spec),
    };
    let one = |part: &str| {
        if matches!(part, "all" | "auto") || part.starts_with('~') {
            return Err(bad("all, auto and exceptions (~) are not supported: name the ports"));
        }
        let (host, guest) = part.split_once(':').unwrap_or((part, part));
        let range = |r: &str| {
            let (first, last) = r.split_once('-').unwrap_or((r, r));
            let number = |n: &str| n.parse::<u16>().map_err(|_| bad("a port is a number"));
            Ok::<_, Failure>((number(first)?, number(last)?))
        };
        let ((first, last), (guest, guest_last)) = (range(host)?, range(guest)?);
        let fits = last >= first && (guest_last == guest || guest_last.checked_sub(guest) == last.checked_sub(first));
        if !fits {
            return Err(bad("the ranges do not fit each other"));
        }
        Ok(format!("{address}{first}-{last}:{guest}/{protocol}"))
    };
    list.split(',').map(one).collect()
}

impl PasstArgs {
    /// The same in options of `attach`.
    fn translate(&self) -> Result<Vec<String>, Failure> {
        let mut line: Vec<String> = Vec::new();
        let mut add = |option: &str, value: &str| line.extend([option.to_owned(), value.to_owned()]);
        for (option, given, protocol) in [("--tcp-ports", &self.tcp_ports, "tcp"), ("--udp-ports", &self.udp_ports, "udp")] {
            for spec in given {
                ports(option, spec, protocol)?.iter().for_each(|p| add("--publish", p));
            }
        }
        for a in &self.address {
            let (addr, length) = a.split_once('/').map_or((a.as_str(), None), |(a, n)| (a, Some(n)));
            match addr.parse() {
                Ok(IpAddr::V4(_)) => {
                    let length = match length.or(self.netmask.as_deref()) {
                        Some(mask) => prefix(mask)?,
                        None => 24,
                    };
                    add("--address", &format!("{addr}/{length}"));
                }
                Ok(IpAddr::V6(_)) => add("--address6", &format!("{addr}/{}", length.unwrap_or("64"))),
                Err(_) => return Err(usage(format!("--address {a}: no address"))),
            }
        }
        for g in &self.gateway {
            add(if g.is_ipv4() { "--gateway" } else { "--gateway6" }, &g.to_string());
        }
        self.dns.iter().for_each(|a| add("--resolver", &a.to_string()));
        self.dns_forward.iter().for_each(|a| add("--dns", &a.to_string()));
        self.map_host_loopback.iter().filter(|a| *a != "none").for_each(|a| add("--map-host-loopback", a));
        let level = match (self.debug || self.trace, self.quiet) {
            (true, _) => "debug",
            (false, true) => "warning",
            (false, false) => "info",
        };
        add("--log-level", level);
        let with_value = [("--mtu", self.mtu.as_ref().filter(|m| *m != "0")), ("--log-file", self.log_file.as_ref())];
        for (option, value) in with_value.into_iter().chain([("--pcap", self.pcap.as_ref())]) {
            value.into_iter().for_each(|v| add(option, v));
        }
        let flags = [(self.ipv4_only, "--no-ipv6"), (self.ipv6_only, "--no-ipv4"), (!self.foreground, "--detach")];
        line.extend(flags.into_iter().filter(|(given, _)| *given).map(|(_, o)| o.to_owned()));
        Ok(line)
    }
}

/// The first of passt's own paths at which nothing is.
fn free_path() -> Result<PathBuf, Failure> {
    let free = (1..=64).map(|n| PathBuf::from(format!("/tmp/passt_{n}.socket"))).find(|p| std::fs::symlink_metadata(p).is_err());
    free.ok_or_else(|| usage("/tmp/passt_1.socket to /tmp/passt_64.socket are all taken: give --socket"))
}

pub(super) fn passt(args: &PasstArgs) -> Result<u8, Failure> {
    // Before anything is opened that could get its number.
    let inherited = args.fd.map(Target::inherited).transpose()?;
    let line = args.translate()?;
    let net = Line::try_parse_from(line).map_err(|e| usage_of(&e))?.attach.net;
    let target = match inherited {
        Some(t) => t,
        None => {
            let path = args.socket.clone().map_or_else(free_path, Ok)?;
            complain(format_args!("UNIX domain socket bound at {}", path.display()));
            let one_off = args.one_off;
            if args.vhost_user { Target::VhostUser { path, one_off } } else { Target::Streams { path, one_off } }
        }
    };
    supervisor::attach(&AttachRequest { plan: net.plan()?, target, thaw: None, pid_file: args.pid.clone(), join: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: PasstArgs,
    }

    fn translated(line: &str) -> Result<String, String> {
        let args = Only::try_parse_from(["passt"].into_iter().chain(line.split_whitespace())).map_err(|e| e.to_string())?.args;
        let line = args.translate().map_err(|e| e.to_string())?;
        Line::try_parse_from(&line).map_err(|e| e.to_string())?;
        Ok(line.join(" "))
    }

    #[test]
    fn what_libvirt_and_people_give_is_understood() {
        for (given, meant) in [
            ("--one-off --socket /run/s --mac-addr 52:54:00:11:22:33 --pid /run/p -q", "--log-level warning --detach"),
            ("--one-off --socket /run/s --vhost-user --pid /run/p --repair-path none", "--log-level info --detach"),
            (
                "-f -s /s -t 2222:22,8000-8010 -t 127.0.0.1/80:8080 -u fd99::2/53 -u none",
                "--publish 2222-2222:22/tcp --publish 8000-8010:8000/tcp --publish 127.0.0.1:80-80:8080/tcp --publish [fd99::2]:53-53:53/udp --log-level info",
            ),
            (
                "-f -a 10.1.2.3 -n 255.255.0.0 -g 10.1.0.1 -a fd00::5 -g fd00::1 -D 192.0.2.1 --dns-forward 10.1.0.2 -m 1500",
                "--address 10.1.2.3/16 --address6 fd00::5/64 --gateway 10.1.0.1 --gateway6 fd00::1 --resolver 192.0.2.1 --dns 10.1.0.2 --log-level info --mtu 1500",
            ),
            (
                "-f -4 -d -l /l -p /p -m 0 --map-host-loopback none --no-map-gw --runas 0",
                "--log-level debug --log-file /l --pcap /p --no-ipv6",
            ),
        ] {
            assert_eq!(translated(given).as_deref(), Ok(meant), "{given}");
        }
    }

    #[test]
    fn what_would_mean_something_else_is_refused() {
        for line in [
            "-t all",
            "-t auto",
            "-t ~22",
            "-t 80,~22",
            "-t eth0/80",
            "-t 127.0.0.1%lo/80",
            "-t 10-5",
            "-t 10-12:20-25",
            "-t x",
            "-t 70000",
            "--vhost-user -F 3",
            "--no-tcp",
            "--no-dhcp",
            "-n 255.0.255.0 -a 10.0.0.1",
            "-n 33 -a 10.0.0.1",
            "-a nonsense",
            "-m 100",
            "-4 -6",
            "-F 3 -s /s",
        ] {
            assert!(translated(line).is_err(), "{line}: {:?}", translated(line));
        }
    }
}
