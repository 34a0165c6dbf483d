//! The receive ring of a packet socket: frames that the kernel writes into memory which it shares with us (`linux/if_packet.h`).
//!
//! Of the kernel's three layouts this is `TPACKET_V2`, a slot for each frame, since every frame wakes the reader. `TPACKET_V3` packs frames into blocks
//! but wakes nobody before a block is full or a timer has retired it, a millisecond at best. A frame that is longer than a slot is kept whole in the
//! socket's queue (`PACKET_COPY_THRESH`), in the order of the slots, so that slots can be small although super-segments come.

use super::socket::{set_option, set_option_bytes};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a slot: an Ethernet frame of 1500 bytes behind what the kernel puts before it.
pub const SLOT: usize = 2048;
/// Largest MTU whose frames fit into a slot, behind some hundred bytes of the kernel's.
pub const LARGEST_MTU: u32 = 1900;
/// Slots are allocated in blocks of so many bytes, contiguous in memory if that can be had.
const BLOCK: usize = 64 * 1024;
/// Most slots.
pub const MAX_SLOTS: u32 = 1 << 16;

/// What a virtio-net header takes, which the kernel puts right before a frame.
const VNET: usize = 10;

/// Not in the `libc` crate for every C library: from `linux/if_packet.h`.
const PACKET_RX_RING: libc::c_int = 5;
const PACKET_COPY_THRESH: libc::c_int = 7;
const PACKET_VERSION: libc::c_int = 10;
const TPACKET_V2: libc::c_int = 1;
const TP_STATUS_KERNEL: u32 = 0;
const TP_STATUS_USER: u32 = 1;
const TP_STATUS_COPY: u32 = 2;

/// `struct tpacket2_hdr`, with which a slot begins.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Header {
    status: u32,
    /// Length of the frame.
    len: u32,
    /// How much of it is in the slot.
    snaplen: u32,
    /// Where it begins.
    mac: u16,
    net: u16,
    sec: u32,
    nsec: u32,
    vlan: [u16; 2],
    padding: [u8; 4],
}

/// Gives a packet socket a ring of at least so many slots; returns how many it has. The memory, [`SLOT`] bytes for each, is the kernel's and is taken at once. The socket
/// has its virtio-net header already, and best is not bound yet: frames that wait are lost.
///
/// # Errors
/// `EBUSY` if there is one already; `ENOMEM`; `EINVAL` if the kernel knows no such ring.
pub fn install(fd: BorrowedFd<'_>, slots: u32) -> io::Result<u32> {
    let per_block = (BLOCK / SLOT) as u32;
    let blocks = slots.clamp(1, MAX_SLOTS).div_ceil(per_block);
    set_option(fd, libc::SOL_PACKET, PACKET_VERSION, TPACKET_V2)?;
    set_option(fd, libc::SOL_PACKET, PACKET_COPY_THRESH, 1)?;
    // `struct tpacket_req`: bytes of a block, blocks, bytes of a frame, frames.
    let request = [BLOCK as u32, blocks, SLOT as u32, blocks * per_block].map(u32::to_ne_bytes);
    set_option_bytes(fd, libc::SOL_PACKET, PACKET_RX_RING, request.as_flattened())?;
    Ok(blocks * per_block)
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A frame behind its virtio-net header, of so many bytes in all, to be had by [`PacketRing::copy`].
    Frame(usize),
    /// One longer than a slot: it is the next message of the socket.
    Message,
    /// One longer than a slot, for which the socket's queue had no room.
    Lost,
}

/// A mapped ring. Whoever else has the socket may have it mapped too, so that its content is believed as little as a guest's: what is read is
/// copied first, and lies within its slot whatever stands there.
#[derive(Debug)]
pub struct PacketRing {
    ptr: NonNull<u8>,
    slots: u32,
    /// The slot that the kernel fills next, or has filled and we have not taken. Unknown at first, since another may have taken frames before.
    next: Option<u32>,
    /// Where the frame of that slot begins, behind [`PacketRing::waiting`].
    frame: (usize, usize),
}

// SAFETY: the mapping is owned by this value alone, and nothing in it is tied to a thread.
unsafe impl Send for PacketRing {}

impl PacketRing {
    /// Maps the ring that [`install`] gave a socket. It lives as long as the socket; frames wait in it while nobody has it mapped.
    ///
    /// # Errors
    /// `EINVAL` if the socket has no ring of so many slots.
    pub fn map(fd: BorrowedFd<'_>, slots: u32) -> io::Result<PacketRing> {
        if slots == 0 || slots > MAX_SLOTS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (len, prot) = (slots as usize * SLOT, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory. Of a packet socket only the whole ring can be
        // mapped, so it does not shrink behind our back; as long as it is mapped the kernel refuses to change it.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ptr = NonNull::new(p.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(PacketRing { ptr, slots, next: None, frame: (0, 0) })
    }

    /// The number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    fn at(&self, slot: u32) -> NonNull<u8> {
        debug_assert!(slot < self.slots);
        // SAFETY: the slot is within the mapping, which is `slots * SLOT` bytes long: every caller has it from 0..slots.
        unsafe { self.ptr.add(slot as usize * SLOT) }
    }

    fn status(&self, slot: u32) -> &AtomicU32 {
        // SAFETY: a slot begins with its status, 32 bits, aligned since slots and the mapping are; it lives as long as the mapping, and whoever else
        // accesses it (the kernel) does so atomically.
        unsafe { AtomicU32::from_ptr(self.at(slot).as_ptr().add(offset_of!(Header, status)).cast()) }
    }

    fn is_ours(&self, slot: u32) -> bool {
        self.status(slot).load(Ordering::Acquire) & TP_STATUS_USER != 0
    }

    fn header(&self, slot: u32) -> Header {
        // SAFETY: within the slot, aligned, and plain old data of which any bits are valid. Volatile since others may write: it is read once.
        unsafe { self.at(slot).cast::<Header>().read_volatile() }
    }

    fn after(&self, slot: u32) -> u32 {
        (slot + 1) % self.slots
    }

    /// The oldest frame, after another reader has gone or before there was any. Frames lie one behind the other; only of a full ring the first must be found by
    /// its time.
    fn find(&self) -> Option<u32> {
        let ours = |slot: &u32| self.is_ours(*slot);
        let behind_free = |slot: &u32| !self.is_ours((slot + self.slots - 1) % self.slots);
        let oldest = |slot: &u32| {
            let h = self.header(*slot);
            (h.sec, h.nsec)
        };
        let mut all = (0..self.slots).filter(ours);
        all.clone().find(behind_free).or_else(|| all.next().and_then(|_| (0..self.slots).min_by_key(oldest)))
    }

    /// What waits; `None` if nothing does.
    pub fn waiting(&mut self) -> Option<Waiting> {
        let slot = match self.next {
            Some(slot) => slot,
            None => *self.next.insert(self.find()?),
        };
        let status = self.status(slot).load(Ordering::Acquire);
        if status & TP_STATUS_USER == 0 {
            return None;
        }
        if status & TP_STATUS_COPY != 0 {
            return Some(Waiting::Message);
        }
        let Header { len, snaplen, mac, .. } = self.header(slot);
        let (start, len, snaplen) = (usize::from(mac), len as usize, snaplen as usize);
        if len > snaplen || start < size_of::<Header>() + VNET || start + snaplen > SLOT {
            return Some(Waiting::Lost);
        }
        self.frame = (start - VNET, VNET + snaplen);
        Some(Waiting::Frame(VNET + snaplen))
    }

    /// Whether the slot so many behind the next holds a [`Waiting::Message`].
    pub fn is_message(&self, ahead: u32) -> bool {
        let Some(next) = self.next.filter(|_| ahead < self.slots) else { return false };
        let both = TP_STATUS_USER | TP_STATUS_COPY;
        self.status((next + ahead) % self.slots).load(Ordering::Acquire) & both == both
    }

    /// Copies the frame that waits, as far as `out` reaches; returns how many bytes.
    pub fn copy(&self, out: &mut [u8]) -> usize {
        let (start, len) = self.frame;
        let n = len.min(out.len());
        if let Some(slot) = self.next {
            // SAFETY: `start + len` was found to lie within a slot by `waiting`; `out` is `n` bytes long at least, and ours alone. Others could only
            // write into the source meanwhile, to which no reference is made, and bytes have no invalid value.
            unsafe { std::ptr::copy_nonoverlapping(self.at(slot).as_ptr().add(start), out.as_mut_ptr(), n) };
        }
        n
    }

    /// Gives the slot of what waits back to the kernel.
    pub fn release(&mut self) {
        if let Some(slot) = self.next {
            // Whatever was read of the slot was read before.
            self.status(slot).store(TP_STATUS_KERNEL, Ordering::Release);
            self.next = Some(self.after(slot));
        }
        self.frame = (0, 0);
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.slots as usize * SLOT) };
    }
}

const _: () = assert!(size_of::<Header>() == 32 && BLOCK.is_multiple_of(SLOT));

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    /// Memory that a ring could be, with these beginnings of slots.
    fn ring(slots: &[Vec<u8>]) -> (File, PacketRing) {
        let file = File::from(rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len((slots.len() * SLOT) as u64).unwrap();
        for (bytes, n) in slots.iter().zip(0..) {
            file.write_all_at(bytes, n * SLOT as u64).unwrap();
        }
        let ring = PacketRing::map(file.as_fd(), slots.len() as u32).unwrap();
        (file, ring)
    }

    fn header(status: u32, len: u32, snaplen: u32, mac: u16, sec: u32) -> Vec<u8> {
        let mut h = [status, len, snaplen].map(u32::to_ne_bytes).concat();
        h.extend([mac, 0].map(u16::to_ne_bytes).concat());
        h.extend([sec, 7].map(u32::to_ne_bytes).concat());
        h
    }

    /// Seconds of the frames that waited, in the order in which they are found; a frame's length is its time.
    fn order(ring: &mut PacketRing) -> Vec<usize> {
        let mut all = Vec::new();
        while let Some(Waiting::Frame(n)) = ring.waiting() {
            all.push(n - VNET);
            ring.release();
        }
        all
    }

    #[test]
    fn the_oldest_frame_is_found() {
        let frame = |sec: u32| header(TP_STATUS_USER, sec, sec, 100, sec);
        let free = || header(0, 5, 5, 100, 5);
        let cases = [
            (vec![free(), free(), free()], vec![]),
            (vec![free(), frame(20), frame(21)], vec![20, 21]),
            (vec![frame(31), free(), frame(30)], vec![30, 31]),
            (vec![frame(42), frame(40), frame(41)], vec![40, 41, 42]),
            (vec![frame(50), frame(51), frame(52)], vec![50, 51, 52]),
            (vec![frame(60)], vec![60]),
        ];
        for (slots, expected) in cases {
            let (_, mut ring) = ring(&slots);
            assert_eq!(order(&mut ring), expected);
            assert_eq!(ring.waiting(), None);
        }
    }

    #[test]
    fn what_comes_after_nothing_waited_is_found_wherever_it_is() {
        let (file, mut ring) = ring(&vec![Vec::new(); 8]);
        assert_eq!(ring.waiting(), None);
        file.write_all_at(&header(TP_STATUS_USER, 60, 60, 100, 1), 5 * SLOT as u64).unwrap();
        file.write_all_at(&[9; 70], 5 * SLOT as u64 + 90).unwrap();
        assert_eq!(ring.waiting(), Some(Waiting::Frame(70)));
        let mut out = [0; 100];
        assert_eq!((ring.copy(&mut out), out[..70] == [9; 70], out[70]), (70, true, 0));
        assert_eq!(ring.copy(&mut out[..3]), 3);
        ring.release();
        assert_eq!((ring.waiting(), ring.copy(&mut out)), (None, 0));
    }

    #[test]
    fn long_frames_are_told_apart() {
        let both = TP_STATUS_USER | TP_STATUS_COPY;
        let long = |status| header(status, 9000, 1900, 82, 1);
        let (_, mut ring) = ring(&[long(both), long(both), long(TP_STATUS_USER), header(0, 0, 0, 0, 0)]);
        assert_eq!(ring.waiting(), Some(Waiting::Message));
        assert_eq!([0, 1, 2, 3, 4, u32::MAX].map(|n| ring.is_message(n)), [true, true, false, false, false, false]);
        ring.release();
        assert_eq!(ring.waiting(), Some(Waiting::Message));
        ring.release();
        assert_eq!(ring.waiting(), Some(Waiting::Lost));
    }

    proptest! {
        #[test]
        fn nothing_is_believed(slots in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..6)) {
            let (_, mut ring) = ring(&slots);
            let mut out = [0; SLOT];
            for _ in 0..2 * slots.len() {
                let waits = ring.waiting();
                if let Some(Waiting::Frame(n)) = waits {
                    prop_assert!(n <= SLOT - size_of::<Header>());
                    prop_assert_eq!(ring.copy(&mut out), n);
                }
                ring.is_message(1);
                ring.release();
            }
            prop_assert_eq!(ring.waiting(), None, "each was released");
        }
    }
}
