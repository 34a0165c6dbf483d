//! A pair of queues, one for each direction, and all that it takes to serve it beside what the pairs of a device have in common. Pairs know nothing of each
//! other.

use super::device::{Common, FROM_GUEST, TO_GUEST};
use super::queue::{MAX_SIZE, Segment};
use super::ring::Ring;
use super::to_guest::Held;
use crate::link::LinkStats;
use crate::link::poll::Poll;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most pieces of buffers that one frame uses.
const SEGMENTS: usize = 2 * MAX_SIZE as usize;

/// See the module's documentation.
#[derive(Debug)]
pub struct Pair {
    /// Its number among the pairs of the device.
    pub number: usize,
    /// Where its kicks are heard.
    pub poll: Arc<Poll>,
    /// [`TO_GUEST`] and [`FROM_GUEST`].
    pub rings: [Ring; 2],
    /// Frames that wait for buffers of the guest's.
    pub(super) held: VecDeque<Held>,
    /// How many buffers there were when they were too few for the first frame that waits.
    pub(super) too_few: u16,
    /// Frames given to the guest since it was told.
    pub(super) untold: usize,
    pub(super) segments: Vec<Segment>,
    pub(super) chains: Vec<(u16, u32)>,
    /// Of what went through it.
    pub stats: LinkStats,
}

impl Pair {
    /// As it is before a front end comes.
    pub fn new(number: usize, poll: Arc<Poll>) -> Pair {
        Pair {
            number,
            poll,
            rings: Default::default(),
            held: VecDeque::new(),
            too_few: 0,
            untold: 0,
            segments: Vec::with_capacity(SEGMENTS),
            chains: Vec::with_capacity(usize::from(MAX_SIZE)),
            stats: LinkStats::default(),
        }
    }

    /// Whether the guest receives by it.
    pub fn receives(&self) -> bool {
        let ring = &self.rings[TO_GUEST];
        ring.is_running() && ring.enabled
    }

    /// Shows the guest what was taken from it, and tells it if it wants to know.
    pub fn tell_taken(&mut self, common: &Common) {
        self.rings[FROM_GUEST].tell(&common.memory);
        common.tell_of_log();
    }

    /// Tells the guest, if it wants to know, of what it was given since it was told last.
    pub fn tell_given(&mut self, common: &Common) {
        if self.untold > 0 {
            self.rings[TO_GUEST].tell(&common.memory);
            common.tell_of_log();
            self.untold = 0;
        }
    }
}
