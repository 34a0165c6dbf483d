//! Which connections a command is about: the filter options of conntrack(8).

use super::conn::{Conn, Proto, Status};
use super::tcp::TcpState;
use super::tuple::Addr;
use crate::iptables::Family;
use crate::tuple::proto;
use core::net::IpAddr;
use core::str::FromStr;

/// Filter of connections. Every field that is there must fit; an empty filter fits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `-f`, `--family`. (The tool lists both if none is given.)
    pub family: Option<Family>,
    /// `-p`, `--proto`.
    pub proto: Option<ProtoArg>,
    /// `-s`, `--src`, `--orig-src`.
    pub src: Option<AddrArg>,
    /// `-d`, `--dst`, `--orig-dst`.
    pub dst: Option<AddrArg>,
    /// `-r`, `--reply-src`.
    pub reply_src: Option<AddrArg>,
    /// `-q`, `--reply-dst`.
    pub reply_dst: Option<AddrArg>,
    /// `--sport`, `--orig-port-src`.
    pub sport: Option<u16>,
    /// `--dport`, `--orig-port-dst`.
    pub dport: Option<u16>,
    /// `--reply-port-src`.
    pub reply_sport: Option<u16>,
    /// `--reply-port-dst`.
    pub reply_dport: Option<u16>,
    /// `--icmp-type`, of the original direction.
    pub icmp_type: Option<u8>,
    /// `--icmp-code`.
    pub icmp_code: Option<u8>,
    /// `--icmp-id`.
    pub icmp_id: Option<u16>,
    /// `--state`.
    pub state: Option<StateArg>,
    /// `-m`, `--mark`.
    pub mark: Option<MarkArg>,
    /// `-u`, `--status`.
    pub status: Option<StatusArg>,
    /// `-w`, `--zone`: in both directions.
    pub zone: Option<u16>,
    /// `--orig-zone`.
    pub orig_zone: Option<u16>,
    /// `--reply-zone`.
    pub reply_zone: Option<u16>,
    /// `-n`, `--src-nat`: the source is translated, to this if it is given.
    pub src_nat: Option<NatArg>,
    /// `-g`, `--dst-nat`: the destination is translated, to this if it is given.
    pub dst_nat: Option<NatArg>,
    /// `-j`, `--any-nat`: source or destination is translated, to this if it is given.
    pub any_nat: Option<NatArg>,
}

impl Filter {
    /// Whether nothing is asked for, so that every connection fits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Whether a connection fits.
    #[must_use]
    pub fn matches(&self, c: &Conn) -> bool {
        let [original, reply] = &c.tuples;
        let ports = |want: Option<u16>, have: u16| want.is_none_or(|p| original.has_ports() && p == have);
        let (icmp_type, icmp_code) = original.icmp_type_code();
        let icmp = matches!(c.proto, Proto::Icmp);
        self.family.is_none_or(|f| (f == Family::V6) == original.v6)
            && self.proto.is_none_or(|p| p.0 == original.proto)
            && self.src.is_none_or(|a| a.matches(original.src_ip()))
            && self.dst.is_none_or(|a| a.matches(original.dst_ip()))
            && self.reply_src.is_none_or(|a| a.matches(reply.src_ip()))
            && self.reply_dst.is_none_or(|a| a.matches(reply.dst_ip()))
            && ports(self.sport, original.sport)
            && ports(self.dport, original.dport)
            && ports(self.reply_sport, reply.sport)
            && ports(self.reply_dport, reply.dport)
            && self.icmp_type.is_none_or(|t| icmp && t == icmp_type)
            && self.icmp_code.is_none_or(|t| icmp && t == icmp_code)
            && self.icmp_id.is_none_or(|id| icmp && id == original.sport)
            && self.state.is_none_or(|s| matches!(&c.proto, Proto::Tcp(t) if t.state == s.0))
            && self.mark.is_none_or(|m| c.mark & m.mask == m.value)
            && self.status.is_none_or(|s| s.matches(c.status))
            && self.zone.is_none_or(|z| original.zone == z && reply.zone == z)
            && self.orig_zone.is_none_or(|z| original.zone == z)
            && self.reply_zone.is_none_or(|z| reply.zone == z)
            && self.src_nat.is_none_or(|n| n.source(c))
            && self.dst_nat.is_none_or(|n| n.destination(c))
            && self.any_nat.is_none_or(|n| n.source(c) || n.destination(c))
    }
}

/// Why an argument of a filter was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be {value:?}: give {wanted}")]
pub struct FilterError {
    what: &'static str,
    value: String,
    wanted: &'static str,
}

fn refuse<T>(what: &'static str, value: &str, wanted: &'static str) -> Result<T, FilterError> {
    Err(FilterError { what, value: value.into(), wanted })
}

/// A protocol by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtoArg(pub u8);

impl FromStr for ProtoArg {
    type Err = FilterError;

    fn from_str(s: &str) -> Result<Self, FilterError> {
        Ok(ProtoArg(match s.to_ascii_lowercase().as_str() {
            "tcp" => proto::TCP,
            "udp" => proto::UDP,
            "icmp" => proto::ICMP,
            "icmpv6" | "ipv6-icmp" => proto::ICMPV6,
            "gre" => 47,
            "dccp" => 33,
            "sctp" => 132,
            "udplite" => 136,
            number => match number.parse() {
                Ok(number) => number,
                Err(_) => return refuse("protocol", s, "tcp, udp, icmp, icmpv6, gre, dccp, sctp, udplite or a number up to 255"),
            },
        }))
    }
}

/// An address, or a net by its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddrArg {
    addr: IpAddr,
    prefix: u8,
}

impl AddrArg {
    /// Whether an address is it, or in it.
    pub(crate) fn matches(&self, other: IpAddr) -> bool {
        if self.addr.is_ipv6() != other.is_ipv6() {
            return false;
        }
        let [a, b] = [self.addr, other].map(|a| u128::from_be_bytes(bytes(a)));
        let host_bits = match self.addr {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        } - u32::from(self.prefix);
        (a ^ b).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

fn bytes(a: IpAddr) -> [u8; 16] {
    match a {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

impl FromStr for AddrArg {
    type Err = FilterError;

    fn from_str(s: &str) -> Result<Self, FilterError> {
        const WANTED: &str = "an address, or an address and a prefix length such as 10.0.0.0/8";
        let (addr, prefix) = s.split_once('/').map_or((s, None), |(a, p)| (a, Some(p)));
        let Ok(addr) = addr.parse::<IpAddr>() else { return refuse("address", s, WANTED) };
        let max = if addr.is_ipv4() { 32 } else { 128 };
        match prefix.map_or(Ok(max), str::parse) {
            Ok(prefix) if prefix <= max => Ok(AddrArg { addr, prefix }),
            _ => refuse("address", s, WANTED),
        }
    }
}

/// A TCP state by the name that listings show. As in conntrack(8), LISTEN is another name of SYN_SENT2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateArg(pub TcpState);

impl FromStr for StateArg {
    type Err = FilterError;

    fn from_str(s: &str) -> Result<Self, FilterError> {
        let name = s.to_ascii_uppercase();
        match TcpState::ALL.into_iter().find(|state| state.name() == name || name == "LISTEN" && *state == TcpState::SynSent2) {
            Some(state) => Ok(StateArg(state)),
            None => refuse(
                "state",
                s,
                "NONE, SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE or SYN_SENT2",
            ),
        }
    }
}

/// A mark, and the bits of it that count: all of them, or those after the `/`. Decimal, or hexadecimal after `0x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkArg {
    /// What the bits that count must be.
    pub value: u32,
    /// Which they are.
    pub mask: u32,
}

impl FromStr for MarkArg {
    type Err = FilterError;

    fn from_str(s: &str) -> Result<Self, FilterError> {
        let (value, mask) = s.split_once('/').map_or((s, None), |(v, m)| (v, Some(m)));
        match (number(value), mask.map_or(Some(u32::MAX), number)) {
            (Some(value), Some(mask)) => Ok(MarkArg { value, mask }),
            _ => refuse("mark", s, "a number of 32 bits, or two such as 0x10/0xff"),
        }
    }
}

fn number(s: &str) -> Option<u32> {
    match s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) {
        // `from_str_radix` would take a sign.
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if s.bytes().all(|b| b.is_ascii_digit()) => s.parse().ok(),
        None => None,
    }
}

/// What happened to a connection: names with commas between them, all of which must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusArg {
    set: Status,
    /// UNSET: neither answered nor assured.
    unset: bool,
}

impl StatusArg {
    fn matches(&self, status: Status) -> bool {
        status.has(self.set) && !(self.unset && (status.has(Status::SEEN_REPLY) || status.has(Status::ASSURED)))
    }
}

impl FromStr for StatusArg {
    type Err = FilterError;

    fn from_str(s: &str) -> Result<Self, FilterError> {
        let mut arg = StatusArg { set: Status::default(), unset: false };
        for name in s.split(',') {
            match name.to_ascii_uppercase().as_str() {
                "ASSURED" => arg.set.set(Status::ASSURED),
                "SEEN_REPLY" => arg.set.set(Status::SEEN_REPLY),
                "UNSET" => arg.unset = true,
                _ => return refuse("status", s, "ASSURED, SEEN_REPLY or UNSET, with commas between them"),
            }
        }
        Ok(arg)
    }
}

/// That an end is translated, and to what: an address, `:port`, or both (an IPv6 address in brackets then). Nothing for whatever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatArg {
    addr: Option<IpAddr>,
    port: Option<u16>,
}

impl NatArg {
    fn source(&self, c: &Conn) -> bool {
        let [o, r] = &c.tuples;
        self.matches((o.src, o.sport), (r.dst, if o.has_ports() { r.dport } else { r.sport }), o.v6)
    }

    fn destination(&self, c: &Conn) -> bool {
        let [o, r] = &c.tuples;
        // ICMP has its identifier on the asking side only.
        let ports = if o.has_ports() { (o.dport, r.sport) } else { (0, 0) };
        self.matches((o.dst, ports.0), (r.src, ports.1), o.v6)
    }

    fn matches(&self, before: (Addr, u16), after: (Addr, u16), v6: bool) -> bool {
        before != after
            && self.addr.is_none_or(|a| before.0 != after.0 && after.0.ip(v6) == a)
            && self.port.is_none_or(|p| before.1 != after.1 && after.1 == p)
    }
}

impl FromStr for NatArg {
    type Err = FilterError;

    fn from_str(s: &str) -> Result<Self, FilterError> {
        if s.is_empty() {
            return Ok(NatArg::default());
        }
        if let Ok(addr) = s.parse() {
            return Ok(NatArg { addr: Some(addr), port: None });
        }
        let parsed = s.rsplit_once(':').and_then(|(addr, port)| {
            let port = Some(port.parse().ok()?);
            let addr = match addr {
                "" => None,
                a => Some(match a.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
                    Some(v6) => IpAddr::V6(v6.parse().ok()?),
                    None => IpAddr::V4(a.parse().ok()?),
                }),
            };
            Some(NatArg { addr, port })
        });
        match parsed {
            Some(arg) => Ok(arg),
            None => refuse("translation", s, "an address, :port, address:port, or [IPv6 address]:port"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::tcp::TcpTrack;
    use crate::conntrack::tuple::{CtTuple, invert};
    use crate::time::Time;

    fn conn() -> Conn {
        let addr = |a: [u8; 4]| Addr::from(IpAddr::from(a));
        let original = CtTuple {
            src: addr([10, 0, 2, 15]),
            dst: addr([192, 0, 2, 1]),
            sport: 1234,
            dport: 80,
            zone: 3,
            proto: proto::TCP,
            v6: false,
        };
        let mut reply = invert(&original).unwrap();
        reply.dst = addr([198, 51, 100, 7]);
        reply.dport = 40_000;
        Conn {
            tuples: [original, reply],
            status: Status(Status::SEEN_REPLY.0 | Status::ASSURED.0 | Status::SRC_NAT.0),
            mark: 0x12,
            expires: Time::ZERO,
            proto: Proto::Tcp(TcpTrack { state: TcpState::Established, ..Default::default() }),
            flow: None,
        }
    }

    fn arg<T: FromStr<Err = FilterError>>(s: &str) -> Option<T> {
        Some(s.parse().unwrap_or_else(|e| panic!("{e}")))
    }

    #[test]
    fn every_field_must_fit() {
        let c = conn();
        assert!(Filter::default().is_empty() && Filter::default().matches(&c));
        type Set = fn(&mut Filter, bool);
        // Each sets one field, to what fits or to what does not.
        let fields: [Set; 19] = [
            |f, ok| f.family = Some(if ok { Family::V4 } else { Family::V6 }),
            |f, ok| f.proto = arg(if ok { "tcp" } else { "17" }),
            |f, ok| f.src = arg(if ok { "10.0.0.0/8" } else { "10.0.2.14" }),
            |f, ok| f.dst = arg(if ok { "192.0.2.1" } else { "::/0" }),
            |f, ok| f.reply_src = arg(if ok { "192.0.2.0/31" } else { "192.0.2.2/31" }),
            |f, ok| f.reply_dst = arg(if ok { "0.0.0.0/0" } else { "10.0.2.15" }),
            |f, ok| f.sport = Some(if ok { 1234 } else { 1235 }),
            |f, ok| f.dport = Some(if ok { 80 } else { 81 }),
            |f, ok| f.reply_sport = Some(if ok { 80 } else { 1234 }),
            |f, ok| f.reply_dport = Some(if ok { 40_000 } else { 1234 }),
            |f, ok| f.state = arg(if ok { "established" } else { "SYN_SENT" }),
            |f, ok| f.mark = arg(if ok { "0x10/0xf0" } else { "16" }),
            |f, ok| f.status = arg(if ok { "ASSURED,SEEN_REPLY" } else { "UNSET" }),
            |f, ok| f.zone = Some(if ok { 3 } else { 0 }),
            |f, ok| f.orig_zone = Some(if ok { 3 } else { 4 }),
            |f, ok| f.reply_zone = Some(if ok { 3 } else { 4 }),
            |f, ok| f.src_nat = arg(if ok { "198.51.100.7:40000" } else { "198.51.100.8" }),
            |f, ok| f.any_nat = arg(if ok { ":40000" } else { ":1234" }),
            |f, ok| f.icmp_type = if ok { None } else { Some(0) },
        ];
        for (i, set) in fields.iter().enumerate() {
            let mut f = Filter::default();
            set(&mut f, true);
            assert!(f.matches(&c), "field {i}: {f:?}");
            set(&mut f, false);
            assert!(!f.matches(&c) && !f.is_empty(), "field {i}: {f:?}");
        }
        let mut all = Filter::default();
        fields.iter().for_each(|set| set(&mut all, true));
        assert!(all.matches(&c));
        assert!(!Filter { dst_nat: arg(""), ..Filter::default() }.matches(&c), "only the source is translated");
    }

    #[test]
    fn queries_have_types_and_no_ports() {
        let mut c = conn();
        c.proto = Proto::Icmp;
        for t in &mut c.tuples {
            t.proto = proto::ICMP;
            t.sport = 77;
        }
        c.tuples[0].dport = 8 << 8;
        c.tuples[1].dport = 0;
        let fits = Filter { icmp_type: Some(8), icmp_code: Some(0), icmp_id: Some(77), ..Filter::default() };
        assert!(fits.matches(&c));
        assert!(!Filter { icmp_code: Some(1), ..fits.clone() }.matches(&c));
        assert!(!Filter { icmp_id: Some(78), ..fits }.matches(&c));
        assert!(!Filter { sport: Some(77), ..Filter::default() }.matches(&c));
    }

    #[test]
    fn bad_arguments_are_refused_with_what_would_do() {
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "host", "10.0.0.1/-1"] {
            assert!(bad.parse::<AddrArg>().is_err(), "{bad}");
        }
        for bad in ["", "0x", "-1", "+1", "0x+1", "4294967296", "1/", "1/2/3"] {
            assert!(bad.parse::<MarkArg>().is_err(), "{bad}");
        }
        for bad in ["256", "foo", "", "-1"] {
            assert!(bad.parse::<ProtoArg>().is_err(), "{bad}");
        }
        for bad in ["ASSURED,", "NONE", ""] {
            assert!(bad.parse::<StatusArg>().is_err(), "{bad}");
        }
        for bad in ["::1:80:", "10.0.0.1:", "10.0.0.1:70000", "x:1", "[10.0.0.1]:1"] {
            assert!(bad.parse::<NatArg>().is_err(), "{bad}");
        }
        let e = "OPEN".parse::<StateArg>().unwrap_err().to_string();
        assert!(e.starts_with("state cannot be \"OPEN\": give NONE, SYN_SENT"), "{e}");
    }
}
