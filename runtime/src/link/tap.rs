//! TAP interfaces.

use super::vnet::{self, BadHeader};
use super::{Link, LinkError, LinkStats, Received, RxBatch, check_size, release};
use crate::slots::{SLOT_SIZE, Slots};
use crate::sys::tun::Tun;
use hibernet_netstack::edge::{LinkInfo, Payload, TxError, TxFrame};
use hibernet_netstack::wire::{Mac, ethernet};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes of a connection that may be on their way from the guest. A TAP's queue takes a thousand frames of any size, so a
/// burst is not lost in it; with less, whole segments of a large MTU leave the guest waiting, with more nothing is gained.
const IN_FLIGHT: u32 = 1024 * 1024;

/// A queue of a TAP. One frame per call: there is no system call for several, and the first is best processed while it is in the cache.
#[derive(Debug)]
pub struct TapLink {
    queue: File,
    info: LinkInfo,
    stats: LinkStats,
    stopped: bool,
}

impl TapLink {
    /// Over an open queue. `guest_mac`: the guest's address if it is known; that of the TAP itself (`tun.mac`) when the guest is the
    /// network namespace that it is in.
    pub fn new(tun: Tun, guest_mac: Option<Mac>) -> TapLink {
        let info = LinkInfo {
            mtu: tun.mtu.min(65_535) as u16,
            checksum: tun.offloads.checksum,
            tso: tun.offloads.tso.into(),
            uso: tun.offloads.uso,
            guest_mac,
            in_flight: IN_FLIGHT,
        };
        TapLink { queue: File::from(tun.fd), info, stats: LinkStats::default(), stopped: false }
    }

    /// Judges what stands in a slot: `n` bytes, virtio-net header first.
    fn accept(&mut self, slots: &Slots, slot: u32, n: usize) -> Option<Received> {
        let len = n.saturating_sub(vnet::LEN);
        if n >= SLOT_SIZE {
            self.stats.rx_too_long += 1;
            return None;
        }
        if len < ethernet::HEADER_LEN {
            self.stats.rx_too_short += 1;
            return None;
        }
        let header = slots.bytes(Payload { slot, offset: 0, len: vnet::LEN as u32 }).first_chunk()?;
        match vnet::decode(header, len) {
            Ok((checksum, gso)) => {
                self.stats.received(len);
                let frame = Payload { slot, offset: vnet::LEN as u32, len: len as u32 };
                Some(Received { slot, frame, checksum, gso })
            }
            Err(BadHeader) => {
                self.stats.rx_bad_header += 1;
                None
            }
        }
    }

    fn receive_error(&mut self, e: io::Error) -> Result<(), LinkError> {
        match (e.kind(), e.raw_os_error()) {
            (ErrorKind::WouldBlock | ErrorKind::Interrupted, _) => Ok(()),
            // The interface was deleted: the descriptor hangs in the air.
            (_, Some(libc::EBADFD | libc::EIO | libc::ENODEV | libc::ENXIO)) => Err(LinkError::Closed),
            _ => {
                self.stats.rx_errors += 1;
                Err(LinkError::Io(e))
            }
        }
    }

    fn write(&mut self, slots: &Slots, frame: &TxFrame<'_>) -> Result<usize, TxError> {
        if self.stopped {
            return Err(self.stats.refused(TxError::Down));
        }
        let header = check_size(&self.info, frame).and_then(|()| vnet::encode(frame)).map_err(|e| self.stats.refused(e))?;
        let body = slots.bytes(frame.body);
        let parts = [IoSlice::new(&header), IoSlice::new(frame.head), IoSlice::new(body)];
        loop {
            match self.queue.write_vectored(&parts) {
                Ok(_) => return Ok(frame.head.len() + body.len()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.stats.failed(&e)),
            }
        }
    }
}

impl Link for TapLink {
    fn info(&self) -> LinkInfo {
        self.info
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        if self.stopped {
            return Err(LinkError::Closed);
        }
        if out.room() == 0 {
            return Ok(());
        }
        let Some(slot) = slots.take() else {
            // The kernel throws away what does not fit, so that the frames behind it come through when slots are free again.
            return match self.queue.read(&mut [0; vnet::LEN]) {
                Ok(_) => {
                    self.stats.rx_no_slot += 1;
                    Ok(())
                }
                Err(e) => self.receive_error(e),
            };
        };
        let result = match self.queue.read(slots.slot_mut(slot)) {
            Ok(n) => Ok(self.accept(slots, slot, n)),
            Err(e) => self.receive_error(e).map(|()| None),
        };
        match result {
            Ok(Some(r)) if out.push(r).is_ok() => Ok(()),
            other => {
                slots.give(slot);
                other.map(drop)
            }
        }
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        let sent = self.write(slots, &frame);
        release(slots, &frame);
        self.stats.sent(sent?);
        Ok(())
    }

    fn flush(&mut self, _slots: &mut Slots) -> Result<(), LinkError> {
        Ok(())
    }

    fn stop(&mut self, _slots: &mut Slots) {
        self.stopped = true;
    }

    fn stats(&self) -> LinkStats {
        self.stats
    }
}
