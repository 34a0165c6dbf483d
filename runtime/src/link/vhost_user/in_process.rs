//! The same device in the process of its monitor: guest memory and queues are handed in, and no message comes.

use super::device::{DeviceError, OFFERED};
use super::message::feature;
use super::{KICK, MAX_QUEUE_PAIRS, PairsLink, VhostUserLink};
use hibernet_netstack::wire::Mac;
use std::io;
use std::os::fd::OwnedFd;
use vm_memory::GuestMemoryMmap;

/// Features that a monitor can offer its guest's driver (virtio 1.3 sections 5.1.3 and 6). Its own, such as `VIRTIO_NET_F_MAC`, are no business of the link.
pub const FEATURES: u64 = OFFERED & !(feature::PROTOCOL_FEATURES | feature::LOG_ALL);

/// A queue as the guest's driver has set it up; addresses are the guest's.
///
/// Where it stands is in the guest's memory: buffers that were taken are given back before the link waits for anything, so that a queue always goes on behind
/// the last one. A monitor that saves its guest need save nothing else of it.
#[derive(Debug)]
pub struct Vring {
    /// Entries: a power of two, at most 1024.
    pub size: u16,
    /// Address of the descriptors.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
    /// An eventfd that is signalled when the guest kicks (KVM's `ioeventfd`).
    pub kick: OwnedFd,
    /// An eventfd whose signal interrupts the guest (KVM's `irqfd`).
    pub call: OwnedFd,
}

/// A network device of a guest whose driver is ready.
#[derive(Debug)]
pub struct Vrings {
    /// The guest's memory; shared, not copied.
    pub memory: GuestMemoryMmap,
    /// What the driver has accepted. Only what is in [`FEATURES`] counts.
    pub features: u64,
    /// Its pairs of queues that are in use, at least one and at most [`MAX_QUEUE_PAIRS`]. With several of them the monitor has offered `VIRTIO_NET_F_MQ` and a
    /// control queue, which is its own.
    pub pairs: Vec<VringPair>,
}

/// A queue for each direction.
#[derive(Debug)]
pub struct VringPair {
    /// From which the guest receives (`receiveq1` is the first).
    pub receive: Vring,
    /// By which it sends (`transmitq1` is the first).
    pub transmit: Vring,
}

impl VhostUserLink {
    /// Serves the queues of a guest in this process, until the link is stopped: to reset the device, stop it and make another. Packets are at most `mtu` bytes.
    ///
    /// # Errors
    /// `InvalidInput` for a number of pairs or a size that none can have, rings outside of the memory, and descriptors that are no eventfds; others if descriptors ran out.
    pub fn in_process(vrings: Vrings, mtu: u16, guest_mac: Option<Mac>) -> io::Result<VhostUserLink> {
        Ok(VhostUserLink::in_process_for(1, vrings, mtu, guest_mac)?.0)
    }

    /// The same for several workers, as [`VhostUserLink::shared_by`] leaves the pairs to them.
    ///
    /// # Errors
    /// As [`VhostUserLink::in_process`].
    pub fn in_process_for(
        workers: usize,
        vrings: Vrings,
        mtu: u16,
        guest_mac: Option<Mac>,
    ) -> io::Result<(VhostUserLink, Vec<PairsLink>)> {
        if !(1..=MAX_QUEUE_PAIRS).contains(&vrings.pairs.len()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, DeviceError::Pairs(vrings.pairs.len())));
        }
        let link = VhostUserLink::without_session(mtu, guest_mac)?.with_queue_pairs(vrings.pairs.len());
        let (mut link, others) = link.shared_by(workers)?;
        link.whole(|l| l.take_vrings(vrings)).map_err(|e| match e {
            DeviceError::Os(e) => e,
            e => io::Error::new(io::ErrorKind::InvalidInput, e),
        })?;
        Ok((link, others))
    }

    fn take_vrings(&mut self, vrings: Vrings) -> Result<(), DeviceError> {
        let Vrings { memory, features, pairs } = vrings;
        self.device.common.memory.share(memory);
        self.device.set_features(features & FEATURES)?;
        let all = pairs.into_iter().flat_map(|p| [p.receive, p.transmit]);
        for (n, vring) in (0u32..).zip(all) {
            self.device.take_vring(n, vring, KICK + u64::from(n))?;
        }
        self.look_at_rings();
        Ok(())
    }
}
