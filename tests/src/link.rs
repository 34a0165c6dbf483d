//! A link that keeps what is sent.

use hibernet_netstack::Time;
use hibernet_netstack::edge::{Gso, GsoKind, LinkInfo, TxChecksum, TxError};
use std::collections::VecDeque;

/// A frame as the stack handed it to a link, its checksum and segmentation possibly still to be done
/// (see [`crate::wire::complete`]).
#[derive(Clone, Debug)]
pub struct Captured {
    /// When.
    pub at: Time,
    /// Head and body.
    pub bytes: Vec<u8>,
    /// Checksum that the link is to complete.
    pub checksum: Option<TxChecksum>,
    /// Segmentation that the link is to do.
    pub gso: Option<Gso>,
}

/// A guest link's far end.
#[derive(Debug)]
pub struct FakeLink {
    /// What the stack was told of the link.
    pub info: LinkInfo,
    /// Frames for the guest, oldest first.
    pub sent: VecDeque<Captured>,
    /// Frames beyond this number are refused with [`TxError::Full`].
    pub capacity: usize,
    /// Answers to the next transmissions; used up before anything else is looked at.
    pub fail: VecDeque<TxError>,
    /// Refuses everything with [`TxError::Down`].
    pub down: bool,
    /// Transmissions refused so far.
    pub refused: u64,
}

impl FakeLink {
    /// A link that takes everything.
    pub fn new(info: LinkInfo) -> Self {
        FakeLink { info, sent: VecDeque::new(), capacity: usize::MAX, fail: VecDeque::new(), down: false, refused: 0 }
    }

    /// Takes a frame, or refuses it.
    ///
    /// # Panics
    /// If the frame asks for what the link cannot do.
    pub fn take(&mut self, frame: Captured) -> Result<(), TxError> {
        let why = match self.fail.pop_front() {
            Some(e) => Some(e),
            None if self.down => Some(TxError::Down),
            None if self.sent.len() >= self.capacity => Some(TxError::Full),
            None => None,
        };
        if let Some(e) = why {
            self.refused += 1;
            return Err(e);
        }
        self.check(&frame);
        self.sent.push_back(frame);
        Ok(())
    }

    fn check(&self, f: &Captured) {
        let ip_len = f.bytes.len().checked_sub(14).expect("a frame shorter than an Ethernet header");
        if let Some(c) = f.checksum {
            assert!(self.info.checksum, "the link completes no checksums");
            assert!(usize::from(c.start) + usize::from(c.offset) + 2 <= f.bytes.len(), "{c:?} lies outside of the frame");
        }
        match f.gso {
            None => assert!(ip_len <= usize::from(self.info.mtu), "a packet of {ip_len} bytes exceeds the MTU"),
            Some(gso) => {
                let able = match gso.kind {
                    GsoKind::Udp => self.info.uso,
                    GsoKind::Tcp4 => self.info.tso.carries(false),
                    GsoKind::Tcp6 => self.info.tso.carries(true),
                };
                assert!(able, "the link does not segment {gso:?}");
                assert!(f.checksum.is_some(), "segmentation needs checksum completion");
                assert!(gso.size > 0 && ip_len <= 65_575, "{gso:?} of {ip_len} bytes");
            }
        }
    }
}
