//! Rules about sets, as they are written.

use crate::ipset::CounterTest;

/// Which parts of a packet a set is asked about: `src,dst,...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetDirs {
    /// How many, 1 to 6.
    pub count: u8,
    /// Which of them are `src`, as bits.
    pub src: u8,
}

impl SetDirs {
    /// Most of them.
    pub const MOST: u8 = 6;

    /// Whether one of them is `src`.
    pub const fn is_src(self, n: u8) -> bool {
        self.src & 1 << n != 0
    }
}

/// A set, and how a packet is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRef {
    /// Name of the set.
    pub name: String,
    /// Which parts of the packet.
    pub dirs: SetDirs,
}

/// `set`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetMatch {
    /// `!` stood before `--match-set`.
    pub not: bool,
    /// `--match-set`.
    pub set: SetRef,
    /// `--return-nomatch`.
    pub return_nomatch: bool,
    /// `! --update-counters`.
    pub no_counters: bool,
    /// `! --update-subcounters`.
    pub no_subcounters: bool,
    /// `--packets-eq`, `-lt`, `-gt`.
    pub packets: Option<CounterTest>,
    /// `--bytes-eq`, `-lt`, `-gt`.
    pub bytes: Option<CounterTest>,
}

/// `SET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetTarget {
    /// `--add-set`.
    pub add: Option<SetRef>,
    /// `--exist`.
    pub exist: bool,
    /// `--timeout`: seconds.
    pub timeout: Option<u32>,
    /// `--del-set`.
    pub del: Option<SetRef>,
}
