//! Which MAC address a guest address has.

use crate::wire::Mac;
use core::net::IpAddr;

/// Entries per link; beyond that the oldest goes.
const MAX: usize = 64;

/// The neighbours of a link, learned from the frames they send.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    entries: Vec<(IpAddr, Mac)>,
    last: Option<Mac>,
}

impl Neighbours {
    /// Starts from the guest's MAC address, if known beforehand.
    pub(crate) fn new(guest: Option<Mac>) -> Self {
        Neighbours { entries: Vec::new(), last: guest }
    }

    /// Notes that `addr` sent from `mac`.
    pub(crate) fn learn(&mut self, addr: IpAddr, mac: Mac) {
        if !mac.is_unicast() {
            return;
        }
        self.last = Some(mac);
        match self.entries.iter_mut().find(|(a, _)| *a == addr) {
            Some(entry) => entry.1 = mac,
            None => {
                if self.entries.len() == MAX {
                    self.entries.remove(0);
                }
                self.entries.push((addr, mac));
            }
        }
    }

    /// Whether `addr` was seen on the link.
    pub(crate) fn knows(&self, addr: IpAddr) -> bool {
        self.entries.iter().any(|(a, _)| *a == addr)
    }

    /// MAC address of `addr`: as learned, else the one seen last on the link, which with one guest is right.
    pub(crate) fn lookup(&self, addr: IpAddr) -> Option<Mac> {
        self.learned(addr).or(self.last)
    }

    /// What was learned, the oldest first.
    pub(crate) fn entries(&self) -> &[(IpAddr, Mac)] {
        &self.entries
    }

    /// The MAC address seen last.
    pub(crate) fn last(&self) -> Option<Mac> {
        self.last
    }

    /// Takes over what was learned before; `None` if that is more than is kept.
    pub(crate) fn restore(&mut self, entries: Vec<(IpAddr, Mac)>, last: Option<Mac>) -> Option<()> {
        if entries.len() > MAX {
            return None;
        }
        self.entries = entries;
        self.last = last.or(self.last);
        Some(())
    }

    /// MAC address of `addr` as learned.
    pub(crate) fn learned(&self, addr: IpAddr) -> Option<Mac> {
        self.entries.iter().find(|(a, _)| *a == addr).map(|(_, m)| *m)
    }
}
