//! The worker's counters as one JSON document.

use super::Worker;
use crate::edge::RuntimeEdge;
use crate::link::LinkStats;
use crate::sock::SocketStats;
use hibernet_netstack::Stack;
use serde_json::{Map, Value, json};

fn object(counters: impl Iterator<Item = (&'static str, u64)>) -> Value {
    Value::Object(counters.map(|(name, n)| (name.to_owned(), n.into())).collect::<Map<_, _>>())
}

/// What a worker counts beside its stack.
struct Counted {
    /// Flows that it carries: TCP, UDP, ICMP.
    flows: (usize, usize, usize),
    wakeups: u64,
    links: Vec<LinkStats>,
    sockets: SocketStats,
    open: usize,
    slots_in_use: usize,
    slots: usize,
}

impl Counted {
    fn of(stack: &Stack, edge: &RuntimeEdge, wakeups: u64) -> Counted {
        Counted {
            flows: stack.flow_counts(),
            wakeups,
            links: edge.links.iter().flatten().map(|l| l.stats()).collect(),
            sockets: *edge.sockets.stats(),
            open: edge.sockets.len(),
            slots_in_use: edge.slots.in_use(),
            slots: edge.slots.capacity(),
        }
    }

    /// With what another one counted, whose links are queues of the same ones.
    fn plus(self, o: &Counted) -> Counted {
        let mut links = self.links;
        for (mine, theirs) in links.iter_mut().zip(&o.links) {
            *mine = mine.plus(*theirs);
        }
        let (a, b) = (self.flows, o.flows);
        Counted {
            flows: (a.0 + b.0, a.1 + b.1, a.2 + b.2),
            wakeups: self.wakeups + o.wakeups,
            links,
            sockets: self.sockets.plus(o.sockets),
            open: self.open + o.open,
            slots_in_use: self.slots_in_use + o.slots_in_use,
            slots: self.slots + o.slots,
        }
    }

    fn flows(&self) -> Value {
        let (tcp, udp, icmp) = self.flows;
        json!({ "tcp": tcp, "udp": udp, "icmp": icmp })
    }
}

impl Worker {
    /// All counters: `uptime_ns`, `wakeups`, `flows`, `workers` (how many flows each worker carries), `stack`, `drops` (by reason), `sockets`, `slots`, `links`.
    ///
    /// What followers' stacks counted is in it once the leader has [taken that over](Stack::absorb).
    pub fn report(&self) -> Value {
        let stats = self.stack.stats();
        let own = Counted::of(&self.stack, &self.edge, self.wakeups);
        let others = self.of_followers(|o| Counted::of(&o.stack, &o.edge, o.wakeups));
        let workers: Vec<Value> = std::iter::once(&own).chain(&others).map(Counted::flows).collect();
        let all = others.iter().fold(own, Counted::plus);
        let links: Vec<Value> = all.links.iter().map(|l| object(l.counters())).collect();
        json!({
            "uptime_ns": self.clock.now().as_nanos(),
            "wakeups": all.wakeups,
            "flows": all.flows(),
            "workers": workers,
            "stack": object(stats.counters()),
            "drops": object(stats.drops().map(|(why, n)| (why.name(), n))),
            "sockets": object(all.sockets.counters()),
            "open_sockets": all.open,
            "slots": { "in_use": all.slots_in_use, "capacity": all.slots },
            "links": links,
        })
    }
}
