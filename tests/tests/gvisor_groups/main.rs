//! The behaviour groups of gVisor's iptables suites (`gvisor.md` sections 4.1 and 4.3), through a whole stack, IPv4 and IPv6:
//! what a packet's sender and receiver see of rules.
//!
//! What needs no stack is tested on rules alone (`netstack/tests/rules/gvisor.rs`: owner, listing, refused rules, jumps), on bytes
//! (`netstack/src/nat/tests`) or on tracking alone (`netstack/tests/protocols`).

mod errors;
mod filter;
mod fragments;
mod invalid;
mod nat;
mod ports;
mod reject;
mod tables;

/// Lines of one table.
fn table(name: &str, lines: &[&str]) -> String {
    format!("*{name}\n{}\nCOMMIT\n", lines.join("\n"))
}
