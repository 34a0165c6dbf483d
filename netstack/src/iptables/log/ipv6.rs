//! IPv6 in a LOG line.

use super::{Datagram, LogEntry, transport};
use crate::iptables::log_flags;
use crate::tuple::{Tuple, proto};
use crate::wire::{be16, be32};
use core::fmt;
use core::net::{IpAddr, Ipv6Addr};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AH: u8 = 51;
const DESTINATION: u8 = 60;
const UDP_LITE: u8 = 136;

/// What of an IPv6 header is shown.
struct Header {
    src: IpAddr,
    dst: IpAddr,
    len: u32,
    class: u8,
    hop_limit: u8,
    label: u32,
}

/// An address with all its zeroes.
struct Full(IpAddr);

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IpAddr::V6(a) = self.0 else { return self.0.fmt(f) };
        let s = a.segments();
        write!(f, "{:04x}", s[0])?;
        s[1..].iter().try_for_each(|s| write!(f, ":{s:04x}"))
    }
}

impl Header {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SRC={} DST={} ", Full(self.src), Full(self.dst))?;
        write!(f, "LEN={} TC={} HOPLIMIT={} FLOWLBL={} ", self.len, self.class, self.hop_limit, self.label)
    }
}

/// The packet itself.
pub(super) fn outer(f: &mut fmt::Formatter<'_>, entry: &LogEntry<'_>) -> fmt::Result {
    let (skb, raw) = (entry.skb, entry.raw.ip);
    Header {
        src: skb.src,
        dst: skb.dst,
        len: skb.len,
        class: skb.tos,
        hop_limit: skb.hop_limit,
        label: raw.first_chunk::<4>().map_or(0, |b| be32(b, 0) & 0xf_ffff),
    }
    .show(f)?;
    let mut d = Datagram::of(entry);
    if let (Some(next), Some(extensions)) = (raw.get(6), raw.get(40..)) {
        let mut walk = Datagram { protocol: *next, bytes: extensions, len: extensions.len() as u32, ..d };
        if !extensions_of(f, &mut walk)? {
            return Ok(());
        }
        d.protocol = walk.protocol;
    }
    datagram(f, &d, skb.quoted.as_ref())
}

/// A packet quoted by an ICMPv6 error, as it is or as it is translated to.
fn inner(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>, quoted: Option<&Tuple>) -> fmt::Result {
    let bytes = d.bytes.get(8..).unwrap_or_default();
    let Some(h) = bytes.first_chunk::<40>() else { return f.write_str("TRUNCATED") };
    let addr = |at: usize| IpAddr::V6(Ipv6Addr::from(core::array::from_fn::<u8, 16, _>(|i| h[at + i])));
    let first = be32(h, 0);
    Header {
        src: quoted.map_or(addr(8), |q| q.src.addr),
        dst: quoted.map_or(addr(24), |q| q.dst.addr),
        len: u32::from(be16(h, 4)) + 40,
        class: (first >> 20) as u8,
        hop_limit: h[7],
        label: first & 0xf_ffff,
    }
    .show(f)?;
    let mut inner = Datagram {
        protocol: h[6],
        ports: quoted.map(|q| (q.src.port, q.dst.port)),
        bytes: &bytes[40..],
        len: d.len.saturating_sub(48),
        inner: true,
        ..*d
    };
    if extensions_of(f, &mut inner)? { datagram(f, &inner, None) } else { Ok(()) }
}

/// Shows extension headers and takes them away. False if nothing can follow.
fn extensions_of(f: &mut fmt::Formatter<'_>, d: &mut Datagram<'_>) -> Result<bool, fmt::Error> {
    let shown = d.has(log_flags::IP_OPTIONS);
    while matches!(d.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | ESP | AH | DESTINATION) {
        let Some(h) = d.bytes.first_chunk::<8>() else {
            f.write_str("TRUNCATED")?;
            return Ok(false);
        };
        if shown {
            f.write_str("OPT ( ")?;
        }
        let len = match d.protocol {
            FRAGMENT => {
                let offset = be16(h, 2);
                write!(f, "FRAG:{} ", offset & 0xfff8)?;
                if offset & 1 != 0 {
                    f.write_str("INCOMPLETE ")?;
                }
                write!(f, "ID:{:08x} ", be32(h, 4))?;
                d.fragment |= offset & 0xfff8 != 0;
                8
            }
            ESP => {
                if shown {
                    write!(f, "ESP SPI=0x{:x} )", be32(h, 0))?;
                }
                return Ok(false);
            }
            AH => {
                if shown {
                    write!(f, "AH SPI=0x{:x} ", be32(h, 4))?;
                }
                (usize::from(h[1]) + 2) * 4
            }
            _ => (usize::from(h[1]) + 1) * 8,
        };
        if shown {
            f.write_str(") ")?;
        }
        d.protocol = h[0];
        d.bytes = d.bytes.get(len..).unwrap_or_default();
        d.len = d.len.saturating_sub(len as u32);
    }
    Ok(true)
}

fn datagram(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>, quoted: Option<&Tuple>) -> fmt::Result {
    match d.protocol {
        proto::TCP => transport::tcp(f, d),
        proto::UDP => transport::udp(f, d, "UDP"),
        UDP_LITE => transport::udp(f, d, "UDPLITE"),
        proto::ICMPV6 => icmp(f, d, quoted),
        other => write!(f, "PROTO={other} "),
    }
}

fn icmp(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>, quoted: Option<&Tuple>) -> fmt::Result {
    f.write_str("PROTO=ICMPv6 ")?;
    if d.fragment {
        return Ok(());
    }
    let Some(h) = d.head::<8>(f)? else { return Ok(()) };
    let ty = h[0];
    write!(f, "TYPE={ty} CODE={} ", h[1])?;
    match ty {
        128 | 129 => write!(f, "ID={} SEQ={} ", d.ports.map_or(be16(h, 4), |p| p.0), be16(h, 6))?,
        1..=4 => {
            if ty == 4 {
                write!(f, "POINTER={:08x} ", be32(h, 4))?;
            }
            if !d.inner {
                f.write_str("[")?;
                inner(f, d, quoted)?;
                f.write_str("] ")?;
            }
            if ty == 2 {
                write!(f, "MTU={} ", be32(h, 4))?;
            }
        }
        _ => {}
    }
    Ok(())
}
