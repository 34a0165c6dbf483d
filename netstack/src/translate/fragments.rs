//! Reassembly of fragments from the guest: RFC 791 section 3.2, RFC 815, RFC 5722, RFC 8200 section 4.5.
//!
//! Fragments may come in any order and more than once. One that overlaps another, or contradicts it, spoils its datagram: all
//! of it is thrown away, and what comes of it later too. Number and bytes are bounded, the oldest datagram goes first.

use crate::config::Limits;
use crate::edge::{Edge, HEAD_MAX, LinkId, Payload, Token, TokenKind};
use crate::flow::{Lru, Slab};
use crate::rng::{Key, Rng};
use crate::router::Router;
use crate::time::Time;
use crate::timers::Deadline;
use crate::tuple::proto;
use crate::verdict::DropReason;
use crate::wire::icmp::{self, IcmpError};
use crate::wire::{ip, ipv4, ipv6, tcp, udp};
use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, HashMap};

/// How long a datagram may take: Linux's `ipfrag_time`, and RFC 8200 section 4.5.
const LIFETIME_V4: Duration = Duration::from_secs(30);
const LIFETIME_V6: Duration = Duration::from_secs(60);
/// What a held fragment costs beside its bytes, for the bound on memory.
const OVERHEAD: usize = 96;

/// A datagram put together from fragments.
#[derive(Debug)]
pub(crate) struct Whole {
    /// Header of the whole datagram; no fragment any more.
    pub(crate) ip: ip::Header,
    /// The first bytes from the IP header on: at least all headers, at most [`HEAD_MAX`].
    pub(crate) head: Vec<u8>,
    /// What follows the IP header, stashed at the edge. To be released.
    pub(crate) datagram: Payload,
}

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    link: LinkId,
    src: IpAddr,
    dst: IpAddr,
    ident: u32,
    /// Zero for IPv6, where only the first fragment says it.
    protocol: u8,
}

/// Datagrams under reassembly.
#[derive(Debug)]
pub(crate) struct Reassembly {
    partials: Slab<Partial>,
    index: HashMap<Name, u32, Key>,
    /// By the time of their first fragment.
    by_age: Lru,
    bytes: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Partial {
    token: Token,
    name: Name,
    /// Fragments by offset. They do not overlap.
    pieces: BTreeMap<u32, Vec<u8>>,
    /// Their bytes together.
    have: u32,
    /// Length of the datagram, once its end is known.
    total: Option<u32>,
    first: Option<First>,
    /// Everything more of it is dropped.
    spoiled: bool,
    deadline: Deadline,
}

/// The fragment at offset 0.
#[derive(Debug)]
struct First {
    ip: ip::Header,
    /// The headers in front of the fragmented part, as they came.
    header: Vec<u8>,
    /// Bytes of IPv6 extension headers at the start of the fragmented part.
    extensions: usize,
}

/// A fragment whose place in its datagram is possible.
#[derive(Debug)]
struct Piece {
    start: u32,
    more: bool,
    bytes: Vec<u8>,
    first: Option<First>,
}

impl Piece {
    /// Checks a fragment by itself.
    fn read<E: Edge>(ip: &ip::Header, head: &[u8], datagram: Payload, edge: &E) -> Result<Piece, DropReason> {
        let Some(f) = ip.fragment else { return Err(DropReason::FragmentBad) };
        let header_len = usize::from(ip.header_len);
        // Where the fragmented part begins: in a first IPv6 fragment, extension headers may follow the fragment header.
        let base = match (ip.src, f.offset) {
            (IpAddr::V6(_), 0) => ipv6::Header::parse(head, ip.total_len as usize)?
                .fragment
                .map_or(header_len, |f| usize::from(f.at) + ipv6::FRAGMENT_LEN),
            _ => header_len,
        };
        let extensions = header_len.saturating_sub(base);
        let len = extensions + datagram.len();
        let end = usize::from(f.offset) + len;
        let max = if ip.src.is_ipv4() { 65_535 - ipv4::HEADER_LEN } else { 65_535 };
        let tiny = f.offset == 0 && datagram.len() < transport_header(ip.protocol, head.get(header_len..).unwrap_or_default());
        if len == 0 || end > max || f.more && !len.is_multiple_of(8) || tiny {
            return Err(DropReason::FragmentBad);
        }
        let mut bytes = vec![0; len];
        bytes[..extensions].copy_from_slice(&head[base..header_len]);
        if edge.read(datagram, &mut bytes[extensions..]) < datagram.len() {
            return Err(DropReason::Truncated);
        }
        let first = (f.offset == 0).then(|| First { ip: *ip, header: head[..base].to_vec(), extensions });
        Ok(Piece { start: f.offset.into(), more: f.more, bytes, first })
    }

    fn end(&self) -> u32 {
        self.start + self.bytes.len() as u32
    }
}

/// Length of the transport header that a first fragment must hold whole (RFC 7112, RFC 1858).
fn transport_header(protocol: u8, head: &[u8]) -> usize {
    match protocol {
        proto::TCP => head.get(12).map_or(tcp::HEADER_LEN, |b| (usize::from(b >> 4) * 4).max(tcp::HEADER_LEN)),
        proto::UDP => udp::HEADER_LEN,
        proto::ICMP | proto::ICMPV6 => icmp::HEADER_LEN,
        _ => 0,
    }
}

impl Partial {
    /// Adds a piece. `Ok(false)` for one that was there already, the error for one that contradicts the others.
    fn add(&mut self, p: Piece) -> Result<bool, DropReason> {
        let (start, end) = (p.start, p.end());
        let last_end = self.pieces.last_key_value().map_or(0, |(s, b)| s + b.len() as u32);
        let fits = match (p.more, self.total) {
            (false, Some(total)) => end == total,
            (false, None) => end >= last_end,
            (true, Some(total)) => end < total,
            (true, None) => true,
        };
        if self.spoiled || !fits {
            return Err(DropReason::FragmentBad);
        }
        if self.pieces.get(&start).is_some_and(|b| *b == p.bytes) {
            return Ok(false);
        }
        let before = self.pieces.range(..=start).next_back().is_some_and(|(s, b)| s + b.len() as u32 > start);
        let after = self.pieces.range(start..).next().is_some_and(|(s, _)| *s < end);
        if before || after {
            return Err(DropReason::FragmentBad);
        }
        if !p.more {
            self.total = Some(end);
        }
        self.have += p.bytes.len() as u32;
        self.first = p.first.or(self.first.take());
        self.pieces.insert(start, p.bytes);
        Ok(true)
    }

    fn cost(&self) -> usize {
        self.have as usize + self.pieces.len() * OVERHEAD
    }

    fn is_complete(&self) -> bool {
        self.total == Some(self.have)
    }
}

impl Reassembly {
    pub(crate) fn new(limits: &Limits, rng: &mut Rng) -> Self {
        Reassembly {
            partials: Slab::new(limits.reassembly),
            index: HashMap::with_hasher(rng.key()),
            by_age: Lru::default(),
            bytes: 0,
            max_bytes: limits.reassembly_bytes as usize,
        }
    }

    /// Adds a fragment; returns the datagram if it is complete.
    pub(crate) fn add<E: Edge>(
        &mut self,
        r: &mut Router,
        link: LinkId,
        ip: &ip::Header,
        head: &[u8],
        datagram: Payload,
        edge: &mut E,
    ) -> Result<Option<Whole>, DropReason> {
        let protocol = if ip.src.is_ipv4() { ip.protocol } else { 0 };
        let name = Name { link, src: ip.src, dst: ip.dst, ident: ip.fragment.map_or(0, |f| f.ident), protocol };
        let known = self.index.get(&name).copied();
        let piece = match Piece::read(ip, head, datagram, edge) {
            Ok(piece) => piece,
            Err(why) => {
                self.spoil(known);
                return Err(why);
            }
        };
        let slot = match known {
            Some(slot) => slot,
            None => self.open(r, name).ok_or(DropReason::FragmentLimit)?,
        };
        let cost = piece.bytes.len() + OVERHEAD;
        let Some(partial) = self.partials.get_mut(slot) else { return Err(DropReason::FragmentLimit) };
        match partial.add(piece) {
            Ok(true) => self.bytes += cost,
            Ok(false) => return Ok(None),
            Err(why) => {
                self.spoil(Some(slot));
                return Err(why);
            }
        }
        if partial.is_complete() {
            let partial = self.remove(r, slot);
            return partial.map(|p| whole(p, r, edge)).transpose();
        }
        while self.bytes > self.max_bytes {
            let Some(oldest) = self.by_age.oldest() else { break };
            self.remove(r, oldest);
            if oldest == slot {
                return Err(DropReason::FragmentLimit);
            }
            r.drop(DropReason::FragmentLimit);
        }
        Ok(None)
    }

    /// Throws away what a link's guest sent.
    pub(crate) fn forget(&mut self, r: &mut Router, link: LinkId) {
        let of_link: Vec<u32> = self.partials.iter().filter(|(_, p)| p.name.link == link).map(|(slot, _)| slot).collect();
        for slot in of_link {
            self.remove(r, slot);
        }
    }

    fn open(&mut self, r: &mut Router, name: Name) -> Option<u32> {
        if self.partials.is_full() {
            let oldest = self.by_age.oldest()?;
            if self.remove(r, oldest).is_some_and(|p| !p.spoiled) {
                r.drop(DropReason::FragmentLimit);
            }
        }
        let slot = self.partials.insert(|index, generation| Partial {
            token: Token::new(TokenKind::Ip, index, generation),
            name,
            pieces: BTreeMap::new(),
            have: 0,
            total: None,
            first: None,
            spoiled: false,
            deadline: Deadline::default(),
        })?;
        self.index.insert(name, slot);
        self.by_age.touch(slot);
        if let Some(p) = self.partials.get_mut(slot) {
            let lifetime = if name.src.is_ipv4() { LIFETIME_V4 } else { LIFETIME_V6 };
            r.timers.set(&mut p.deadline, p.token, r.now + lifetime);
        }
        Some(slot)
    }

    /// Throws away what is there of a datagram, and remembers that it is bad.
    fn spoil(&mut self, slot: Option<u32>) {
        if let Some(p) = slot.and_then(|s| self.partials.get_mut(s)) {
            self.bytes -= p.cost();
            p.pieces = BTreeMap::new();
            p.first = None;
            p.have = 0;
            p.spoiled = true;
        }
    }

    fn remove(&mut self, r: &mut Router, slot: u32) -> Option<Partial> {
        let mut p = self.partials.remove(slot)?;
        r.timers.cancel(&mut p.deadline);
        self.bytes -= p.cost();
        self.index.remove(&p.name);
        self.by_age.remove(slot);
        Some(p)
    }

    /// A datagram's time is over. The sender is told if its first fragment came: RFC 792, RFC 4443 section 3.3.
    pub(crate) fn timer<E: Edge>(&mut self, r: &mut Router, token: Token, queued: Time, edge: &mut E) {
        let Some(p) = self.partials.get_live(token.index(), token.generation()) else { return };
        if !r.timers.fired(&mut p.deadline, token, queued, r.now) {
            return;
        }
        let Some(p) = self.remove(r, token.index()).filter(|p| !p.spoiled) else { return };
        r.drop(DropReason::FragmentTimeout);
        let (Name { src, dst, .. }, Some(first)) = (p.name, p.first) else { return };
        let from = if r.is_ours(dst) { Some(dst) } else { r.gateway_of(src) };
        let one = !src.is_unspecified() && (r.is_ours(dst) || !r.is_local(dst));
        if let Some(from) = from.filter(|_| one) {
            let mut quoted = first.header;
            quoted.extend(p.pieces.get(&0).into_iter().flatten());
            r.send_icmp_error(edge, None, from, src, IcmpError::ReassemblyTime.quote(src.is_ipv6()), &quoted);
        }
    }
}

/// The datagram, under a header of its own: IPv4 options and IPv6 extension headers are left out.
fn whole<E: Edge>(p: Partial, r: &mut Router, edge: &mut E) -> Result<Whole, DropReason> {
    let first = p.first.ok_or(DropReason::FragmentBad)?;
    let mut data = Vec::with_capacity(p.have as usize);
    p.pieces.values().for_each(|b| data.extend_from_slice(b));
    data.drain(..first.extensions);
    let header_len = if first.ip.src.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let mut head = vec![0; header_len];
    match (first.ip.src, first.ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4::Header {
            header_len: header_len as u8,
            tos: first.ip.tos,
            total_len: (header_len + data.len()) as u16,
            ident: p.name.ident as u16,
            dont_fragment: false,
            more_fragments: false,
            fragment_offset: 0,
            ttl: first.ip.hop_limit,
            protocol: first.ip.protocol,
            src,
            dst,
        }
        .emit(&mut head),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6::Header {
            header_len: header_len as u16,
            traffic_class: first.ip.tos,
            flow_label: 0,
            payload_len: data.len() as u16,
            hop_limit: first.ip.hop_limit,
            protocol: first.ip.protocol,
            src,
            dst,
            fragment: None,
        }
        .emit(&mut head),
        _ => return Err(DropReason::FragmentBad),
    }
    head.extend_from_slice(&data[..data.len().min(HEAD_MAX - header_len)]);
    let datagram = edge.stash(&data).ok_or(DropReason::HostResources)?;
    r.stats.reassembled += 1;
    let ip = ip::Header {
        header_len: header_len as u16,
        total_len: (header_len + data.len()) as u32,
        // Who fragments does not mind that the way does: also for IPv6, whose sender is to the host we.
        dont_fragment: false,
        fragment: None,
        ..first.ip
    };
    Ok(Whole { ip, head, datagram })
}
