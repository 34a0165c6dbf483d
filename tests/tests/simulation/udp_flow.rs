//! A UDP exchange: the guest sends numbered datagrams, the host sends each back.

use crate::guest::{Guest, endpoint};
use crate::plan::UdpPlan;
use core::time::Duration;
use hibernet_netstack::Time;
use hibernet_tests::host::Incoming;
use hibernet_tests::{SplitMix, World, stream};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp;
use std::collections::BTreeMap;

/// Copies of each datagram of an exchange that were put on the link or came off it, by sequence number.
pub type Copies = BTreeMap<u64, u64>;

#[derive(Debug)]
pub struct UdpFlow {
    pub plan: UdpPlan,
    rng: SplitMix,
    start: Time,
    socket: Option<SocketHandle>,
    next: Time,
    sent: u64,
    /// Of each socket.
    echoed: Vec<usize>,
    /// What the link will deliver, noted by the driver: to the stack, and to the guest.
    pub delivered_up: Copies,
    pub delivered_down: Copies,
    pub got_host: Copies,
    pub got_guest: Copies,
}

/// The first bytes of a datagram: its exchange and its number.
pub fn label(data: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| Some(u64::from_be_bytes(data.get(at..at + 8)?.try_into().ok()?));
    Some((word(0)?, word(8)?))
}

impl UdpFlow {
    pub fn new(plan: UdpPlan, now: Time, rng: SplitMix) -> UdpFlow {
        let start = now + plan.start;
        UdpFlow {
            plan,
            rng,
            start,
            socket: None,
            next: start,
            sent: 0,
            echoed: Vec::new(),
            delivered_up: Copies::new(),
            delivered_down: Copies::new(),
            got_host: Copies::new(),
            got_guest: Copies::new(),
        }
    }

    pub fn is_done(&self) -> bool {
        self.sent == self.plan.count
    }

    pub fn next(&self) -> Time {
        self.next
    }

    fn datagram(&self, seq: u64) -> Vec<u8> {
        let mut d = [self.plan.id.to_be_bytes(), seq.to_be_bytes()].concat();
        d.extend(stream::bytes(self.plan.id, seq * 10_000, self.plan.size.saturating_sub(16)));
        d
    }

    fn check(&self, data: &[u8]) -> u64 {
        let (id, seq) = label(data).expect("a datagram without label");
        assert_eq!(id, self.plan.id, "a datagram of another exchange");
        assert!(data == self.datagram(seq), "a datagram was changed on its way");
        seq
    }

    pub fn act(&mut self, now: Time, g: &mut Guest) {
        if now < self.start {
            return;
        }
        let handle = *self.socket.get_or_insert_with(|| {
            let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 128], vec![0; 1 << 20]);
            let mut s = udp::Socket::new(buffer(), buffer());
            s.bind(self.plan.guest_port).unwrap();
            g.sockets.add(s)
        });
        let s = g.sockets.get_mut::<udp::Socket<'_>>(handle);
        while let Ok((data, _)) = s.recv() {
            let seq = self.check(data);
            *self.got_guest.entry(seq).or_default() += 1;
        }
        if self.next <= now {
            let n = self.rng.range(1, 8).min(self.plan.count - self.sent);
            for _ in 0..n {
                s.send_slice(&self.datagram(self.sent), endpoint(self.plan.remote)).unwrap();
                self.sent += 1;
            }
            let more = self.sent < self.plan.count;
            self.next = if more { now + Duration::from_millis(self.rng.below(20)) } else { Time::NEVER };
        }
    }

    /// The host's program: every datagram goes back; whether there were any. A flow that expired comes again with another socket.
    pub fn echo(&mut self, w: &mut World) -> bool {
        let mut any = false;
        let remote = self.plan.remote;
        let mut socks = w.edge.host.udp_sockets();
        socks.retain(|s| w.edge.host.udp(*s).to == Some(remote));
        assert!(socks.iter().filter(|s| w.edge.host.is_open(**s)).count() <= 1, "one flow, one socket");
        self.echoed.resize(socks.len(), 0);
        for (n, sock) in socks.into_iter().enumerate() {
            let news: Vec<Vec<u8>> = w.edge.host.udp(sock).sent[self.echoed[n]..]
                .iter()
                .flat_map(|s| match s.opts.segment {
                    None => vec![s.data.clone()],
                    Some(n) => s.data.chunks(n.into()).map(<[u8]>::to_vec).collect(),
                })
                .collect();
            self.echoed[n] = w.edge.host.udp(sock).sent.len();
            for d in &news {
                let seq = self.check(d);
                *self.got_host.entry(seq).or_default() += 1;
            }
            if !w.edge.host.is_open(sock) {
                continue;
            }
            let merge = if self.plan.merged { (60_000 / self.plan.size.max(16)).min(60) } else { 1 };
            for group in news.chunks(merge.max(1)) {
                let segment = (group.len() > 1).then_some(group[0].len() as u16);
                let d = Incoming { data: group.concat(), from: remote, to: None, segment, hop_limit: Some(60) };
                w.edge.host.udp_arrives(sock, d);
                any = true;
            }
        }
        any
    }

    /// What the link delivered arrived, and nothing else.
    pub fn check_counts(&self) {
        assert_eq!(self.got_host, self.delivered_up, "datagrams from the guest");
        assert_eq!(self.got_guest, self.delivered_down, "datagrams to the guest");
    }
}
