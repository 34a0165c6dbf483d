//! States as they are compared with a twin's: without what may be otherwise though nobody can tell.
//!
//! A table of connections that was loaded gives out its free slots in another order, so connections are named by their tuples. What has
//! timed out is left out: the reaper comes by its slot sooner or later.

use core::fmt::Write;
use hibernet_netstack::conntrack::image::{Family, Image as Connections, record_size};
use hibernet_netstack::state::StackState;
use hibernet_netstack::{Stack, Time};
use serde_json::Value;

/// A state in its canonical form.
#[derive(Debug)]
pub struct Canon {
    pub text: String,
    /// A flow of datagrams waits for its end, which comes with the reaper if not before.
    pub reaping: bool,
    /// The table of connections was full: which of them made room is a matter of slots.
    pub full: bool,
}

/// The canonical form of a stack's state.
pub fn canon(stack: &Stack, state: &StackState, connections: &Connections, now: Time) -> Canon {
    let table = stack.conntrack();
    let mut value = serde_json::to_value(state).expect("a state is a value");
    rename(&mut value, &|id| {
        let id = serde_json::from_value(id.clone()).expect("the handle of a connection");
        table.get(id).map(|c| format!("{:?}", c.tuples[0]))
    });
    let mut text = format!("draws {}\n{value:#}\n", stack.draws());
    let mut lines = Vec::new();
    let mut reaping = false;
    for family in [Family::V4, Family::V6] {
        for record in connections.records(family).to_vec().chunks(record_size(family)) {
            let expires = u64::from_le_bytes(record[8..16].try_into().expect("8 bytes"));
            let has_flow = record[16..24] != [0; 8];
            let dead = expires <= now.as_nanos();
            reaping |= dead && has_flow && record[46] != 6;
            if !dead || has_flow {
                lines.push(format!("{} expires {expires} {:02x?}", record[46], &record[16..]));
            }
        }
    }
    lines.sort_unstable();
    let mut counters = connections.head().counters;
    let full = counters.early_drop + counters.drop > 0;
    counters.expired = 0;
    let _ = writeln!(text, "{}\n{counters:?}\nnumbered {}", lines.join("\n"), connections.head().numbered);
    Canon { text, reaping, full }
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
