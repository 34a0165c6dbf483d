//! `LOG`: what a rule reports, as the line that Linux would write (nf_log_syslog.c).

mod ipv4;
mod ipv6;
mod transport;

use super::{Hook, Iface, LogTarget, TraceEntry, log_flags};
use crate::skb::Skb;
use crate::wire::{Mac, be16, ethernet};
use core::fmt;

/// Headers as bytes, for what a [`Skb`] does not keep: IP identification, options, the link header.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawHeaders<'a> {
    /// The Ethernet header of a packet that came over a link.
    pub link: &'a [u8],
    /// The IP header with its options or extension headers, as the packet came or will be sent.
    pub ip: &'a [u8],
}

/// A packet that met a LOG rule. Displays as the kernel's line, from the prefix on: `IN=tap0 OUT=host0 MAC=… SRC=… DST=… …`.
#[derive(Clone, Copy, Debug)]
pub struct LogEntry<'a> {
    /// Level, prefix, and what to show.
    pub target: &'a LogTarget,
    /// Where.
    pub hook: Hook,
    /// The packet, as it is there.
    pub skb: &'a Skb<'a>,
    /// More of its headers.
    pub raw: RawHeaders<'a>,
}

/// Takes what LOG rules report.
pub trait LogSink {
    /// One packet. Called on the way of packets: it must not block, and should limit how much it writes.
    fn log(&mut self, entry: &LogEntry<'_>);

    /// A rule or an end of a chain that a traced packet met. The same holds.
    fn trace(&mut self, entry: &TraceEntry<'_>) {
        let _ = entry;
    }
}

impl fmt::Display for Iface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Iface::Link(l) => write!(f, "tap{}", l.0),
            Iface::Host0 => f.write_str("host0"),
            Iface::Lo => f.write_str("lo"),
        }
    }
}

impl LogEntry<'_> {
    fn has(&self, flag: u8) -> bool {
        self.target.flags & flag != 0
    }

    /// The link header. Only what came over a link has one.
    fn mac(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = self.raw.link.first_chunk::<{ ethernet::HEADER_LEN }>();
        match header {
            // What loops back has no Ethernet header by name.
            Some(h) if self.has(log_flags::MACDECODE) && self.skb.input != Some(Iface::Lo) => {
                let mac = |at: usize| Mac(core::array::from_fn(|i| h[at + i]));
                write!(f, "MACSRC={} MACDST={} MACPROTO={:04x} ", mac(6), mac(0), be16(h, 12))
            }
            Some(h) => {
                f.write_str("MAC=")?;
                for (i, b) in h.iter().enumerate() {
                    write!(f, "{}{b:02x}", if i == 0 { "" } else { ":" })?;
                }
                f.write_str(" ")
            }
            None => f.write_str("MAC= "),
        }
    }
}

impl fmt::Display for LogEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skb = self.skb;
        write!(f, "{}IN=", self.target.prefix)?;
        skb.input.map_or(Ok(()), |i| i.fmt(f))?;
        f.write_str(" OUT=")?;
        skb.output.map_or(Ok(()), |o| o.fmt(f))?;
        f.write_str(" ")?;
        if skb.input.is_some() {
            self.mac(f)?;
        }
        if skb.is_v6() {
            ipv6::outer(f, self)?
        } else {
            ipv4::outer(f, self)?
        }
        if let Some(owner) = skb.owner.filter(|_| self.has(log_flags::UID)) {
            write!(f, "UID={} GID={} ", owner.uid, owner.gid)?;
        }
        if skb.mark != 0 {
            write!(f, "MARK=0x{:x} ", skb.mark)?;
        }
        Ok(())
    }
}

/// What is behind an IP header: of the packet itself, or of one that an ICMP error quotes.
#[derive(Clone, Copy)]
struct Datagram<'a> {
    /// Bits of [`log_flags`].
    flags: u8,
    protocol: u8,
    /// As translated so far.
    ports: Option<(u16, u16)>,
    /// From the transport header on, as much as there is.
    bytes: &'a [u8],
    /// How long it is.
    len: u32,
    /// A quoted packet, whose own quotes are not shown.
    inner: bool,
    /// A second or later fragment.
    fragment: bool,
}

impl<'a> Datagram<'a> {
    fn of(entry: &LogEntry<'a>) -> Self {
        let skb = entry.skb;
        Datagram {
            flags: entry.target.flags,
            protocol: skb.protocol,
            ports: Some((skb.sport, skb.dport)),
            bytes: skb.l4_bytes,
            len: skb.l4_len,
            inner: false,
            fragment: false,
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The first `N` bytes; says so if they are not there.
    fn head<const N: usize>(&self, f: &mut fmt::Formatter<'_>) -> Result<Option<&'a [u8; N]>, fmt::Error> {
        let head = self.bytes.first_chunk::<N>();
        if head.is_none() {
            write!(f, "INCOMPLETE [{} bytes] ", self.len)?;
        }
        Ok(head)
    }
}

/// Options as bytes: `OPT (0204…) `.
fn options(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    f.write_str("OPT (")?;
    bytes.iter().try_for_each(|b| write!(f, "{b:02X}"))?;
    f.write_str(") ")
}
