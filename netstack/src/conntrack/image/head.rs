//! What an image says of the table besides its connections.

use super::Family;
use crate::conntrack::slot::MAX_SLOTS;
use crate::conntrack::stats::CtCounters;
use crate::edge::Token;
use crate::time::Time;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Of the table as a whole. All its fields are checked when it is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Records of IPv4 connections.
    pub v4: u32,
    /// Records of IPv6 connections.
    pub v6: u32,
    /// Slots that were ever used are below.
    pub slots: u32,
    /// Generation from which empty slots go on, even: no handle of a connection that is gone is newer.
    pub generation: u32,
    /// Connections whose source is translated were numbered up to this, modulo 2^32.
    pub numbered: u32,
    /// What was counted.
    pub counters: CtCounters,
    /// Where the reaper stands.
    pub reaper: Reaping,
    /// Connections that are over (slot and generation), the first to be removed first.
    pub condemned: Vec<(u32, u32)>,
    /// Flows whose connection is gone and that were not told ([`Token::bits`]).
    pub closed: Vec<u64>,
}

/// Where the reaper stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaping {
    /// When its next step is due, in stack time; `None` if it was never needed.
    pub due: Option<Time>,
    /// Next slot.
    pub cursor: u32,
    /// Slots left of the run.
    pub left: u32,
    /// Connections that the run came by.
    pub passed: u32,
    /// Those of them that had timed out.
    pub expired: u32,
    /// Last interval between runs.
    pub interval: Duration,
    /// Slots left of the turn in which room is made.
    pub pressure: u32,
    /// The table was full and nothing could go since the last step.
    pub pressed: bool,
    /// Where the next search for one connection that timed out begins; any number.
    pub search: u32,
}

/// What is wrong with a [`Head`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// More connections than slots, or than there can be.
    #[error("{conns} connections in {slots} slots")]
    Slots {
        /// Connections.
        conns: u64,
        /// Slots.
        slots: u32,
    },
    /// An odd generation, or one without slots.
    #[error("generation {0} of empty slots")]
    Generation(u32),
    /// The reaper's place is beyond the end, its counts or its times cannot be.
    #[error("the reaper cannot stand there")]
    Reaper,
    /// Connections, and no reaper that would ever come.
    #[error("connections without a reaper")]
    NoReaper,
    /// More connections that are over than are kept, or handles that no connection has.
    #[error("list of connections that are over")]
    Condemned,
    /// A connection is on the list of those that are over, and is not.
    #[error("the connection in slot {0} is not over")]
    Alive(u32),
    /// A flow of no kind.
    #[error("flow {0:#x} of no kind")]
    Closed(u64),
}

impl Head {
    /// How many records there are of a family.
    #[must_use]
    pub const fn count(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Connections of both families.
    #[must_use]
    pub const fn conns(&self) -> u64 {
        self.v4 as u64 + self.v6 as u64
    }

    pub(super) fn check(&self, now: Time) -> Result<(), HeadError> {
        let (conns, slots) = (self.conns(), self.slots);
        if conns > slots.into() || slots > MAX_SLOTS {
            return Err(HeadError::Slots { conns, slots });
        }
        if self.generation & 1 == 1 || slots == 0 && self.generation != 0 {
            return Err(HeadError::Generation(self.generation));
        }
        self.reaper.check(slots, now)?;
        if conns > 0 && self.reaper.due.is_none() {
            return Err(HeadError::NoReaper);
        }
        let handles = self.condemned.iter().all(|&(index, generation)| index < slots && generation & 1 == 1);
        if !handles || self.condemned.len() > crate::conntrack::sync::IN_FLIGHT {
            return Err(HeadError::Condemned);
        }
        match self.closed.iter().find(|&&bits| Token::from_bits(bits).is_none()) {
            Some(&bits) => Err(HeadError::Closed(bits)),
            None => Ok(()),
        }
    }
}
