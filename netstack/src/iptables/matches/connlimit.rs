//! `connlimit`: how many connections there are of an address.

use super::Answer;
use super::hashlimit::bytes;
use crate::conntrack::{Status, tuple};
use crate::iptables::ConnlimitMatch;
use crate::iptables::connlimit::{Counted, Counting};
use crate::iptables::eval::{Env, conn_of};
use crate::iptables::named::Named;
use crate::skb::Skb;

/// What a rule counted.
#[derive(Debug)]
pub(in crate::iptables) struct Connlimit {
    pub(in crate::iptables) counted: Counted,
    dest: bool,
}

impl Connlimit {
    pub(super) fn new(m: &ConnlimitMatch, named: &Named) -> Connlimit {
        Connlimit { counted: Counted::new(*m, named.key), dest: m.dest }
    }

    pub(super) fn ask(&self, skb: &Skb<'_>, env: &Env<'_>) -> Answer {
        let (tuple, assured) = match conn_of(skb, env) {
            Some(conn) => (conn.tuples[0], conn.status.has(Status::ASSURED)),
            // What the packet itself would be, if it is not one of a connection's though that is there.
            None => match tuple::of(skb) {
                Some(t) => (t, env.ct.is_assured(env.now, &t)),
                None => return Answer::Broken,
            },
        };
        let addr = bytes(if self.dest { skb.dst } else { skb.src });
        self.counted.ask(&Counting { addr, tuple, assured }, env.ct, env.now)
    }
}
