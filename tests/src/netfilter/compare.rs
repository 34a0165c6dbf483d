//! Comparison of what two routers did.
//!
//! Everything must be equal, but:
//! - checksums must be off by the same amount (which is none, unless what was sent was wrong);
//! - the identification of IPv4 packets that a router made itself;
//! - how a packet is cut that arrived in pieces;
//! - the checksum of an ICMP message of nothing but zeros, which the kernel makes wrong (see `wrong_zero`; counted);
//! - a source port or identifier that address translation took by chance: both routers must have changed it, both must have
//!   kept to the range of a rule, or else to the kernel's class of ports (below 512, below 1024, above), and each must mean
//!   the same other one from then on;
//! - time-outs may differ by two seconds, and by as long as it took to do what both do at the same time.

use super::frames::header;
use super::record::{Entry, Seen, ports, quoted};
use crate::wire::internet_checksum;
use std::collections::BTreeMap;
use std::time::Duration;

/// Time-outs may differ by so many seconds on a machine that never stops.
const SECONDS: u64 = 2;

/// Ports chosen by chance: which of ours stands for which of the kernel's.
#[derive(Clone, Debug, Default)]
pub struct Renames {
    /// By protocol, our port, and the kernel's port of the other end; and the reverse.
    ours: BTreeMap<(u8, u16, u16), u16>,
    kernels: BTreeMap<(u8, u16, u16), u16>,
    ranges: Vec<(u16, u16)>,
    /// A rule chooses by chance even where it need not, and may by chance choose what there was.
    random: bool,
    /// Checksums that the kernel made wrong, as `wrong_zero` has it.
    pub(super) wrong_zeros: u64,
}

impl Renames {
    /// None yet; the rules say in which ranges ports may be.
    pub fn new(rules: &str) -> Renames {
        let mut ranges = Vec::new();
        for line in rules.lines().filter(|l| l.contains("NAT") || l.contains("MASQUERADE") || l.contains("REDIRECT")) {
            for word in line.split_whitespace() {
                let tail = word.rsplit(':').next().unwrap_or(word).split('/').next().unwrap_or(word);
                if let Some((a, b)) = tail.split_once('-')
                    && let (Ok(a), Ok(b)) = (a.parse(), b.parse())
                {
                    ranges.push((a, b));
                }
            }
        }
        Renames { ranges, random: rules.contains("--random"), ..Renames::default() }
    }

    /// Whether rules choose ports at random.
    pub fn by_chance(&self) -> bool {
        self.random || !self.ranges.is_empty()
    }

    /// Whether `ours` stands for `kernels`; noted if it is new and may be.
    fn same(&mut self, protocol: u8, kernels: u16, ours: u16, other: u16, sent: Option<u16>) -> bool {
        // Of ICMP and ICMPv6 the identifier, which has one class.
        let echo = matches!(protocol, 1 | 58);
        match (self.ours.get(&(protocol, ours, other)), self.kernels.get(&(protocol, kernels, other))) {
            (Some(k), Some(o)) => return *k == kernels && *o == ours,
            (None, None) if kernels == ours => return true,
            (None, None) => {}
            _ => return false,
        }
        let class = |p: u16| if p < 512 { 0 } else { 1 + u8::from(p >= 1024) };
        let within = |(a, b): &(u16, u16)| (*a..=*b).contains(&kernels) && (*a..=*b).contains(&ours);
        let may = (echo || class(kernels) == class(ours) || self.ranges.iter().any(within))
            && sent.is_none_or(|s| self.random || s != kernels && s != ours);
        if may {
            self.ours.insert((protocol, ours, other), kernels);
            self.kernels.insert((protocol, kernels, other), ours);
        }
        may
    }

    /// Whether one of two ports stands for another than the other one.
    fn differs(&self, protocol: u8, kernels: u16, ours: u16, other: u16) -> bool {
        self.ours.get(&(protocol, ours, other)).is_some_and(|k| *k != kernels)
            || self.kernels.get(&(protocol, kernels, other)).is_some_and(|o| *o != ours)
    }

    fn forget(&mut self, protocol: u8, kernels: u16, ours: u16, other: u16) {
        if let Some(k) = self.ours.remove(&(protocol, ours, other)) {
            self.kernels.remove(&(protocol, k, other));
        }
        if let Some(o) = self.kernels.remove(&(protocol, kernels, other)) {
            self.ours.remove(&(protocol, o, other));
        }
    }

    /// Whether our words of a listing mean those of the kernel. (Each word may be one that stands for another, or itself: a port
    /// chosen by chance can be equal to one that was not.)
    fn mean(&self, protocol: u8, ours: &[String], kernel: &[String]) -> bool {
        let other = self.words(protocol, ours);
        ours.len() == kernel.len() && kernel.iter().zip(ours.iter().zip(&other)).all(|(k, (a, b))| k == a || k == b)
    }

    /// As [`Renames::mean`], for connections that ended at the router, so that no packet ever showed the port that was chosen for their
    /// source: that one must be of the kernel's class, and another than what there was.
    fn unseen(&self, ours: &[String], kernel: &[String]) -> bool {
        let port = |w: &String| ["dport=", "id="].iter().find_map(|key| w.strip_prefix(key)?.parse::<u16>().ok());
        let first = kernel.iter().find_map(|w| w.strip_prefix("sport=").or(w.strip_prefix("id="))?.parse::<u16>().ok());
        let differ: Vec<_> = kernel.iter().zip(ours).filter(|(k, o)| k != o).collect();
        let class = |p: u16| if p < 512 { 0 } else { 1 + u8::from(p >= 1024) };
        match differ[..] {
            [(k, o)] if ours.len() == kernel.len() => match (port(k), port(o), first) {
                (Some(k), Some(o), Some(first)) => k != first && o != first && class(k) == class(o),
                _ => false,
            },
            _ => false,
        }
    }

    /// Our words of a listing as the kernel would have them.
    fn words(&self, protocol: u8, words: &[String]) -> Vec<String> {
        let port = |w: &str| ["sport=", "dport=", "id="].iter().find_map(|key| w.strip_prefix(key)?.parse::<u16>().ok());
        let rename = |i: usize, word: &String| -> Option<String> {
            let (key, own) = (word.split_once('=')?.0, port(word)?);
            // The other end of the same direction stands beside it.
            let other = match key {
                "sport" => port(words.get(i + 1)?)?,
                "dport" => port(words.get(i.checked_sub(1)?)?)?,
                _ => 0,
            };
            // The kernel's port of the other end may be one chosen by chance, too.
            let others = self.ours.iter().filter(|((p, o, _), _)| *p == protocol && *o == other).map(|(_, k)| *k).chain([other]);
            others.into_iter().find_map(|o| self.ours.get(&(protocol, own, o))).map(|k| format!("{key}={k}"))
        };
        words.iter().enumerate().map(|(i, w)| rename(i, w).unwrap_or_else(|| w.clone())).collect()
    }
}

/// Compares what came out after `sent`; says what differs.
pub fn frames(kernel: &[Seen], ours: &[Seen], sent: &[u8], renames: &mut Renames) -> Result<(), String> {
    if kernel.len() != ours.len() {
        return Err(format!("{} packets from the kernel, {} from us", kernel.len(), ours.len()));
    }
    for (k, o) in kernel.iter().zip(ours) {
        if k.side != o.side {
            return Err(format!("the kernel sends to the {:?}, we to the {:?}", k.side, o.side));
        }
        let (mut kp, mut op) = (k.packet.clone(), o.packet.clone());
        // One of the router's own may have the identification of what caused it, by chance.
        if kp[0] >> 4 == 4 && (kp[4..6] == [0, 0] || op[4..6] == [0, 0]) {
            kp[4..6].fill(0);
            op[4..6].fill(0);
        }
        let places = ports(&kp);
        let (head, protocol) = header(&kp);
        // A connection that begins may have a port that one had before that ended.
        let begins = protocol == 6 && kp.get(head + 13).is_some_and(|f| f & 0x12 == 2);
        if places == ports(&op) {
            let number = |p: &[u8], at: usize| u16::from_be_bytes([p[at], p[at + 1]]);
            let asked: Vec<u16> = ports(sent).iter().map(|(_, at, _)| number(sent, *at)).collect();
            let forwarded = asked.len() == places.len();
            for (i, &(protocol, at, sum)) in places.iter().enumerate() {
                let (a, b) = (number(&kp, at), number(&op, at));
                // Ports come in pairs, identifiers alone.
                let beside = |n: usize| places.iter().any(|(p, place, _)| *p == protocol && *place == n);
                let other = match protocol {
                    6 | 17 if beside(at + 2) => number(&kp, at + 2),
                    6 | 17 => number(&kp, at - 2),
                    _ => 0,
                };
                if begins && a != b && renames.differs(protocol, a, b, other) {
                    renames.forget(protocol, a, b, other);
                }
                if a != b && renames.same(protocol, a, b, other, asked.get(i).copied().filter(|_| forwarded)) {
                    op[at..at + 2].copy_from_slice(&a.to_be_bytes());
                    if let Some(sum) = sum {
                        kp[sum..sum + 2].fill(0);
                        op[sum..sum + 2].fill(0);
                    }
                }
            }
        }
        if kp != op && wrong_zero(&kp, &op, sent) {
            renames.wrong_zeros += 1;
        } else if kp != op {
            return Err(describe(&kp, &op));
        }
    }
    Ok(())
}

/// Whether the one difference is the checksum of an ICMP message quoted by an ICMP error, 0xffff of ours and 0 of the kernel's, and ours is right.
///
/// A message that is all zero (an echo reply with identifier and number 0) has the sum +0 and the checksum 0xffff. By RFC 1071 a checksum is right
/// if the sum of everything with it is all ones (-0): with 0xffff it is, with 0 the sum is +0, and every receiver, the kernel too, takes the message for
/// damaged. What is computed from the old checksum, as the kernel does when it translates an identifier (RFC 1624), comes to -0 where a sum over the
/// message comes to +0, and so to 0.
fn wrong_zero(kernel: &[u8], ours: &[u8], sent: &[u8]) -> bool {
    let (Some(start), (_, 1)) = (quoted(ours), header(ours)) else { return false };
    let (inner, 1) = header(&ours[start..]) else { return false };
    let message = &ours[start + inner..];
    // It is quoted whole, and translated back to what was sent.
    if sent.get(header(sent).0..) != Some(message) || message.len() < 8 {
        return false;
    }
    let right = message[2..4] == [0xff; 2] && internet_checksum(&[message]) == 0;
    let mut theirs = ours.to_vec();
    theirs[start + inner + 2..start + inner + 4].fill(0);
    right && theirs == kernel
}

/// Where two packets differ, in words.
fn describe(k: &[u8], o: &[u8]) -> String {
    let at = k.iter().zip(o).position(|(a, b)| a != b).unwrap_or(k.len().min(o.len()));
    let (head, protocol) = header(k);
    let place = if at < head {
        format!("byte {at} of the IP header")
    } else {
        format!("byte {} after it (protocol {protocol})", at - head)
    };
    format!("packets of {} and {} bytes differ first at {place}", k.len(), o.len())
}

/// Compares connections; `late` is how long the machine may have stopped between what the kernel did and our clock.
pub fn connections(kernel: &[Entry], ours: &[Entry], renames: &Renames, late: Duration) -> Result<(), String> {
    let mut wrong = Vec::new();
    let mut left = ours.to_vec();
    for k in kernel {
        let protocol = k.words.get(3).and_then(|w| w.parse().ok()).unwrap_or(0);
        let same = left.iter().position(|o| renames.mean(protocol, &o.words, &k.words));
        match same.or_else(|| left.iter().position(|o| renames.unseen(&o.words, &k.words))) {
            Some(i) => {
                let o = left.remove(i);
                let near = match (k.timeout, o.timeout) {
                    (Some(a), Some(b)) => a.abs_diff(b) <= SECONDS + late.as_secs(),
                    (a, b) => a == b,
                };
                if !near {
                    wrong.push(format!("time-outs {:?} and {:?} of {}", k.timeout, o.timeout, k.words.join(" ")));
                }
            }
            None => wrong.push(format!("only the kernel: {:?} {}", k.timeout, k.words.join(" "))),
        }
    }
    wrong.extend(left.iter().map(|o| format!("only we:         {:?} {}", o.timeout, o.words.join(" "))));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Compares rules with their counters.
pub fn rules(kernel: &BTreeMap<String, Vec<String>>, ours: &BTreeMap<String, Vec<String>>) -> Result<(), String> {
    let mut wrong = Vec::new();
    for (table, lines) in kernel {
        let empty = Vec::new();
        let other = ours.get(table).unwrap_or(&empty);
        for i in 0..lines.len().max(other.len()) {
            let (a, b) = (lines.get(i), other.get(i));
            if a != b {
                wrong.push(format!("{table}:\n  kernel {}\n  ours   {}", a.map_or("-", |s| s), b.map_or("-", |s| s)));
            }
        }
    }
    wrong.truncate(12);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
