//! GRE (RFC 2784): a tunnel once packets go both ways. Version 1 (PPTP, RFC 2637) has a call identifier in each direction;
//! which two belong together only the control connection says, which nobody reads here, as in Linux without its helper.

use super::config::CtConfig;
use super::conn::Status;
use crate::wire::be16;
use core::time::Duration;

/// IP protocol number.
pub(super) const PROTOCOL: u8 = 47;
/// Ethernet type that version 1 carries.
const PPP: u16 = 0x880b;

/// What a tuple has in place of ports; `None` if the header makes no sense.
pub(super) fn keys(l4: &[u8]) -> Option<(u16, u16)> {
    match l4 {
        [_, flags, ..] if flags & 7 == 1 && l4.len() >= 8 => (be16(l4, 2) == PPP).then(|| (0, be16(l4, 6))),
        _ => Some((0, 0)),
    }
}

/// A packet of a tunnel: how long it lives on.
pub(super) fn packet(cfg: &CtConfig, status: &mut Status) -> Duration {
    if !status.has(Status::SEEN_REPLY) {
        return cfg.timeouts.gre;
    }
    status.set(Status::ASSURED);
    cfg.timeouts.gre_stream
}
