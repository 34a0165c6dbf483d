//! Scenarios written by hand, through the kernel's netfilter and through ours.

mod counted;
mod datagrams;
mod icmp;
mod local;
mod nat;
mod packets;
mod remembered;
mod rules;
mod segments;
mod tcp;

use hibernet_tests::netfilter::{Kernel, Ours, Scenario, run};

/// Rules that only count what tracking says of every packet.
const STATES: &str = "
*filter
-N STATES
-A INPUT -j STATES
-A FORWARD -j STATES
-A OUTPUT -j STATES
-A STATES -m conntrack --ctstate INVALID
-A STATES -m conntrack --ctstate NEW
-A STATES -m conntrack --ctstate ESTABLISHED --ctdir ORIGINAL
-A STATES -m conntrack --ctstate ESTABLISHED --ctdir REPLY
-A STATES -m conntrack --ctstate RELATED --ctdir ORIGINAL
-A STATES -m conntrack --ctstate RELATED --ctdir REPLY
-A STATES -m conntrack --ctstate UNTRACKED
-A STATES -m conntrack --ctstate SNAT
-A STATES -m conntrack --ctstate DNAT
-A STATES -m conntrack --ctstatus ASSURED
-A STATES -m conntrack --ctstatus SEEN_REPLY
-A STATES -m conntrack --ctstatus CONFIRMED
-A STATES -m conntrack --ctstatus NONE
COMMIT
";

/// [`STATES`] behind other tables.
fn with_states(rules: &str) -> String {
    format!("{rules}{STATES}")
}

fn all() -> Vec<Scenario> {
    [
        tcp::all(),
        segments::all(),
        datagrams::all(),
        icmp::all(),
        nat::all(),
        rules::all(),
        local::all(),
        packets::all(),
        remembered::all(),
        counted::all(),
    ]
    .concat()
}

/// Only those whose names contain this.
fn wanted(s: &Scenario) -> bool {
    std::env::var("HIBERNET_NETFILTER_ONLY").map_or(true, |only| s.name.contains(&only))
}

#[test]
fn scenarios() {
    let Some(mut kernel) = Kernel::new(0) else { return };
    let mut ours = Ours::default();
    let mut all = all();
    assert!(all.len() >= 60);
    all.retain(wanted);
    let mut wrong = Vec::new();
    for s in &all {
        if let Err(d) = run(s, &mut kernel, &mut ours) {
            wrong.push(d.to_string());
        }
    }
    assert!(wrong.is_empty(), "{} of {} scenarios differ:\n\n{}", wrong.len(), all.len(), wrong.join("\n"));
}
