//! The worker's counters as one JSON document.

use super::Worker;
use crate::link::LinkStats;
use serde_json::{Map, Value, json};

fn object(counters: impl Iterator<Item = (&'static str, u64)>) -> Value {
    Value::Object(counters.map(|(name, n)| (name.to_owned(), n.into())).collect::<Map<_, _>>())
}

impl Worker {
    /// All counters: `uptime_ns`, `wakeups`, `flows`, `stack`, `drops` (by reason), `sockets`, `slots`, `links`.
    ///
    /// Of several workers it is the sum, and `workers` has how many flows each carries. What followers' stacks counted is in it once the leader has
    /// [taken that over](hibernet_netstack::Stack::absorb).
    pub fn report(&self) -> Value {
        let stats = self.stack.stats();
        let others = self.of_followers(|o| {
            let links = o.edge.links.iter().flatten().map(|l| l.stats()).collect::<Vec<_>>();
            (o.stack.flow_counts(), o.wakeups, links, *o.edge.sockets.stats(), o.edge.sockets.len())
        });
        let mut flows = vec![self.stack.flow_counts()];
        let (mut wakeups, mut sockets, mut open) = (self.wakeups, *self.edge.sockets.stats(), self.edge.sockets.len());
        let mut links: Vec<_> = self.edge.links.iter().flatten().map(|l| l.stats()).collect();
        for (carried, woken, queues, of_sockets, count) in others {
            flows.push(carried);
            wakeups += woken;
            sockets = sockets.plus(of_sockets);
            open += count;
            // They are queues of the one link.
            if let Some(first) = links.first_mut() {
                *first = queues.into_iter().fold(*first, LinkStats::plus);
            }
        }
        let (tcp, udp, icmp) = flows.iter().fold((0, 0, 0), |a, f| (a.0 + f.0, a.1 + f.1, a.2 + f.2));
        let each = |(tcp, udp, icmp): &(usize, usize, usize)| json!({ "tcp": tcp, "udp": udp, "icmp": icmp });
        let links: Vec<Value> = links.iter().map(|l| object(l.counters())).collect();
        json!({
            "uptime_ns": self.clock.now().as_nanos(),
            "wakeups": wakeups,
            "workers": flows.iter().map(each).collect::<Vec<_>>(),
            "flows": { "tcp": tcp, "udp": udp, "icmp": icmp },
            "stack": object(stats.counters()),
            "drops": object(stats.drops().map(|(why, n)| (why.name(), n))),
            "sockets": object(sockets.counters()),
            "open_sockets": open,
            "slots": { "in_use": self.edge.slots.in_use(), "capacity": self.edge.slots.capacity() },
            "links": links,
        })
    }
}
