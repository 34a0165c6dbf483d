//! IPv4 in a LOG line.

use super::{Datagram, LogEntry, options, transport};
use crate::iptables::log_flags;
use crate::tuple::{Tuple, proto};
use crate::wire::{be16, be32};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr};

const ESP: u8 = 50;
const AH: u8 = 51;
const UDP_LITE: u8 = 136;
/// Don't fragment, more fragments, and the bit that should be 0.
const FLAGS: [(u16, &str); 3] = [(0x8000, "CE"), (0x4000, "DF"), (0x2000, "MF")];

/// What of an IPv4 header is shown.
struct Header<'a> {
    src: IpAddr,
    dst: IpAddr,
    len: u32,
    tos: u8,
    ttl: u8,
    ident: u16,
    fragment: u16,
    options: &'a [u8],
}

impl Header<'_> {
    fn show(&self, f: &mut fmt::Formatter<'_>, flags: u8) -> fmt::Result {
        write!(f, "SRC={} DST={} LEN={} ", self.src, self.dst, self.len)?;
        write!(f, "TOS=0x{:02X} PREC=0x{:02X} TTL={} ID={} ", self.tos & 0x1e, self.tos & 0xe0, self.ttl, self.ident)?;
        for (bit, name) in FLAGS {
            if self.fragment & bit != 0 {
                write!(f, "{name} ")?;
            }
        }
        if self.fragment & 0x1fff != 0 {
            write!(f, "FRAG:{} ", self.fragment & 0x1fff)?;
        }
        if flags & log_flags::IP_OPTIONS != 0 && !self.options.is_empty() {
            options(f, self.options)?;
        }
        Ok(())
    }
}

/// The packet itself.
pub(super) fn outer(f: &mut fmt::Formatter<'_>, entry: &LogEntry<'_>) -> fmt::Result {
    let (skb, raw) = (entry.skb, entry.raw.ip);
    let word = |at| raw.get(at..at + 2).map_or(0, |b| be16(b, 0));
    let end = raw.first().map_or(0, |b| usize::from(b & 0x0f) * 4);
    let header = Header {
        src: skb.src,
        dst: skb.dst,
        len: skb.len,
        tos: skb.tos,
        ttl: skb.hop_limit,
        ident: word(4),
        fragment: word(6),
        options: raw.get(20..end).unwrap_or_default(),
    };
    header.show(f, entry.target.flags)?;
    datagram(f, &Datagram::of(entry), skb.quoted.as_ref())
}

/// A packet quoted by an ICMP error, as it is or as it is translated to.
fn inner(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>, quoted: Option<&Tuple>) -> fmt::Result {
    let bytes = d.bytes.get(8..).unwrap_or_default();
    let Some(h) = bytes.first_chunk::<20>() else { return f.write_str("TRUNCATED") };
    let end = usize::from(h[0] & 0x0f) * 4;
    let addr = |at| IpAddr::V4(Ipv4Addr::from_bits(be32(h, at)));
    let header = Header {
        src: quoted.map_or(addr(12), |q| q.src.addr),
        dst: quoted.map_or(addr(16), |q| q.dst.addr),
        len: be16(h, 2).into(),
        tos: h[1],
        ttl: h[8],
        ident: be16(h, 4),
        fragment: be16(h, 6),
        options: bytes.get(20..end).unwrap_or_default(),
    };
    header.show(f, d.flags)?;
    let inner = Datagram {
        protocol: h[9],
        ports: quoted.map(|q| (q.src.port, q.dst.port)),
        bytes: bytes.get(end.max(20)..).unwrap_or_default(),
        len: d.len.saturating_sub(8 + end.max(20) as u32),
        inner: true,
        fragment: header.fragment & 0x1fff != 0,
        ..*d
    };
    datagram(f, &inner, None)
}

fn datagram(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>, quoted: Option<&Tuple>) -> fmt::Result {
    match d.protocol {
        proto::TCP => transport::tcp(f, d),
        proto::UDP => transport::udp(f, d, "UDP"),
        UDP_LITE => transport::udp(f, d, "UDPLITE"),
        proto::ICMP => icmp(f, d, quoted),
        AH | ESP => {
            let (name, at) = if d.protocol == AH { ("AH", 4) } else { ("ESP", 0) };
            write!(f, "PROTO={name} ")?;
            match d.bytes.get(at..at + 4) {
                _ if d.fragment => Ok(()),
                Some(spi) => write!(f, "SPI=0x{:x} ", be32(spi, 0)),
                None => write!(f, "INCOMPLETE [{} bytes] ", d.len),
            }
        }
        other => write!(f, "PROTO={other} "),
    }
}

/// Bytes that a message of this type has at least.
const fn least(ty: u8) -> u32 {
    match ty {
        0 | 8 => 4,
        3 | 4 | 5 | 11 | 12 => 8 + 20,
        13 | 14 => 20,
        17 | 18 => 12,
        _ => 0,
    }
}

fn icmp(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>, quoted: Option<&Tuple>) -> fmt::Result {
    f.write_str("PROTO=ICMP ")?;
    if d.fragment {
        return Ok(());
    }
    let Some(h) = d.head::<8>(f)? else { return Ok(()) };
    let (ty, code) = (h[0], h[1]);
    write!(f, "TYPE={ty} CODE={code} ")?;
    if d.len < least(ty) {
        return write!(f, "INCOMPLETE [{} bytes] ", d.len);
    }
    match ty {
        0 | 8 => write!(f, "ID={} SEQ={} ", d.ports.map_or(be16(h, 4), |p| p.0), be16(h, 6))?,
        12 => write!(f, "PARAMETER={} ", h[4])?,
        3 | 4 | 5 | 11 => {
            if ty == 5 {
                write!(f, "GATEWAY={} ", Ipv4Addr::from_bits(be32(h, 4)))?;
            }
            if !d.inner {
                f.write_str("[")?;
                inner(f, d, quoted)?;
                f.write_str("] ")?;
            }
            if (ty, code) == (3, 4) {
                write!(f, "MTU={} ", be16(h, 6))?;
            }
        }
        _ => {}
    }
    Ok(())
}
