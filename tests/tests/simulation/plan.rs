//! What a seed stands for.

use core::net::IpAddr;
use core::time::Duration;
use hibernet_netstack::config::{Config, Limits, Publish};
use hibernet_netstack::edge::LinkInfo;
use hibernet_netstack::iptables::Family;
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_tests::wire::GUEST_MAC;
use hibernet_tests::{Drain, SplitMix};

/// First published host port, and the guest port that it leads to; the next seven follow.
pub const PUBLISHED: (u16, u16) = (8000, 80);

/// Faults of a link, in percent of frames, and its delay.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub loss: u64,
    pub duplication: u64,
    pub reordering: u64,
    pub delay: Duration,
    /// From when to when nothing comes through at all: the guest is paused, or its link is.
    pub blackout: Option<(Duration, Duration)>,
}

/// Who breaks a connection off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Guest,
    Peer,
}

/// In which order the sides of a connection end their streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The guest, when all its data are sent; the peer when it has seen that.
    GuestFirst,
    /// The other way round.
    PeerFirst,
    /// Each when its own data are sent.
    Independent,
}

/// A TCP connection.
#[derive(Clone, Debug)]
pub struct TcpPlan {
    pub id: u64,
    pub inbound: bool,
    pub guest_port: u16,
    /// The other end: the host that the guest reaches, or the client that connects.
    pub remote: Endpoint,
    /// Where the guest connects to: rules may lead that to another place.
    pub seen: Endpoint,
    pub start: Duration,
    /// Bytes from the guest, and to it.
    pub up: u64,
    pub down: u64,
    pub closing: Closing,
    /// Who breaks it off and when, counted from its start.
    pub abort: Option<(Side, Duration)>,
    pub guest_buffers: (usize, usize),
    pub delayed_ack: bool,
    pub connect_delay: Duration,
    pub sndbuf: usize,
    pub max_write: usize,
    pub max_peek: usize,
    pub drain: Drain,
    /// Longest pause between actions of the programs at both ends.
    pub pace: Duration,
}

/// A UDP exchange: the guest asks, the host echoes.
#[derive(Clone, Debug)]
pub struct UdpPlan {
    pub id: u64,
    pub guest_port: u16,
    pub remote: Endpoint,
    pub start: Duration,
    pub count: u64,
    pub size: usize,
    /// Replies are merged by the host (GRO).
    pub merged: bool,
}

/// A world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub config: Config,
    pub link: LinkInfo,
    pub faults: Faults,
    /// Rules in force from the start.
    pub rules: Vec<(Family, String)>,
    /// The link's queue is full now and then.
    pub full: bool,
    /// Our process stands still: when, and for how long. The guest's clock goes on, its programs stand still too; so it is
    /// less than the 10 s of its TIME-WAIT, after which smoltcp throws unread data away.
    pub freeze: Option<(Duration, Duration)>,
    pub tcp: Vec<TcpPlan>,
    pub udp: Vec<UdpPlan>,
    pub flood: FloodPlan,
}

/// What the guest and others send beside.
#[derive(Clone, Debug, Default)]
pub struct FloodPlan {
    /// Frames of the guest, and pauses between them at most.
    pub frames: u64,
    pub pace: Duration,
    /// Clients that send datagrams to a published port.
    pub clients: u64,
    pub resolver: Option<IpAddr>,
}

/// What a careful operator has: nothing that tracking finds wrong passes, and sources are translated on the way out.
const CAREFUL: &str = "*nat\n-A POSTROUTING -o host0 -j MASQUERADE --random\nCOMMIT\n\
    *filter\n:FORWARD DROP [0:0]\n\
    -A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
    -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i tap0 -m conntrack --ctstate NEW -j ACCEPT\n\
    -A FORWARD -i host0 -m conntrack --ctstate DNAT -j ACCEPT\nCOMMIT\n";

fn pick<T: Copy>(rng: &mut SplitMix, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

fn far(rng: &mut SplitMix, v6: bool) -> IpAddr {
    let host = rng.range(1, 250) as u16;
    if v6 { IpAddr::from([0x2600, 0x1f, 0, 0, 0, 0, 0, host]) } else { IpAddr::from([203, 0, 113, host as u8]) }
}

impl Plan {
    pub fn new(seed: u64) -> Plan {
        let mut rng = SplitMix::new(seed ^ 0x6869_6265_726e_6574);
        let publish =
            Publish { proto: proto::TCP, addr: None, host_ports: (PUBLISHED.0, PUBLISHED.0 + 7), guest_port: PUBLISHED.1 };
        let mut limits = Limits::default();
        if rng.chance(30) {
            // Not so little that windows close again and again: smoltcp 0.14 forgets what is in flight when one does.
            limits.tcp_hold = pick(&mut rng, &[100_000, 200_000]);
            limits.tcp_out_of_order = pick(&mut rng, &[2000, 20_000]);
        }
        let config = Config { publish: vec![publish], limits, ..Config::default() };
        let offload = rng.chance(60);
        let link = LinkInfo {
            mtu: pick(&mut rng, &[1280, 1500, 1500, 9000, 65_520]),
            checksum: offload,
            tso: offload.into(),
            uso: offload,
            guest_mac: rng.chance(50).then_some(hibernet_netstack::wire::Mac(GUEST_MAC)),
            in_flight: pick(&mut rng, &[0, 320 * 1024, u32::MAX]),
        };
        // One seed in eight has a clean link, so that UDP is counted to the last datagram and no fault hides a stall.
        let percent = if rng.chance(12) { 0 } else { 5 };
        // A handshake gives up after a minute; a long blackout is for those that are over it.
        let blackout = match rng.below(10) {
            0 => Some((rng.range(20, 400), rng.range(1, 4000))),
            1 if percent == 0 => Some((rng.range(2500, 4000), rng.range(1000, 240_000))),
            _ => None,
        };
        let blackout = blackout.map(|(from, len)| (Duration::from_millis(from), Duration::from_millis(from + len)));
        let faults = Faults {
            loss: percent,
            duplication: percent,
            reordering: percent,
            delay: Duration::from_micros(pick(&mut rng, &[20, 200, 2000, 25_000])),
            blackout,
        };
        let tcp = (0..rng.range(1, 7)).map(|n| TcpPlan::new(&mut rng, n)).collect();
        let udp = (0..rng.below(3)).map(|n| UdpPlan::new(&mut rng, n, link.mtu)).collect();
        let freeze = (rng.chance(8) && blackout.is_none())
            .then(|| (Duration::from_millis(rng.below(1000)), Duration::from_millis(rng.below(9000))));
        let families: &[Family] = if seed.is_multiple_of(2) { &[Family::V4, Family::V6] } else { &[] };
        let rules = families.iter().map(|f| (*f, CAREFUL.to_owned())).collect();
        Plan { config, link, faults, rules, full: rng.chance(20), freeze, tcp, udp, flood: FloodPlan::default() }
    }
}

impl TcpPlan {
    fn new(rng: &mut SplitMix, n: u64) -> TcpPlan {
        let v6 = rng.chance(50);
        let inbound = rng.chance(40);
        let amount = |rng: &mut SplitMix| match rng.below(6) {
            0 => 0,
            1 => rng.range(1, 100),
            2 => rng.range(100, 10_000),
            3 | 4 => rng.range(10_000, 150_000),
            _ => rng.range(100_000, 400_000),
        };
        let size = |rng: &mut SplitMix| pick(rng, &[600, 2000, 8192, 65_535, 200_000]);
        let port = if inbound { PUBLISHED.1 + n as u16 } else { rng.range(20_000, 29_000) as u16 + n as u16 * 1000 };
        let drain = match rng.below(4) {
            0 => Drain { bytes: rng.range(500, 5000) as usize, every: Duration::from_millis(rng.range(1, 10)) },
            _ => Drain { bytes: usize::MAX, every: Duration::from_micros(rng.below(2000)) },
        };
        let id = rng.u64();
        let remote = Endpoint::new(far(rng, v6), rng.range(1, 60_000) as u16);
        TcpPlan {
            id,
            inbound,
            guest_port: port,
            remote,
            seen: remote,
            start: Duration::from_millis(rng.below(100)),
            up: amount(rng),
            down: amount(rng),
            closing: pick(rng, &[Closing::GuestFirst, Closing::PeerFirst, Closing::Independent]),
            abort: rng.chance(12).then(|| (pick(rng, &[Side::Guest, Side::Peer]), Duration::from_micros(rng.below(400_000)))),
            guest_buffers: (size(rng), size(rng)),
            delayed_ack: rng.chance(70),
            connect_delay: Duration::from_millis(pick(rng, &[0, 0, 5, 80])),
            sndbuf: pick(rng, &[2000, 16_384, 262_144]),
            max_write: pick(rng, &[usize::MAX, usize::MAX, 4096, 700]),
            max_peek: pick(rng, &[usize::MAX, usize::MAX, 3000]),
            drain,
            pace: Duration::from_millis(pick(rng, &[0, 1, 10])),
        }
    }
}

impl UdpPlan {
    fn new(rng: &mut SplitMix, n: u64, mtu: u16) -> UdpPlan {
        let v6 = rng.chance(50);
        let most = u64::from(mtu) - 48;
        UdpPlan {
            id: rng.u64(),
            guest_port: 5000 + n as u16,
            remote: Endpoint::new(far(rng, v6), rng.range(1, 60_000) as u16),
            start: Duration::from_millis(rng.below(100)),
            count: rng.range(1, 40),
            size: rng.range(16, most.min(8000)) as usize,
            merged: rng.chance(40),
        }
    }
}
