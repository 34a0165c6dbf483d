//! What a packet met on its way through chains.

use super::holds::Holds;

/// Sees what a packet meets.
pub(super) trait Witness {
    /// A test was asked, or a target worked; for which packets it would do the same.
    fn relied_on(&mut self, holds: Holds);
    /// A rule or policy counted the packet.
    fn counted(&mut self, rule: usize);
}

/// Nobody wants to know.
impl Witness for () {
    #[inline(always)]
    fn relied_on(&mut self, _: Holds) {}
    #[inline(always)]
    fn counted(&mut self, _: usize) {}
}

/// Rules that a kept trail has at most. To replay so many counters costs as much as to ask a few rules.
pub(super) const MAX_COUNTED: usize = 64;

/// A packet's trail: whether it is another packet's too, and what that one would count.
#[derive(Clone, Debug)]
pub(super) struct Trail {
    counted: [u32; MAX_COUNTED],
    len: usize,
    /// Something holds for this packet only, or it is too long.
    lost: bool,
    /// It depends on the source MAC address.
    pub(super) mac: bool,
    /// It depends on the connection mark, or may change it.
    pub(super) conn_mark: bool,
}

impl Trail {
    pub(super) const fn new() -> Self {
        Trail { counted: [0; MAX_COUNTED], len: 0, lost: false, mac: false, conn_mark: false }
    }

    /// Rules and policies that counted the packet; `None` if that is not to be repeated.
    pub(super) fn rules(&self) -> Option<&[u32]> {
        if self.lost { None } else { self.counted.get(..self.len) }
    }
}

impl Witness for Trail {
    fn relied_on(&mut self, holds: Holds) {
        match holds {
            Holds::Connection => {}
            Holds::Mac => self.mac = true,
            Holds::ConnMark => self.conn_mark = true,
            Holds::Packet => self.lost = true,
        }
    }

    fn counted(&mut self, rule: usize) {
        match (self.counted.get_mut(self.len), u32::try_from(rule)) {
            (Some(place), Ok(rule)) => {
                *place = rule;
                self.len += 1;
            }
            _ => self.lost = true,
        }
    }
}
