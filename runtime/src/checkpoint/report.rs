//! What is told about a freeze and a thaw.

use hibernet_netstack::edge::TokenKind;
use hibernet_netstack::state::FlowInfo;
use hibernet_netstack::tuple::Endpoint;
use hibernet_snapshot::GenerationId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a flow's host socket survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Its descriptor is held, or handed over: nothing is lost.
    Hold,
    /// What the kernel knows of it is in the image (`TCP_REPAIR`), or it is opened anew with the same addresses (UDP, ping).
    Repair,
    /// It does not: the guest gets a reset on thaw.
    Reset,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Hold => "hold",
            Tier::Repair => "repair",
            Tier::Reset => "reset",
        })
    }
}

/// A flow, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `icmp`.
    pub kind: FlowKind,
    /// The guest's end, as translated.
    pub guest: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// Somebody outside opened it.
    pub inbound: bool,
    /// For TCP: how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
}

/// Kinds of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowKind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo.
    Icmp,
}

impl From<&FlowInfo> for Flow {
    fn from(f: &FlowInfo) -> Flow {
        let kind = match f.token.kind() {
            TokenKind::Tcp => FlowKind::Tcp,
            TokenKind::Icmp => FlowKind::Icmp,
            _ => FlowKind::Udp,
        };
        let stage = f.tcp.map(|t| {
            let stage = match (t.connected, t.established) {
                _ if t.reset_by_host => "reset by the peer",
                (false, _) => "connecting",
                (true, false) => "opening",
                (true, true) => match (t.closed_by_guest, t.closed_by_host) {
                    (false, false) => "established",
                    (true, false) => "closed by the guest",
                    (false, true) => "closed by the peer",
                    (true, true) => "closing",
                },
            };
            stage.to_owned()
        });
        Flow { kind, guest: f.tuple.src, remote: f.tuple.dst, inbound: f.inbound, stage }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FlowKind::Tcp => "tcp",
            FlowKind::Udp => "udp",
            FlowKind::Icmp => "icmp",
        };
        let way = if self.inbound { "<-" } else { "->" };
        write!(f, "{kind} {} {way} {}", self.guest, self.remote)?;
        self.stage.as_ref().map_or(Ok(()), |s| write!(f, " ({s})"))
    }
}

/// Which tier a flow will take, or took, and why if it is not the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTier {
    /// The flow.
    #[serde(flatten)]
    pub flow: Flow,
    /// The tier.
    pub tier: Tier,
    /// Why it is not a better one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How long a freeze took, in nanoseconds by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeTimes {
    /// Until nothing was in progress any more: what was put off was sent, the reaper stopped.
    pub quiesce_ns: u64,
    /// Copying the connections that changed since the last round.
    pub connections_ns: u64,
    /// The rest of the stack.
    pub stack_ns: u64,
    /// Asking the host sockets.
    pub sockets_ns: u64,
    /// Connections that were copied in the freeze.
    pub connections_copied: u32,
    /// Rounds of copying before it.
    pub rounds: u32,
}

impl FreezeTimes {
    /// All phases.
    pub fn total_ns(&self) -> u64 {
        self.quiesce_ns + self.connections_ns + self.stack_ns + self.sockets_ns
    }
}

/// What a freeze came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeReport {
    /// Its identity, in hexadecimal.
    pub generation: String,
    /// Durations.
    pub times: FreezeTimes,
    /// Tracked connections.
    pub connections: u64,
    /// Every flow.
    pub flows: Vec<FlowTier>,
}

/// What became of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It goes on.
    Resumed,
    /// It was ended, TCP with a reset to the guest.
    Reset,
    /// It was left out: there is nobody who would notice.
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Resumed => "resumed",
            Outcome::Reset => "reset",
            Outcome::Skipped => "skipped",
        })
    }
}

/// What became of a flow, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowOutcome {
    /// The flow.
    #[serde(flatten)]
    pub flow: Flow,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, unless it was resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a thaw came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThawReport {
    /// Which freeze it was of, in hexadecimal.
    pub generation: String,
    /// Tracked connections that were loaded.
    pub connections: u64,
    /// How long it took, nanoseconds.
    pub took_ns: u64,
    /// Every flow of the image.
    pub flows: Vec<FlowOutcome>,
}

impl ThawReport {
    /// How many flows came to an outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.flows.iter().filter(|f| f.outcome == outcome).count()
    }
}

/// A generation in hexadecimal.
pub fn generation_text(id: &GenerationId) -> String {
    id.0.iter().map(|b| format!("{b:02x}")).collect()
}
