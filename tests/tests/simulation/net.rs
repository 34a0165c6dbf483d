//! The bad link.

use crate::plan::Faults;
use hibernet_netstack::Time;
use hibernet_netstack::edge::Gso;
use hibernet_tests::SplitMix;
use std::collections::BTreeMap;

/// A frame on its way.
#[derive(Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// Set on super-segments, whose checksum was not computed either.
    pub gso: Option<Gso>,
}

/// One direction of the link.
#[derive(Debug)]
pub struct Wire {
    faults: Faults,
    rng: SplitMix,
    /// By time of arrival and order of sending.
    flying: BTreeMap<(Time, u64), Frame>,
    sent: u64,
    blackout: Option<(Time, Time)>,
    pub lost: u64,
}

impl Wire {
    pub fn new(faults: Faults, start: Time, rng: SplitMix) -> Self {
        let blackout = faults.blackout.map(|(from, to)| (start + from, start + to));
        Wire { faults, rng, flying: BTreeMap::new(), sent: 0, blackout, lost: 0 }
    }

    /// Sends a frame; tells how many copies of it will arrive.
    pub fn send(&mut self, now: Time, frame: Frame) -> u64 {
        let dark = self.blackout.is_some_and(|(from, to)| from <= now && now < to);
        if self.rng.chance(self.faults.loss) || dark {
            self.lost += 1;
            return 0;
        }
        let copies = 1 + u64::from(self.rng.chance(self.faults.duplication));
        for _ in 0..copies {
            // Late by up to five times the delay: overtaken by what was sent after it.
            let late = if self.rng.chance(self.faults.reordering) { self.rng.range(1, 5) as u32 } else { 0 };
            self.sent += 1;
            self.flying.insert((now + self.faults.delay * (1 + late), self.sent), frame.clone());
        }
        copies
    }

    /// Next frame that has arrived.
    pub fn arrived(&mut self, now: Time) -> Option<Frame> {
        let first = self.flying.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// When the next one arrives.
    pub fn next(&self) -> Option<Time> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }
}
