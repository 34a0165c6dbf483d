//! The worker's counters as one JSON document.

use super::Worker;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

/// Clients served per wake-up.
const MAX_CLIENTS: usize = 8;

fn object(counters: impl Iterator<Item = (&'static str, u64)>) -> Value {
    Value::Object(counters.map(|(name, n)| (name.to_owned(), n.into())).collect::<Map<_, _>>())
}

impl Worker {
    /// All counters: `uptime_ns`, `wakeups`, `flows`, `stack`, `drops` (by reason), `sockets`, `slots`, `links`.
    pub fn report(&self) -> Value {
        let (tcp, udp, icmp) = self.stack.flow_counts();
        let stats = self.stack.stats();
        let links: Vec<Value> = self.edge.links.iter().map(|l| object(l.stats().counters())).collect();
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

    /// Serves those who wait at the stats socket. The document fits into a socket's buffer, so that nothing waits for a client;
    /// one that has shrunk its buffer gets what fits.
    pub(super) fn serve_stats(&self, listener: &UnixListener) {
        for _ in 0..MAX_CLIENTS {
            let Ok((client, _)) = listener.accept() else { return };
            if let Err(e) = self.write_report(&client) {
                slog::debug!(self.log, "a client of the stats socket got no or not the whole document"; "error" => %e);
            }
        }
    }

    fn write_report(&self, mut client: &UnixStream) -> std::io::Result<()> {
        client.set_nonblocking(true)?;
        let mut text = serde_json::to_vec(&self.report())?;
        text.push(b'\n');
        client.write_all(&text)
    }
}
