//! States as they are compared with a twin's: without what may be otherwise though nobody can tell.
//!
//! A table of connections that was loaded gives out its free slots in another order, so connections are named by their tuples. What has
//! timed out is left out: the reaper comes by its slot sooner or later.

use hibernet_netstack::conntrack::image::{Family, record_size};
use hibernet_netstack::{Stack, Time};
use serde_json::Value;

/// A state in its canonical form.
#[derive(Debug)]
pub struct Canon {
    /// All but the connections. It changes with every packet, and by nothing but what the stack does.
    pub state: String,
    /// The connections that live.
    pub connections: String,
    /// From when on a flow of datagrams waits for its end, which comes with the reaper if not before.
    pub reaping: Time,
    /// The table of connections was full: which of them made room is a matter of slots.
    pub full: bool,
}

/// The canonical form of a stack's state.
pub fn canon(stack: &Stack, now: Time) -> Canon {
    let (state, connections) = (stack.save(), stack.conntrack().save());
    let table = stack.conntrack();
    let mut value = serde_json::to_value(&state).expect("a state is a value");
    rename(&mut value, &|id| {
        let id = serde_json::from_value(id.clone()).expect("the handle of a connection");
        table.get(id).map(|c| format!("{:?}", c.tuples[0]))
    });
    let mut lines = Vec::new();
    let mut reaping = Time::NEVER;
    for family in [Family::V4, Family::V6] {
        for record in connections.records(family).to_vec().chunks(record_size(family)) {
            let expires = u64::from_le_bytes(record[8..16].try_into().expect("8 bytes"));
            let has_flow = record[16..24] != [0; 8];
            let dead = expires <= now.as_nanos();
            if has_flow && record[46] != 6 {
                reaping = reaping.min(Time::from_nanos(expires));
            }
            if !dead || has_flow {
                lines.push(format!("{} expires {expires} {:02x?}", record[46], &record[16..]));
            }
        }
    }
    lines.sort_unstable();
    let mut counters = connections.head().counters;
    let full = counters.early_drop + counters.drop > 0;
    counters.expired = 0;
    let state = format!("draws {}\nnumbered {}\n{counters:?}\n{value}", stack.draws(), connections.head().numbered);
    Canon { state, connections: lines.join("\n"), reaping, full }
}

impl Canon {
    /// Lines that differ from those of another one, which should be the same.
    pub fn difference(&self, other: &Canon) -> String {
        let lines = |c: &Canon| -> Vec<String> {
            let (counters, state) = c.state.rsplit_once('\n').unwrap_or_default();
            let state: Value = serde_json::from_str(state).unwrap_or_default();
            format!("{counters}\n{state:#}\n{}", c.connections).lines().map(|l| l.trim().to_owned()).collect()
        };
        let (a, b) = (lines(self), lines(other));
        let pairs = a.iter().zip(&b).filter(|(a, b)| a != b).take(30).map(|(a, b)| format!("{a}\n    but {b}\n"));
        format!("{}{} and {} lines", pairs.collect::<String>(), a.len(), b.len())
    }
}

/// Gives each flow's connection another name.
fn rename(value: &mut Value, name: &dyn Fn(&Value) -> Option<String>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match (key.as_str(), &*field) {
                    ("conn", Value::Object(_)) => *field = name(field).into(),
                    _ => rename(field, name),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| rename(v, name)),
        _ => {}
    }
}
