//! What the worker needs of the host and cannot open itself: listeners of published ports, raw ICMP sockets, the watch of
//! the host's addresses, files.

use super::failure::{Failure, Status};
use super::plan::Plan;
use crate::sys::{netlink, socket};
use hibernet_netstack::config::{Config, Publish};
use hibernet_netstack::tuple::proto;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn.
const BACKLOG: libc::c_int = 4096;

/// Descriptors for the worker.
#[derive(Debug, Default)]
pub(crate) struct HostFds {
    /// Index in `config.publish`, and the listening socket.
    pub(crate) tcp: Vec<(usize, OwnedFd)>,
    /// Index in `config.publish`, and the bound socket.
    pub(crate) udp: Vec<(usize, OwnedFd)>,
    pub(crate) raw_icmp4: Option<OwnedFd>,
    pub(crate) raw_icmp6: Option<OwnedFd>,
    pub(crate) address_watch: Option<OwnedFd>,
    pub(crate) pcap: Option<File>,
    pub(crate) log: Option<File>,
}

impl HostFds {
    /// Opens everything that the plan asks for, in the calling process's network namespace.
    pub(crate) fn open(plan: &Plan) -> Result<Self, Failure> {
        Ok(HostFds {
            pcap: plan.pcap.as_deref().map(|p| open_file(p, "--pcap", false)).transpose()?,
            log: plan.log.file.as_deref().map(|p| open_file(p, "--log-file", true)).transpose()?,
            ..HostFds::sockets(plan)?
        })
    }

    /// All but the files.
    pub(crate) fn sockets(plan: &Plan) -> Result<Self, Failure> {
        let mut fds = HostFds::default();
        let (v4, v6) = (plan.config.v4.is_some(), plan.config.v6.is_some());
        for (index, p) in plan.config.publish.iter().enumerate() {
            fds.publish(index, p, v4, v6)?;
        }
        fds.raw_icmp4 = v4.then(|| raw_icmp(libc::AF_INET, libc::IPPROTO_ICMP)).flatten();
        fds.raw_icmp6 = v6.then(|| raw_icmp(libc::AF_INET6, libc::IPPROTO_ICMPV6)).flatten();
        let watch =
            netlink::open_address_watch().map_err(|e| Failure::os(Status::Internal, "cannot watch the host's addresses", e))?;
        fds.address_watch = Some(watch);
        Ok(fds)
    }

    /// Sockets of published ports alone, as far as they can be had; and why others cannot. Of UDP too or not.
    pub(crate) fn ports(config: &Config, udp: bool) -> (Self, Vec<Failure>) {
        let mut fds = HostFds::default();
        let wanted = config.publish.iter().enumerate().filter(|(_, p)| udp || p.proto != proto::UDP);
        let failed = wanted.filter_map(|(i, p)| fds.publish(i, p, config.v4.is_some(), config.v6.is_some()).err()).collect();
        (fds, failed)
    }

    fn publish(&mut self, index: usize, p: &Publish, v4: bool, v6: bool) -> Result<(), Failure> {
        for port in p.host_ports.0..=p.host_ports.1 {
            let mut opened = 0;
            let addrs = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
            let addrs = match &p.addr {
                Some(a) => std::slice::from_ref(a),
                None => &addrs[..],
            };
            for &addr in addrs.iter().filter(|a| if a.is_ipv4() { v4 } else { v6 }) {
                let at = SocketAddr::new(addr, port);
                match listener(p.proto, at) {
                    Ok(fd) => {
                        let list = if p.proto == proto::UDP { &mut self.udp } else { &mut self.tcp };
                        list.push((index, fd));
                        opened += 1;
                    }
                    // Without a wish for an address, one family is enough on a host that has only one.
                    Err(e) if p.addr.is_none() && matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {}
                    Err(e) => return Err(refused(p.proto, at, e)),
                }
            }
            if opened == 0 {
                return Err(Failure::new(
                    Status::Port,
                    format!("cannot publish port {port}: the host has none of the guest's address families"),
                ));
            }
        }
        Ok(())
    }
}

/// A raw socket, where ping sockets are closed to us and these are not. Only there: it hears every ICMP message of the
/// host, so the worker would be woken for nothing. Without either the guest's pings are refused.
fn raw_icmp(family: libc::c_int, protocol: libc::c_int) -> Option<OwnedFd> {
    match socket::socket(family, libc::SOCK_DGRAM, protocol) {
        Ok(_) => None,
        Err(_) => socket::socket(family, libc::SOCK_RAW, protocol).ok(),
    }
}

fn listener(protocol: u8, at: SocketAddr) -> io::Result<OwnedFd> {
    let udp = protocol == proto::UDP;
    let kind = if udp { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    let fd = socket::socket(socket::family(at.ip()), kind, 0)?;
    if at.is_ipv6() {
        socket::set_option(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    if !udp {
        // So that connections of the previous run that still linger do not block the port.
        socket::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    }
    socket::bind(fd.as_fd(), at)?;
    if !udp {
        socket::listen(fd.as_fd(), BACKLOG)?;
    }
    Ok(fd)
}

fn refused(protocol: u8, at: SocketAddr, e: io::Error) -> Failure {
    let name = if protocol == proto::UDP { "UDP" } else { "TCP" };
    let what = format!("cannot publish {name} port {at}");
    match e.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let who = holder(protocol, at.port()).map_or_else(String::new, |who| format!(" by {who}"));
            Failure::new(Status::Port, format!("{what}: the port is taken{who}; stop that program or choose another host port"))
        }
        Some(libc::EACCES | libc::EPERM) => {
            let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
            let first = first.as_deref().map_or("1024", str::trim).to_owned();
            Failure::new(
                Status::Port,
                format!(
                    "{what}: ports below {first} are for the privileged; choose a higher one, or lower the sysctl net.ipv4.ip_unprivileged_port_start"
                ),
            )
        }
        Some(libc::EADDRNOTAVAIL) => Failure::new(Status::Port, format!("{what}: the host does not have that address")),
        _ => Failure::os(Status::Port, what, e),
    }
}

/// Which process holds a port, as far as this user may know.
fn holder(protocol: u8, port: u16) -> Option<String> {
    let name = if protocol == proto::UDP { "udp" } else { "tcp" };
    let mut inodes = Vec::new();
    for table in [format!("/proc/self/net/{name}"), format!("/proc/self/net/{name}6")] {
        for line in std::fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let local = words.get(1).and_then(|w| w.rsplit_once(':')).and_then(|(_, p)| u16::from_str_radix(p, 16).ok());
            let listening = name == "udp" || words.get(3) == Some(&"0A");
            if local == Some(port)
                && listening
                && let Some(inode) = words.get(9)
            {
                inodes.push(format!("socket:[{inode}]"));
            }
        }
    }
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Ok(fds) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for fd in fds.flatten() {
            let Ok(to) = std::fs::read_link(fd.path()) else { continue };
            if inodes.iter().any(|i| to.as_os_str() == i.as_str()) {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("{} (process {})", name.trim(), process.file_name().to_string_lossy()));
            }
        }
    }
    None
}

/// Opens a file to write to, for its owner only.
pub(crate) fn open_file(path: &Path, option: &str, append: bool) -> Result<File, Failure> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .mode(0o600)
        .open(path)
        .map_err(|e| Failure::os(Status::File, format_args!("{option} {}: cannot write to it", path.display()), e))
}
