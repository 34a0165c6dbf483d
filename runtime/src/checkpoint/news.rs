//! What is waited for while a network sleeps: what each held socket is, and what would be news on it.

use super::report::Flow;
use hibernet_netstack::Stack;
use hibernet_netstack::edge::{SockId, TokenKind};
use hibernet_netstack::state::FlowInfo;
use hibernet_netstack::tuple::Endpoint;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What happens to a sleeping network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// Something came for a flow: data, the peer's end, a reset, an error, or the connection that the guest asked for.
    Readable,
    /// A client connected to a published TCP port.
    Accept,
    /// A datagram came to a published UDP port.
    Udp,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Event::Readable => "readable",
            Event::Accept => "accept",
            Event::Udp => "udp",
        })
    }
}

/// What a held socket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// A flow's.
    Flow(Flow),
    /// A published TCP port's, bound to this.
    Tcp(Endpoint),
    /// A published UDP port's, bound to this.
    Udp(Endpoint),
    /// Of a question of the guest's to a resolver.
    Query,
}

impl Subject {
    /// What happens when it is ready.
    pub(crate) fn event(&self) -> Event {
        match self {
            Subject::Flow(_) | Subject::Query => Event::Readable,
            Subject::Tcp(_) => Event::Accept,
            Subject::Udp(_) => Event::Udp,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Flow(flow) => flow.fmt(f),
            Subject::Tcp(at) => write!(f, "tcp {at} (published)"),
            Subject::Udp(at) => write!(f, "udp {at} (published)"),
            Subject::Query => f.write_str("dns query"),
        }
    }
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// What.
    pub event: Event,
    /// To whom.
    pub subject: Subject,
}

/// What counts as news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Interest {
    /// Something to read, or an end.
    Data,
    /// As [`Interest::Data`], or that the connect has come to an end.
    Connect,
    /// Only an error: nothing more can come, and what came the guest has.
    Error,
}

/// A held socket, for whoever watches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watched {
    /// Its handle.
    pub(crate) sock: u32,
    /// What it is.
    pub(crate) subject: Subject,
    /// What counts.
    pub(crate) interest: Interest,
}

impl Watched {
    /// Every socket of a frozen stack.
    pub(crate) fn of(stack: &Stack) -> Vec<Watched> {
        let flows = stack.flows().filter(|f| !f.shared_socket);
        let ports = stack.udp_listeners().map(|(_, sock, at)| Watched::new(sock, Subject::Udp(at), Interest::Data));
        let queries = stack.service_sockets().filter(|(token, _)| token.kind() == TokenKind::Dns);
        flows
            .map(|f| Watched::new(f.sock, Subject::Flow(Flow::from(&f)), interest(&f)))
            .chain(ports)
            .chain(queries.map(|(_, sock)| Watched::new(sock, Subject::Query, Interest::Data)))
            .collect()
    }

    fn new(sock: SockId, subject: Subject, interest: Interest) -> Watched {
        Watched { sock: sock.0, subject, interest }
    }
}

fn interest(flow: &FlowInfo) -> Interest {
    match flow.tcp {
        Some(t) if !t.connected => Interest::Connect,
        // Such a socket is readable for good.
        Some(t) if t.end_acknowledged => Interest::Error,
        _ => Interest::Data,
    }
}
