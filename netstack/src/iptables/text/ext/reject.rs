//! `REJECT`.

use super::super::error::Fault;
use super::{Extension, Given, Scope, push, value};
use crate::iptables::{Family, RejectWith, Target};

pub(super) static REJECT: Extension<Target> =
    Extension { names: &["REJECT"], family: None, options: &[value(&["reject-with"])], build };

/// What can be told the sender: name, short name.
type Kind = (&'static str, &'static str, RejectWith);

const KINDS4: [Kind; 8] = [
    ("icmp-net-unreachable", "net-unreach", RejectWith::Icmp(0)),
    ("icmp-host-unreachable", "host-unreach", RejectWith::Icmp(1)),
    ("icmp-proto-unreachable", "proto-unreach", RejectWith::Icmp(2)),
    ("icmp-port-unreachable", "port-unreach", RejectWith::Icmp(3)),
    ("icmp-net-prohibited", "net-prohib", RejectWith::Icmp(9)),
    ("icmp-host-prohibited", "host-prohib", RejectWith::Icmp(10)),
    ("tcp-reset", "tcp-rst", RejectWith::TcpReset),
    ("icmp-admin-prohibited", "admin-prohib", RejectWith::Icmp(13)),
];

const KINDS6: [Kind; 7] = [
    ("icmp6-no-route", "no-route", RejectWith::Icmp6(0)),
    ("icmp6-adm-prohibited", "adm-prohibited", RejectWith::Icmp6(1)),
    ("icmp6-addr-unreachable", "addr-unreach", RejectWith::Icmp6(3)),
    ("icmp6-port-unreachable", "port-unreach", RejectWith::Icmp6(4)),
    ("tcp-reset", "tcp-reset", RejectWith::TcpReset),
    ("icmp6-policy-fail", "policy-fail", RejectWith::Icmp6(5)),
    ("icmp6-reject-route", "reject-route", RejectWith::Icmp6(6)),
];

/// A beginning of a name is enough; the first that fits is taken.
fn build(scope: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    let (kinds, usual): (&[Kind], _) = match scope.family {
        Family::V4 => (&KINDS4, RejectWith::Icmp(3)),
        Family::V6 => (&KINDS6, RejectWith::Icmp6(4)),
    };
    let with = given.read("reject-with", |word| {
        let text = word.as_str();
        let begins = |full: &str| full.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text));
        let found = kinds.iter().find(|k| !text.is_empty() && (begins(k.0) || begins(k.1)));
        found.map(|k| k.2).ok_or_else(|| {
            let names: Vec<_> = kinds.iter().map(|k| k.0).collect();
            word.bad(format!("one of {}", names.join(", ")))
        })
    })?;
    Ok(Target::Reject(with.unwrap_or(usual)))
}

pub(super) fn print(with: RejectWith, out: &mut String) {
    let name = KINDS4.iter().chain(&KINDS6).find(|k| k.2 == with).map_or("icmp-port-unreachable", |k| k.0);
    push(out, format_args!(" -j REJECT --reject-with {name}"));
}
