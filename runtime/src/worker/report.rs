//! The worker's counters as one JSON document.

use super::Worker;
use serde_json::{Map, Value, json};

fn object(counters: impl Iterator<Item = (&'static str, u64)>) -> Value {
    Value::Object(counters.map(|(name, n)| (name.to_owned(), n.into())).collect::<Map<_, _>>())
}

impl Worker {
    /// All counters: `uptime_ns`, `wakeups`, `flows`, `stack`, `drops` (by reason), `sockets`, `slots`, `links`.
    pub fn report(&self) -> Value {
        let (tcp, udp, icmp) = self.stack.flow_counts();
        let stats = self.stack.stats();
        let links: Vec<Value> = self.edge.links.iter().flatten().map(|l| object(l.stats().counters())).collect();
        json!({
            "uptime_ns": self.clock.now().as_nanos(),
            "wakeups": self.wakeups,
            "flows": { "tcp": tcp, "udp": udp, "icmp": icmp },
            "stack": object(stats.counters()),
            "drops": object(stats.drops().map(|(why, n)| (why.name(), n))),
            "sockets": object(self.edge.sockets.stats().counters()),
            "open_sockets": self.edge.sockets.len(),
            "slots": { "in_use": self.edge.slots.in_use(), "capacity": self.edge.slots.capacity() },
            "links": links,
        })
    }
}
