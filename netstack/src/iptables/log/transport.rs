//! TCP and UDP in a LOG line.

use super::{Datagram, options};
use crate::iptables::log_flags;
use crate::wire::{be16, be32};
use core::fmt;

pub(super) fn tcp(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>) -> fmt::Result {
    f.write_str("PROTO=TCP ")?;
    if d.fragment {
        return Ok(());
    }
    let Some(h) = d.head::<20>(f)? else { return Ok(()) };
    ports(f, d, h)?;
    if d.has(log_flags::TCP_SEQUENCE) {
        write!(f, "SEQ={} ACK={} ", be32(h, 4), be32(h, 8))?;
    }
    write!(f, "WINDOW={} RES=0x{:02x} ", be16(h, 14), (h[12] & 0x0f) << 2)?;
    for (bit, name) in [(7, "CWR"), (6, "ECE"), (5, "URG"), (4, "ACK"), (3, "PSH"), (2, "RST"), (1, "SYN"), (0, "FIN")] {
        if h[13] >> bit & 1 != 0 {
            write!(f, "{name} ")?;
        }
    }
    write!(f, "URGP={} ", be16(h, 18))?;
    let end = usize::from(h[12] >> 4) * 4;
    if d.has(log_flags::TCP_OPTIONS) && end > 20 {
        match d.bytes.get(20..end) {
            Some(bytes) => options(f, bytes)?,
            None => f.write_str("OPT (TRUNCATED)")?,
        }
    }
    Ok(())
}

pub(super) fn udp(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>, name: &str) -> fmt::Result {
    write!(f, "PROTO={name} ")?;
    if d.fragment {
        return Ok(());
    }
    let Some(h) = d.head::<8>(f)? else { return Ok(()) };
    ports(f, d, h)?;
    write!(f, "LEN={} ", be16(h, 4))
}

fn ports(f: &mut fmt::Formatter<'_>, d: &Datagram<'_>, h: &[u8]) -> fmt::Result {
    let (src, dst) = d.ports.unwrap_or((be16(h, 0), be16(h, 2)));
    write!(f, "SPT={src} DPT={dst} ")
}
