//! `hashlimit`: whether there is more than a rate, by address and port.

use super::Answer;
use crate::iptables::check::RuleFault;
use crate::iptables::hashlimit::{Bucket, HashTable};
use crate::iptables::hashlimit_mode as mode;
use crate::iptables::named::Named;
use crate::iptables::{Family, HashlimitMatch};
use crate::skb::Skb;
use crate::time::Time;
use crate::tuple::proto;
use core::net::IpAddr;
use std::sync::Arc;

const DCCP: u8 = 33;
const ESP: u8 = 50;
const AH: u8 = 51;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// A table, and what is asked of it.
#[derive(Debug)]
pub(in crate::iptables) struct Hashlimit {
    table: Arc<HashTable>,
    above: bool,
    bytes: bool,
}

impl Hashlimit {
    pub(super) fn new(m: &HashlimitMatch, family: Family, named: &Named) -> Result<Hashlimit, RuleFault> {
        let why = "--hashlimit-rate-match: a table of this name is in use that does otherwise; take another name";
        let table = named.hashlimit.of(m, family == Family::V6).ok_or(RuleFault::Value("hashlimit", why))?;
        Ok(Hashlimit { table, above: m.above, bytes: m.bytes })
    }

    pub(super) fn ask(&self, skb: &Skb<'_>, now: Time) -> Answer {
        match self.bucket(skb) {
            Some(bucket) => self.table.ask(self.bytes, self.above, &bucket, skb.len, now),
            None => Answer::Broken,
        }
    }

    /// Where the packet counts; `None` if its ports cannot be read.
    fn bucket(&self, skb: &Skb<'_>) -> Option<Bucket> {
        let by = self.table.mode();
        let when = |bit: u8, addr: IpAddr| if by & bit == 0 { [0; 16] } else { bytes(addr) };
        let (sport, dport) = if by & (mode::SRC_PORT | mode::DST_PORT) == 0 { (0, 0) } else { ports(skb)? };
        let (src, dst) = self.table.prefixes();
        let all = Bucket {
            src: when(mode::SRC_IP, skb.src),
            dst: when(mode::DST_IP, skb.dst),
            sport: if by & mode::SRC_PORT == 0 { 0 } else { sport },
            dport: if by & mode::DST_PORT == 0 { 0 } else { dport },
        };
        Some(all.masked(src, dst))
    }
}

/// An address in 16 bytes.
pub(super) fn bytes(addr: IpAddr) -> [u8; 16] {
    let mut all = [0; 16];
    match addr {
        IpAddr::V4(a) => all[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => all = a.octets(),
    }
    all
}

/// What stands where a protocol has ports, as Linux takes it; zeroes if it has none.
fn ports(skb: &Skb<'_>) -> Option<(u16, u16)> {
    let at = match skb.protocol {
        proto::TCP | proto::UDP => return Some((skb.sport, skb.dport)),
        DCCP | ESP | SCTP | UDP_LITE => 0,
        AH => 4,
        _ => return Some((0, 0)),
    };
    let four: [u8; 4] = skb.l4_bytes.get(at..at + 4)?.try_into().ok()?;
    Some((u16::from_be_bytes([four[0], four[1]]), u16::from_be_bytes([four[2], four[3]])))
}
