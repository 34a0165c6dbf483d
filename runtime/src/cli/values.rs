//! Values of options: how they are written, and what is wrong with them.

use hibernet_netstack::config::{AllowHost, Publish};
use hibernet_netstack::tuple::{Endpoint, proto};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixed<A> {
    /// The address.
    pub address: A,
    /// Prefix length in bits.
    pub prefix: u8,
}

/// `ADDR/PREFIX` over IPv4.
pub fn prefixed4(s: &str) -> Result<Prefixed<Ipv4Addr>, String> {
    prefixed(s, 24, 30)
}

/// `ADDR/PREFIX` over IPv6.
pub fn prefixed6(s: &str) -> Result<Prefixed<Ipv6Addr>, String> {
    prefixed(s, 64, 126)
}

fn prefixed<A: FromStr>(s: &str, default: u8, max: u8) -> Result<Prefixed<A>, String> {
    let (address, prefix) = s.split_once('/').map_or((s, None), |(a, p)| (a, Some(p)));
    let address = address.parse().map_err(|_| format!("'{address}' is no address of this family"))?;
    let prefix = match prefix {
        None => default,
        Some(p) => p.parse().ok().filter(|p| (1..=max).contains(p)).ok_or_else(|| {
            format!("'{p}' is no usable prefix length: 1 to {max}, so that the gateway has room beside the guest")
        })?,
    };
    Ok(Prefixed { address, prefix })
}

fn port(s: &str) -> Result<u16, String> {
    s.parse().ok().filter(|&p: &u16| p != 0).ok_or_else(|| format!("'{s}' is no port: 1 to 65535"))
}

/// `[ADDR:]HOST[-LAST]:GUEST[/tcp|/udp]`, an IPv6 address in brackets.
pub fn publish(s: &str) -> Result<Publish, String> {
    let (rest, proto) = match s.rsplit_once('/') {
        None => (s, proto::TCP),
        Some((rest, "tcp")) => (rest, proto::TCP),
        Some((rest, "udp")) => (rest, proto::UDP),
        Some((_, other)) => return Err(format!("protocol '{other}' cannot be published: tcp or udp")),
    };
    let Some((rest, guest)) = rest.rsplit_once(':') else {
        return Err("the guest's port is missing: [ADDR:]HOST[-LAST]:GUEST[/tcp|/udp]".into());
    };
    let (addr, host) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (a, host) = rest.split_once("]:").ok_or("']:' is missing after the IPv6 address")?;
            let a: Ipv6Addr = a.parse().map_err(|_| format!("'{a}' is no IPv6 address"))?;
            (Some(IpAddr::V6(a)), host)
        }
        None => match rest.rsplit_once(':') {
            None => (None, rest),
            Some((a, _)) if a.contains(':') => return Err("an IPv6 address must stand in brackets: [ADDR]:HOST:GUEST".into()),
            Some((a, host)) => (Some(IpAddr::V4(a.parse().map_err(|_| format!("'{a}' is no IPv4 address"))?)), host),
        },
    };
    let (first, last) = match host.split_once('-') {
        None => (port(host)?, port(host)?),
        Some((a, b)) => (port(a)?, port(b)?),
    };
    if last < first {
        return Err(format!("the range {first}-{last} is backwards"));
    }
    let guest_port = port(guest)?;
    if u32::from(guest_port) + u32::from(last - first) > 65535 {
        return Err(format!("the range leads beyond guest port 65535: {} ports from {guest_port} on", last - first + 1));
    }
    Ok(Publish { proto, addr, host_ports: (first, last), guest_port })
}

/// How a published range is written.
pub fn publish_text(p: &Publish) -> String {
    let addr = match p.addr {
        None => String::new(),
        Some(IpAddr::V4(a)) => format!("{a}:"),
        Some(IpAddr::V6(a)) => format!("[{a}]:"),
    };
    let (first, last) = p.host_ports;
    let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
    format!("{addr}{range}:{}/{}", p.guest_port, if p.proto == proto::UDP { "udp" } else { "tcp" })
}

/// `NAME=VALUE` with a number.
pub fn sysctl(s: &str) -> Result<(String, u64), String> {
    let (name, value) = s.split_once('=').ok_or("NAME=VALUE is expected")?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} is not a number"))?;
    Ok((name.trim().to_owned(), value))
}

/// Nothing, `ADDR` or `ADDR:PORT`; an IPv6 address with a port in brackets.
pub fn allow_host(s: &str) -> Result<AllowHost, String> {
    if s.is_empty() {
        return Ok(AllowHost::Any);
    }
    if let Ok(a) = s.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(AllowHost::Addr(a));
    }
    match s.parse::<std::net::SocketAddr>() {
        Ok(a) if a.port() != 0 => Ok(AllowHost::Port(Endpoint::new(a.ip(), a.port()))),
        _ => Err("neither ADDR nor ADDR:PORT (an IPv6 address with a port stands in brackets)".into()),
    }
}

/// Longest time that can be asked for.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// A time: `30s`, `500ms`, `5m`, `2h`; a number alone is seconds.
pub fn duration(s: &str) -> Result<Duration, String> {
    let digits = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
    let (number, unit) = s.split_at(digits);
    let unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("the unit of a time is ms, s, m or h".into()),
    };
    let number: f64 = number.parse().map_err(|_| "a time such as 30s is expected")?;
    Duration::try_from_secs_f64(number * unit).ok().filter(|d| *d <= MAX_DURATION).ok_or_else(|| "longer than a year".into())
}

/// Name of a sandbox: what is safe as a file name and on a command line.
pub fn name(s: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if s.is_empty() || s.len() > 64 || !s.chars().all(good) || !s.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit".into());
    }
    Ok(s.into())
}

/// Name of an interface, as Linux allows it.
pub fn interface(s: &str) -> Result<String, String> {
    if s.is_empty()
        || s.len() > 15
        || s == "."
        || s == ".."
        || s.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || !c.is_ascii())
    {
        return Err("1 to 15 characters, without '/', ':' and blanks".into());
    }
    Ok(s.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_forms() {
        let p = publish("8080:80").unwrap();
        assert_eq!((p.proto, p.addr, p.host_ports, p.guest_port), (proto::TCP, None, (8080, 8080), 80));
        let p = publish("127.0.0.1:5000-5010:6000/udp").unwrap();
        assert_eq!((p.proto, p.addr), (proto::UDP, Some("127.0.0.1".parse().unwrap())));
        assert_eq!((p.host_ports, p.guest_port), ((5000, 5010), 6000));
        let p = publish("[::1]:80:8080/tcp").unwrap();
        assert_eq!(p.addr, Some("::1".parse().unwrap()));
        for text in ["8080:80/tcp", "127.0.0.1:5000-5010:6000/udp", "[::1]:80:8080/tcp"] {
            assert_eq!(publish_text(&publish(text).unwrap()), text);
        }
    }

    #[test]
    fn publish_mistakes() {
        for s in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "65536:1",
            "90-80:1",
            "1-65535:2",
            "::1:80:80",
            "[::1]80:80",
            "x:80:80",
            "80:80/sctp",
            "[1.2.3.4]:1:1",
        ] {
            assert!(publish(s).is_err(), "{s} was accepted");
        }
    }

    #[test]
    fn prefixes() {
        assert_eq!(prefixed4("10.0.0.1/8"), Ok(Prefixed { address: Ipv4Addr::new(10, 0, 0, 1), prefix: 8 }));
        assert_eq!(prefixed4("10.0.0.1").unwrap().prefix, 24);
        assert!(prefixed4("10.0.0.1/31").is_err() && prefixed4("10.0.0.1/0").is_err() && prefixed4("fd00::1/64").is_err());
        assert!(prefixed6("fd00::1/64").is_ok() && prefixed6("fd00::1/127").is_err());
    }

    #[test]
    fn openings() {
        assert_eq!(allow_host(""), Ok(AllowHost::Any));
        assert_eq!(allow_host("[fd00::1]:80"), Ok(AllowHost::Port(Endpoint::new("fd00::1".parse().unwrap(), 80))));
        assert_eq!(allow_host("192.0.2.1"), Ok(AllowHost::Addr("192.0.2.1".parse().unwrap())));
        assert!(allow_host("192.0.2.1:0").is_err() && allow_host("host").is_err());
    }

    #[test]
    fn durations() {
        for (text, ms) in [("30", 30_000), ("1.5s", 1500), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1d", "1.2.3", "9999999h", "1 s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names() {
        assert!(name("web-1.a_b").is_ok());
        for bad in ["", ".", "..", "-x", "a/b", "a b", &"x".repeat(65)] {
            assert!(name(bad).is_err(), "{bad} was accepted");
        }
        assert!(interface("eth0").is_ok() && interface("a/b").is_err() && interface("0123456789abcdef").is_err());
    }
}
