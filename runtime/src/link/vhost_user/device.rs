//! The device as the front end has set it up: features, memory, two queues.

use super::in_process::Vring;
use super::log::{DirtyLog, LogError};
use super::memory::{MAX_SLOTS, Memory, MemoryError};
use super::message::{Reply, Request, RingAddr, feature, protocol};
use super::queue::{Broken, MAX_SIZE, Queue};
use crate::link::poll::Poll;
use crate::sys::socket::set_nonblocking;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

/// Queues: the guest receives from the first and sends by the second.
pub const QUEUES: usize = 2;
/// Index of the queue from which the guest receives.
pub const TO_GUEST: usize = 0;
/// Index of the queue by which the guest sends.
pub const FROM_GUEST: usize = 1;

/// What we can do.
pub const OFFERED: u64 = feature::VERSION_1
    | feature::PROTOCOL_FEATURES
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::MTU
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::MRG_RXBUF
    | feature::LOG_ALL
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::GUEST_USO4
    | feature::GUEST_USO6
    | feature::HOST_USO;

/// What of the protocol we speak.
pub const PROTOCOL: u64 = protocol::LOG_SHMFD
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::NET_MTU
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::DEVICE_STATE;

/// Smallest MTU that a front end can ask for: what IPv4 needs (RFC 791).
const MIN_MTU: u64 = 68;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Features that were not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// Only two queues.
    #[error("there is no ring {0}: a device has {QUEUES}")]
    NoRing(u32),
    /// No size for a ring.
    #[error("a ring of {0} entries: it must be a power of two, at most {MAX_SIZE}")]
    Size(u32),
    /// Addresses that are in no region.
    #[error("{0:x?}: not in the memory that was given")]
    Address(RingAddr),
    /// A ring can only be served when it is said that there is something.
    #[error("ring {0} has no kick descriptor; polling is not supported")]
    Polled(u32),
    /// Not an eventfd.
    #[error("a descriptor for ring {0} is no eventfd")]
    NoEvent(u32),
    /// Nor that.
    #[error("the descriptor for word of the log is no eventfd")]
    NoLogEvent,
    /// The log of what is written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// No such MTU.
    #[error("an MTU of {0} is not from {MIN_MTU} to {1}")]
    Mtu(u64, u16),
    /// Memory that makes no sense.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel refused something.
    #[error("ring: {0}")]
    Os(#[from] io::Error),
}

/// A queue and what belongs to it.
#[derive(Debug, Default)]
pub struct Ring {
    /// Where it stands.
    pub queue: Queue,
    kick: Option<File>,
    call: Option<File>,
    error: Option<File>,
    enabled: bool,
    /// Started, and not used since.
    fresh: bool,
    /// It makes no sense, and waits for being set up anew.
    broken: bool,
    /// The guest was asked to kick, and nothing was taken since.
    pub wants_kicks: bool,
}

impl Ring {
    /// Whether buffers can be taken and given. A disabled one that is started is used only to throw frames away.
    pub fn is_running(&self) -> bool {
        self.kick.is_some() && !self.broken
    }

    /// Whether frames may go through it.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Takes the count of kicks away, so that the descriptor is readable only when there are new ones.
    pub fn take_kicks(&self) {
        if let Some(mut k) = self.kick.as_ref() {
            let _ = k.read(&mut [0; 8]);
        }
    }

    /// Interrupts the guest.
    pub fn call(&self) {
        signal(self.call.as_ref());
    }

    /// Stops a ring that makes no sense, until it is set up again.
    pub fn break_off(&mut self) {
        self.broken = true;
        signal(self.error.as_ref());
    }
}

fn signal(event: Option<&File>) {
    if let Some(mut e) = event {
        // Its counter at its limit is as good as one more.
        let _ = e.write(&1u64.to_ne_bytes());
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Device {
    /// What the guest uses of [`OFFERED`].
    pub features: u64,
    protocol: u64,
    /// The guest's memory.
    pub memory: Memory,
    /// [`TO_GUEST`] and [`FROM_GUEST`].
    pub rings: [Ring; QUEUES],
    /// What takes word of what was logged.
    log_event: Option<File>,
    /// Largest packet.
    pub mtu: u16,
    max_mtu: u16,
}

impl Device {
    /// As it is before a front end comes.
    pub fn new(max_mtu: u16) -> Device {
        Device {
            features: 0,
            protocol: 0,
            memory: Memory::default(),
            rings: Default::default(),
            log_event: None,
            mtu: max_mtu,
            max_mtu,
        }
    }

    /// Whether the guest uses all of these features.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Length of the virtio-net header.
    pub fn header_len(&self) -> usize {
        if self.features & (feature::VERSION_1 | feature::MRG_RXBUF) != 0 { 12 } else { 10 }
    }

    /// Forgets everything that a front end has set up.
    pub fn reset(&mut self, poll: &Poll) {
        for i in 0..QUEUES {
            self.stop(poll, i);
        }
        *self = Device::new(self.max_mtu);
    }

    fn index(&self, n: u32) -> Result<usize, DeviceError> {
        usize::try_from(n).ok().filter(|&i| i < QUEUES).ok_or(DeviceError::NoRing(n))
    }

    /// Stops a ring. What was negotiated, and where it stands, stays.
    fn stop(&mut self, poll: &Poll, i: usize) {
        let ring = &mut self.rings[i];
        if let Some(k) = ring.kick.take() {
            // The front end has it too, so that closing it here would not end it.
            poll.remove(k);
        }
        (ring.call, ring.error, ring.broken, ring.fresh, ring.wants_kicks) = (None, None, false, false, false);
    }

    /// Carries out a request. `word` is the event word of a ring's kicks. The answer, if the request has one of its own.
    pub fn handle(
        &mut self,
        code: u32,
        request: Request,
        mut fds: Vec<OwnedFd>,
        poll: &Poll,
        word: impl Fn(usize) -> u64,
    ) -> Result<Option<Reply>, DeviceError> {
        let number = |n| Ok(Some(Reply::number(code, n)));
        match request {
            Request::GetFeatures => return number(OFFERED),
            Request::SetFeatures(f) => self.set_features(f)?,
            Request::SetOwner | Request::SendRarp(_) => {}
            Request::GetProtocolFeatures => return number(PROTOCOL),
            Request::SetProtocolFeatures(f) if f & !PROTOCOL != 0 => return Err(DeviceError::Features(f & !PROTOCOL)),
            Request::SetProtocolFeatures(f) => self.protocol = f,
            Request::GetQueueNum => return number(1),
            Request::GetMaxMemSlots => return number(MAX_SLOTS as u64),
            Request::SetMemTable(regions) => self.memory.replace(&regions, fds)?,
            Request::SetLogBase(len, offset) => {
                if let Some(fd) = fds.pop() {
                    self.set_log(DirtyLog::map(fd, len, offset)?)?;
                }
                // Who shares a log waits for an answer to this.
                return number(0);
            }
            Request::SetLogFd => self.log_event = Some(event(fds.pop(), DeviceError::NoLogEvent)?),
            Request::AddMemReg(r) => {
                if let Some(fd) = fds.pop() {
                    self.memory.add(r, fd)?;
                }
            }
            Request::RemMemReg(r) => self.memory.remove(r)?,
            Request::ResetOwner | Request::ResetDevice => {
                for i in 0..QUEUES {
                    self.stop(poll, i);
                    self.rings[i].enabled = false;
                    self.rings[i].queue.reset();
                }
            }
            Request::SetVringNum(n, size) => {
                let i = self.index(n)?;
                self.rings[i].queue.size = ring_size(size)?;
            }
            Request::SetVringAddr(a) => self.set_addr(a)?,
            Request::SetVringBase(n, base) => {
                let i = self.index(n)?;
                self.rings[i].queue.next_avail = base as u16;
            }
            Request::GetVringBase(n) => {
                let i = self.index(n)?;
                self.stop(poll, i);
                return Ok(Some(Reply::ring(code, n, self.rings[i].queue.next_avail.into())));
            }
            Request::SetVringKick(n, false) => return Err(DeviceError::Polled(n)),
            Request::SetVringKick(n, true) => {
                let i = self.index(n)?;
                let kick = event(fds.pop(), DeviceError::NoEvent(n))?;
                let (call, error) = (self.rings[i].call.take(), self.rings[i].error.take());
                self.stop(poll, i);
                poll.add(&kick, word(i))?;
                let ring = &mut self.rings[i];
                (ring.kick, ring.call, ring.error, ring.fresh) = (Some(kick), call, error, true);
                // Without features of the protocol there is no request that enables it.
                ring.enabled |= !self.features & feature::PROTOCOL_FEATURES != 0;
            }
            Request::SetVringCall(n, some) => {
                let i = self.index(n)?;
                self.rings[i].call = if some { Some(event(fds.pop(), DeviceError::NoEvent(n))?) } else { None };
                // What it was to be told meanwhile.
                self.rings[i].call();
            }
            Request::SetVringErr(n, some) => {
                let i = self.index(n)?;
                self.rings[i].error = if some { Some(event(fds.pop(), DeviceError::NoEvent(n))?) } else { None };
            }
            Request::SetVringEnable(n, on) => {
                let i = self.index(n)?;
                self.rings[i].enabled = on;
            }
            Request::NetSetMtu(n) => {
                let valid = u16::try_from(n).ok().filter(|m| n >= MIN_MTU && *m <= self.max_mtu);
                self.mtu = valid.ok_or(DeviceError::Mtu(n, self.max_mtu))?;
            }
            // These are not the device's.
            Request::SetDeviceStateFd(_) | Request::CheckDeviceState | Request::Unknown => {}
        }
        Ok(None)
    }

    /// Begins to serve a queue, behind the last buffer of it that was given back. `word` is the event word of its kicks.
    pub fn take_vring(&mut self, i: usize, v: Vring, poll: &Poll, word: u64) -> Result<(), DeviceError> {
        let (kick, call) =
            (event(Some(v.kick), DeviceError::NoEvent(i as u32))?, event(Some(v.call), DeviceError::NoEvent(i as u32))?);
        let ring = &mut self.rings[i];
        let queue = &mut ring.queue;
        (queue.size, queue.desc, queue.avail, queue.used) = (ring_size(v.size.into())?, v.desc, v.avail, v.used);
        let addr = RingAddr { index: i as u32, desc: v.desc, avail: v.avail, used: v.used, log: None };
        queue.rings(&self.memory).and_then(|rings| queue.begin(&rings)).map_err(|_| DeviceError::Address(addr))?;
        poll.add(&kick, word)?;
        (ring.kick, ring.call, ring.enabled) = (Some(kick), Some(call), true);
        Ok(())
    }

    pub fn set_features(&mut self, f: u64) -> Result<(), DeviceError> {
        if f & !OFFERED != 0 {
            return Err(DeviceError::Features(f & !OFFERED));
        }
        self.features = f;
        self.memory.logging = f & feature::LOG_ALL != 0;
        for ring in &mut self.rings {
            ring.queue.event_idx = f & feature::EVENT_IDX != 0;
            ring.queue.indirect = f & feature::INDIRECT_DESC != 0;
        }
        Ok(())
    }

    fn set_addr(&mut self, a: RingAddr) -> Result<(), DeviceError> {
        let i = self.index(a.index)?;
        let at = |user| self.memory.guest_address(user).ok_or(DeviceError::Address(a));
        let (desc, avail, used) = (at(a.desc)?, at(a.avail)?, at(a.used)?);
        let queue = &mut self.rings[i].queue;
        if let (Some(log), Some(at)) = (self.memory.log(), a.log) {
            log.covers(at.saturating_add(queue.used_len() as u64))?;
        }
        (queue.desc, queue.avail, queue.used, queue.log) = (desc, avail, used, a.log);
        Ok(())
    }

    /// Logs into this from now on, if it has bits for all that is written to.
    fn set_log(&mut self, log: DirtyLog) -> Result<(), LogError> {
        for queue in self.rings.iter().map(|r| &r.queue) {
            log.covers(queue.log.map_or(0, |at| at.saturating_add(queue.used_len() as u64)))?;
        }
        self.memory.set_log(log)
    }

    /// Gives word of what was logged, to whoever wants it.
    pub fn tell_of_log(&self) {
        if self.memory.logging {
            signal(self.log_event.as_ref());
        }
    }

    /// Begins with a ring that was started: goes on where it stands. Asked before each use; `false` if it cannot be used.
    pub fn ready(&mut self, i: usize) -> bool {
        let ring = &mut self.rings[i];
        if !ring.is_running() {
            return false;
        }
        if ring.fresh {
            ring.fresh = false;
            let resumed: Result<(), Broken> = ring.queue.rings(&self.memory).and_then(|r| ring.queue.resume(&r));
            if resumed.is_err() {
                ring.break_off();
            }
        }
        ring.is_running()
    }

    /// Whether requests can ask for an acknowledgement.
    pub fn acknowledges(&self) -> bool {
        self.protocol & protocol::REPLY_ACK != 0
    }

    /// Whether its state can be saved or loaded: that was agreed on, and no ring runs.
    pub fn can_move(&self) -> bool {
        self.protocol & protocol::DEVICE_STATE != 0 && !self.rings.iter().any(Ring::is_running)
    }
}

fn ring_size(size: u32) -> Result<u16, DeviceError> {
    let valid = u16::try_from(size).ok().filter(|s| s.is_power_of_two() && *s <= MAX_SIZE);
    valid.ok_or(DeviceError::Size(size))
}

/// An eventfd, made non-blocking. Anything else could block us, or is not what it is for.
fn event(fd: Option<OwnedFd>, wrong: DeviceError) -> Result<File, DeviceError> {
    let Some(fd) = fd else { return Err(wrong) };
    // Anonymous files alone have no type; of those, only eventfds take and give eight bytes.
    let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
    if stat.st_mode & libc::S_IFMT != 0 {
        return Err(wrong);
    }
    set_nonblocking(&fd)?;
    Ok(File::from(fd))
}
