//! Connections as `conntrack -L` shows them, and as values for JSON.

use super::acct::Counts;
use super::conn::{Conn, Proto, Status};
use super::gre;
use super::tuple::CtTuple;
use crate::time::Time;
use crate::tuple::proto;
use core::fmt;
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// A connection as a line of `conntrack -L`, without the end of line.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    conn: &'a Conn,
    now: Time,
    extended: bool,
    counts: Option<[Counts; 2]>,
}

impl<'a> Line<'a> {
    /// The line at a time: it shows for how many whole seconds the connection would still live.
    #[must_use]
    pub const fn new(conn: &'a Conn, now: Time) -> Self {
        Line { conn, now, extended: false, counts: None }
    }

    /// With what the connection carried, if it is counted.
    #[must_use]
    pub const fn counting(self, counts: Option<[Counts; 2]>) -> Self {
        Line { counts, ..self }
    }

    /// As `-o extended`: with the network protocol at the start.
    #[must_use]
    pub const fn extended(self) -> Self {
        Line { extended: true, ..self }
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.conn;
        let [original, reply] = &c.tuples;
        if self.extended {
            let (name, number) = if original.v6 { ("ipv6", 10) } else { ("ipv4", 2) };
            write!(f, "{name:<8} {number} ")?;
        }
        let left = c.expires.since(self.now).as_secs();
        write!(f, "{:<8} {} {left} ", proto_name(original), original.proto)?;
        if let Proto::Tcp(t) = &c.proto {
            write!(f, "{} ", t.state.name())?;
        }
        let zones = [original.zone, reply.zone];
        write_tuple(f, original)?;
        if zones[0] != zones[1] && zones[0] != 0 {
            write!(f, "zone-orig={} ", zones[0])?;
        }
        write_counts(f, self.counts.map(|c| c[0]))?;
        if !c.status.has(Status::SEEN_REPLY) {
            f.write_str("[UNREPLIED] ")?;
        }
        write_tuple(f, reply)?;
        if zones[0] != zones[1] && zones[1] != 0 {
            write!(f, "zone-reply={} ", zones[1])?;
        }
        write_counts(f, self.counts.map(|c| c[1]))?;
        if c.status.has(Status::ASSURED) {
            f.write_str("[ASSURED] ")?;
        }
        write!(f, "mark={} ", c.mark)?;
        if zones[0] == zones[1] && zones[0] != 0 {
            write!(f, "zone={} ", zones[0])?;
        }
        // References that the kernel's entry has while it is listed; ours have none.
        f.write_str("use=1")
    }
}

fn write_counts(f: &mut fmt::Formatter<'_>, counts: Option<Counts>) -> fmt::Result {
    match counts {
        Some(c) => write!(f, "packets={} bytes={} ", c.packets, c.bytes),
        None => Ok(()),
    }
}

fn write_tuple(f: &mut fmt::Formatter<'_>, t: &CtTuple) -> fmt::Result {
    write!(f, "src={} dst={} ", t.src_ip(), t.dst_ip())?;
    match t.proto {
        proto::TCP | proto::UDP => write!(f, "sport={} dport={} ", t.sport, t.dport),
        proto::ICMP | proto::ICMPV6 => {
            let (ty, code) = t.icmp_type_code();
            write!(f, "type={ty} code={code} id={} ", t.sport)
        }
        gre::PROTOCOL => write!(f, "srckey={:#x} dstkey={:#x} ", t.sport, t.dport),
        // Not tracked by their ports here.
        DCCP | SCTP | UDPLITE => f.write_str("sport=0 dport=0 "),
        _ => Ok(()),
    }
}

/// Name of the protocol as the conntrack tool prints it.
const fn proto_name(t: &CtTuple) -> &'static str {
    match t.proto {
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::ICMP => "icmp",
        proto::ICMPV6 => "icmpv6",
        gre::PROTOCOL => "gre",
        DCCP => "dccp",
        SCTP => "sctp",
        UDPLITE => "udplite",
        _ => "unknown",
    }
}

/// A connection for JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnView {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Name of the IP protocol, `unknown` if it has none here.
    pub protocol: String,
    /// Its number.
    pub protocol_number: u8,
    /// Seconds for which it would still live.
    pub timeout: u64,
    /// State, of TCP connections.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<String>,
    /// What packets of the first one's direction look like.
    pub original: TupleView,
    /// What packets of the other direction look like.
    pub reply: TupleView,
    /// Packets were seen in both directions.
    pub seen_reply: bool,
    /// Not dropped early.
    pub assured: bool,
    /// The source is translated.
    pub src_nat: bool,
    /// The destination is translated.
    pub dst_nat: bool,
    /// Connection mark.
    pub mark: u32,
    /// A flow to a host socket keeps it.
    pub pinned: bool,
}

/// A tuple for JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TupleView {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Ports, or type, code and identifier, by protocol.
    #[serde(flatten)]
    pub ends: Ends,
    /// Zone.
    pub zone: u16,
    /// Packets that went this way, if they are counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packets: Option<u64>,
    /// Bytes of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
}

/// The part of a tuple that depends on the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Ends {
    /// TCP and UDP.
    Ports {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Type.
        icmp_type: u8,
        /// Code.
        icmp_code: u8,
        /// Identifier.
        icmp_id: u16,
    },
    /// GRE.
    Keys {
        /// Source key; 0 for other versions than 1.
        srckey: u16,
        /// Destination key: the call identifier.
        dstkey: u16,
    },
    /// Other protocols.
    Nothing {},
}

impl From<&CtTuple> for TupleView {
    fn from(t: &CtTuple) -> Self {
        let ends = match t.proto {
            proto::TCP | proto::UDP => Ends::Ports { sport: t.sport, dport: t.dport },
            proto::ICMP | proto::ICMPV6 => {
                let (icmp_type, icmp_code) = t.icmp_type_code();
                Ends::Icmp { icmp_type, icmp_code, icmp_id: t.sport }
            }
            gre::PROTOCOL => Ends::Keys { srckey: t.sport, dstkey: t.dport },
            _ => Ends::Nothing {},
        };
        TupleView { src: t.src_ip(), dst: t.dst_ip(), ends, zone: t.zone, packets: None, bytes: None }
    }
}

impl ConnView {
    /// The connection at a time.
    #[must_use]
    pub fn new(c: &Conn, now: Time) -> Self {
        let [original, reply] = &c.tuples;
        ConnView {
            family: if original.v6 { "ipv6" } else { "ipv4" }.into(),
            protocol: proto_name(original).into(),
            protocol_number: original.proto,
            timeout: c.expires.since(now).as_secs(),
            state: match &c.proto {
                Proto::Tcp(t) => Some(t.state.name().into()),
                _ => None,
            },
            original: original.into(),
            reply: reply.into(),
            seen_reply: c.status.has(Status::SEEN_REPLY),
            assured: c.status.has(Status::ASSURED),
            src_nat: c.status.has(Status::SRC_NAT),
            dst_nat: c.status.has(Status::DST_NAT),
            mark: c.mark,
            pinned: c.flow.is_some(),
        }
    }

    /// With what the connection carried, if it is counted.
    #[must_use]
    pub fn counting(mut self, counts: Option<[Counts; 2]>) -> Self {
        for (tuple, n) in [&mut self.original, &mut self.reply].into_iter().zip(counts.iter().flatten()) {
            (tuple.packets, tuple.bytes) = (Some(n.packets), Some(n.bytes));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::tcp::{TcpState, TcpTrack};
    use crate::conntrack::tuple::invert;
    use core::time::Duration;

    fn conn(proto_number: u8, ports: (u16, u16), v6: bool, state: Proto) -> Conn {
        let (src, dst): (IpAddr, IpAddr) = match v6 {
            false => ([10, 1, 0, 2].into(), [10, 2, 0, 2].into()),
            true => ("fd01::2".parse().unwrap(), "fd02::2".parse().unwrap()),
        };
        let t = CtTuple { src: src.into(), dst: dst.into(), sport: ports.0, dport: ports.1, zone: 0, proto: proto_number, v6 };
        Conn {
            tuples: [t, invert(&t).unwrap()],
            status: Status::default(),
            mark: 0,
            expires: Time::from_millis(5_000) + Duration::from_millis(29_999),
            proto: state,
            flow: None,
        }
    }

    fn line(c: &Conn) -> String {
        Line::new(c, Time::from_millis(5_000)).to_string()
    }

    const UDP: Proto = Proto::Udp { stream_after: Time::ZERO };

    /// What `conntrack -L` v1.4.7 printed on Linux 6.18 for the same connections.
    #[test]
    fn lines_are_those_of_the_conntrack_tool() {
        let mut c = conn(17, (2000, 56), false, UDP);
        assert_eq!(
            line(&c),
            "udp      17 29 src=10.1.0.2 dst=10.2.0.2 sport=2000 dport=56 [UNREPLIED] \
             src=10.2.0.2 dst=10.1.0.2 sport=56 dport=2000 mark=0 use=1"
        );
        c.status.set(Status::SEEN_REPLY);
        assert_eq!(
            line(&c),
            "udp      17 29 src=10.1.0.2 dst=10.2.0.2 sport=2000 dport=56 \
             src=10.2.0.2 dst=10.1.0.2 sport=56 dport=2000 mark=0 use=1"
        );
        let mut c = conn(6, (1, 80), true, Proto::Tcp(TcpTrack { state: TcpState::Established, ..Default::default() }));
        c.status.set(Status::SEEN_REPLY);
        c.status.set(Status::ASSURED);
        c.expires = Time::from_millis(5_000) + Duration::from_millis(431_999_900);
        assert_eq!(
            Line::new(&c, Time::from_millis(5_000)).extended().to_string(),
            "ipv6     10 tcp      6 431999 ESTABLISHED src=fd01::2 dst=fd02::2 sport=1 dport=80 \
             src=fd02::2 dst=fd01::2 sport=80 dport=1 [ASSURED] mark=0 use=1"
        );
        let mut c = conn(1, (77, 13 << 8 | 3), false, Proto::Icmp);
        c.mark = u32::MAX;
        assert_eq!(
            Line::new(&c, Time::from_millis(5_000)).extended().to_string(),
            "ipv4     2 icmp     1 29 src=10.1.0.2 dst=10.2.0.2 type=13 code=3 id=77 [UNREPLIED] \
             src=10.2.0.2 dst=10.1.0.2 type=14 code=3 id=77 mark=4294967295 use=1"
        );
        assert_eq!(
            line(&conn(58, (78, 139 << 8 | 2), true, Proto::Icmp)),
            "icmpv6   58 29 src=fd01::2 dst=fd02::2 type=139 code=2 id=78 [UNREPLIED] \
             src=fd02::2 dst=fd01::2 type=140 code=2 id=78 mark=0 use=1"
        );
        assert_eq!(
            line(&conn(47, (0, 0x1234), false, Proto::Generic)),
            "gre      47 29 src=10.1.0.2 dst=10.2.0.2 srckey=0x0 dstkey=0x1234 [UNREPLIED] \
             src=10.2.0.2 dst=10.1.0.2 srckey=0x1234 dstkey=0x0 mark=0 use=1"
        );
        assert_eq!(
            line(&conn(33, (0, 0), false, Proto::Generic)),
            "dccp     33 29 src=10.1.0.2 dst=10.2.0.2 sport=0 dport=0 [UNREPLIED] \
             src=10.2.0.2 dst=10.1.0.2 sport=0 dport=0 mark=0 use=1"
        );
        assert_eq!(
            line(&conn(50, (0, 0), false, Proto::Generic)),
            "unknown  50 29 src=10.1.0.2 dst=10.2.0.2 [UNREPLIED] src=10.2.0.2 dst=10.1.0.2 mark=0 use=1"
        );
    }

    /// As `conntrack -L` v1.4.7 printed it with `nf_conntrack_acct`.
    #[test]
    fn counts_stand_behind_the_tuples() {
        let mut c = conn(17, (2000, 56), false, UDP);
        let counts = Some([Counts { packets: 2, bytes: 90 }, Counts::default()]);
        let show = |c: &Conn| Line::new(c, Time::from_millis(5_000)).counting(counts).to_string();
        assert_eq!(
            show(&c),
            "udp      17 29 src=10.1.0.2 dst=10.2.0.2 sport=2000 dport=56 packets=2 bytes=90 [UNREPLIED] \
             src=10.2.0.2 dst=10.1.0.2 sport=56 dport=2000 packets=0 bytes=0 mark=0 use=1"
        );
        c.tuples[0].zone = 5;
        assert!(show(&c).contains(" dport=56 zone-orig=5 packets=2 bytes=90 [UNREPLIED] src="), "{}", show(&c));
        let view = serde_json::to_value(ConnView::new(&c, Time::ZERO).counting(counts)).unwrap();
        assert_eq!(
            (&view["original"]["packets"], &view["original"]["bytes"], &view["reply"]["packets"]),
            (&2.into(), &90.into(), &0.into())
        );
    }

    #[test]
    fn zones_stand_where_the_conntrack_tool_puts_them() {
        let mut c = conn(17, (1000, 53), false, UDP);
        c.tuples[0].zone = 5;
        c.tuples[1].zone = 5;
        assert!(line(&c).ends_with(" sport=53 dport=1000 mark=0 zone=5 use=1"), "{}", line(&c));
        c.tuples[0].zone = 6;
        c.tuples[1].zone = 0;
        assert!(line(&c).contains(" sport=1000 dport=53 zone-orig=6 [UNREPLIED] src="), "{}", line(&c));
        c.tuples[0].zone = 0;
        c.tuples[1].zone = 7;
        c.mark = 1234;
        assert!(line(&c).ends_with(" sport=53 dport=1000 zone-reply=7 mark=1234 use=1"), "{}", line(&c));
    }

    #[test]
    fn an_overdue_connection_has_no_seconds_left() {
        let c = conn(17, (1000, 53), false, UDP);
        assert!(Line::new(&c, Time::NEVER).to_string().starts_with("udp      17 0 src="));
    }

    #[test]
    fn json_says_the_same_and_comes_back() {
        let mut c = conn(6, (1, 80), true, Proto::Tcp(TcpTrack { state: TcpState::SynSent, ..Default::default() }));
        c.tuples[1].dport = 4_000;
        c.status.set(Status::SRC_NAT);
        let view = ConnView::new(&c, Time::from_millis(5_000));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "family": "ipv6", "protocol": "tcp", "protocol_number": 6, "timeout": 29, "state": "SYN_SENT",
                "original": {"src": "fd01::2", "dst": "fd02::2", "sport": 1, "dport": 80, "zone": 0},
                "reply": {"src": "fd02::2", "dst": "fd01::2", "sport": 80, "dport": 4000, "zone": 0},
                "seen_reply": false, "assured": false, "src_nat": true, "dst_nat": false, "mark": 0, "pinned": false,
            })
        );
        for c in [
            c,
            conn(1, (77, 8 << 8), false, Proto::Icmp),
            conn(50, (0, 0), false, Proto::Generic),
            conn(47, (0, 7), false, Proto::Generic),
        ] {
            let view = ConnView::new(&c, Time::ZERO);
            let text = serde_json::to_string(&view).unwrap();
            assert_eq!(serde_json::from_str::<ConnView>(&text).unwrap(), view, "{text}");
        }
    }
}
