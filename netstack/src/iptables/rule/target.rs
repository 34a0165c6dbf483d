//! Targets as values; those that change or log packets are beside.

use super::{Alter, LogTarget, Net, NflogTarget, SetTarget};
use crate::nat::NatRange;

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Target {
    /// No `-j`: counts, and the next rule is asked.
    #[default]
    None,
    /// The packet goes on to the next table.
    Accept,
    /// It ends here.
    Drop,
    /// Back to the calling chain, or to the policy.
    Return,
    /// `-j` to a user's chain.
    Jump(String),
    /// `-g` to a user's chain: returns to where the present one would.
    Goto(String),
    /// Drops, and tells the sender.
    Reject(RejectWith),
    /// Logs, and goes on.
    Log(Box<LogTarget>),
    /// Translates the destination.
    Dnat(NatRange),
    /// Translates the source.
    Snat(NatRange),
    /// Translates the source to the address of the interface.
    Masquerade(NatRange),
    /// Translates the destination to ourselves.
    Redirect(NatRange),
    /// Maps one net to another, host bits kept; source or destination by the hook.
    Netmap(Net),
    /// `MARK`: `mark = (mark & !mask) ^ value`.
    Mark {
        /// Bits to flip.
        value: u32,
        /// Bits to clear before.
        mask: u32,
    },
    /// `CONNMARK`.
    Connmark(Connmark),
    /// `CT`, and `NOTRACK`.
    Ct(CtTarget),
    /// `TTL`, `HL`, `TOS`, `DSCP`, `TCPMSS`, `CHECKSUM`.
    Alter(Alter),
    /// `NFLOG`.
    Nflog(Box<NflogTarget>),
    /// `TRACE`: the packet's way is recorded from here on.
    Trace,
    /// `SET`.
    Set(Box<SetTarget>),
}

/// How `REJECT` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectWith {
    /// IPv4: code of an ICMP destination-unreachable: 0 net, 1 host, 2 proto, 3 port, 9 net-prohibited, 10 host-prohibited, 13 admin-prohibited.
    Icmp(u8),
    /// IPv6: code of an ICMPv6 destination-unreachable: 0 no-route, 1 adm-prohibited, 3 addr, 4 port, 5 policy-fail, 6 reject-route.
    Icmp6(u8),
    /// TCP RST.
    TcpReset,
}

/// `CONNMARK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connmark {
    /// `--set-xmark value/mask`.
    Set {
        /// Bits to flip.
        value: u32,
        /// Bits to clear before.
        mask: u32,
    },
    /// `--save-mark`: connection's from packet's.
    Save {
        /// `--nfmask`.
        nfmask: u32,
        /// `--ctmask`.
        ctmask: u32,
    },
    /// `--restore-mark`: packet's from connection's.
    Restore {
        /// `--nfmask`.
        nfmask: u32,
        /// `--ctmask`.
        ctmask: u32,
    },
}

/// `CT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CtTarget {
    /// `--notrack`.
    pub notrack: bool,
    /// It is written `-j NOTRACK`, which means the same as `-j CT --notrack`.
    pub alias: bool,
    /// `--zone`, and in which directions it holds.
    pub zone: Option<(u16, ZoneDir)>,
}

/// Directions in which a zone holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneDir {
    /// `--zone`.
    Both,
    /// `--zone-orig`.
    Original,
    /// `--zone-reply`.
    Reply,
}
