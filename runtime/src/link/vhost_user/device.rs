//! The device as the front end has set it up: features, memory, queues.

use super::MAX_QUEUE_PAIRS;
use super::in_process::Vring;
use super::inflight::InflightError;
use super::log::{DirtyLog, LogError};
use super::memory::{MAX_SLOTS, Memory, MemoryError};
use super::message::{Reply, Request, RingAddr, feature, protocol};
use super::pair::Pair;
use super::queue::MAX_SIZE;
use super::ring::{Ring, event, signal};
use super::steering::Steering;
use crate::link::poll::Poll;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Of the two queues of a pair, the one from which the guest receives.
pub const TO_GUEST: usize = 0;
/// And the one by which it sends.
pub const FROM_GUEST: usize = 1;

/// What we can do; with several pairs of queues also [`feature::MQ`].
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

/// What of the protocol we speak; with several pairs of queues also [`protocol::MQ`].
pub const PROTOCOL: u64 = protocol::LOG_SHMFD
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::NET_MTU
    | protocol::INFLIGHT_SHMFD
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
    /// Fewer queues.
    #[error("there is no ring {0}: the device has {1}")]
    NoRing(u32, usize),
    /// No size for a ring.
    #[error("a ring of {0} entries: it must be a power of two, at most {MAX_SIZE}")]
    Size(u32),
    /// No number of pairs.
    #[error("{0} pairs of queues: there are from 1 to {MAX_QUEUE_PAIRS}")]
    Pairs(usize),
    /// Addresses that are in no region.
    #[error("{0:x?}: not in the memory that was given")]
    Address(RingAddr),
    /// A ring can only be served when it is said that there is something.
    #[error("ring {0} has no kick descriptor; polling is not supported")]
    Polled(u32),
    /// Not an eventfd.
    #[error("a descriptor for ring {0} is no eventfd")]
    NoEvent(u32),
    /// What is in flight.
    #[error(transparent)]
    Inflight(#[from] InflightError),
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

/// What the pairs of queues have in common.
#[derive(Clone, Debug)]
pub struct Common {
    /// What the guest uses of what is offered.
    pub features: u64,
    /// The guest's memory.
    pub memory: Memory,
    /// What takes word of what was logged.
    log_event: Option<Arc<File>>,
    /// By which pair frames go to the guest, where there are several.
    pub steering: Option<Arc<Steering>>,
}

impl Common {
    fn new(pairs: usize) -> Common {
        let steering = (pairs > 1).then(Arc::default);
        Common { features: 0, memory: Memory::default(), log_event: None, steering }
    }

    /// Whether the guest uses all of these features.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Length of the virtio-net header.
    pub fn header_len(&self) -> usize {
        if self.features & (feature::VERSION_1 | feature::MRG_RXBUF) != 0 { 12 } else { 10 }
    }

    /// Gives word of what was logged, to whoever wants it.
    pub fn tell_of_log(&self) {
        if self.memory.logging {
            signal(self.log_event.as_deref());
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Device {
    pub common: Common,
    protocol: u64,
    /// All of them, in their order, while something is done with the device as a whole; else none: those who serve them have them.
    pub pairs: Vec<Pair>,
    /// How many there are: at least one, at most [`MAX_QUEUE_PAIRS`].
    count: usize,
    /// Largest packet.
    pub mtu: u16,
    max_mtu: u16,
}

impl Device {
    /// As it is before a front end comes. Its pairs' kicks are heard in these sets by turns.
    pub fn new(count: usize, max_mtu: u16, polls: &[Arc<Poll>]) -> Device {
        let pairs = (0..count).zip(polls.iter().cycle()).map(|(n, poll)| Pair::new(n, poll.clone())).collect();
        Device { common: Common::new(count), protocol: 0, pairs, count, mtu: max_mtu, max_mtu }
    }

    /// How many pairs of queues there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Forgets everything that a front end has set up.
    pub fn reset(&mut self) {
        for ring in self.pairs.iter_mut().flat_map(|p| &mut p.rings) {
            ring.stop();
            *ring = Ring::default();
        }
        (self.common, self.protocol, self.mtu) = (Common::new(self.count), 0, self.max_mtu);
    }

    fn offered(&self) -> u64 {
        OFFERED | if self.count > 1 { feature::MQ } else { 0 }
    }

    fn protocol_offered(&self) -> u64 {
        PROTOCOL | if self.count > 1 { protocol::MQ } else { 0 }
    }

    /// A ring, by the number that it has on the wire: receiving and sending by turns.
    fn ring(&mut self, n: u32) -> Result<&mut Ring, DeviceError> {
        let all = 2 * self.count;
        let ring = usize::try_from(n).ok().and_then(|i| self.pairs.get_mut(i / 2).map(|p| &mut p.rings[i % 2]));
        ring.ok_or(DeviceError::NoRing(n, all))
    }

    /// Carries out a request. `word` is the event word of a ring's kicks. The answer, if the request has one of its own.
    pub fn handle(
        &mut self,
        code: u32,
        request: Request,
        mut fds: Vec<OwnedFd>,
        word: impl Fn(u32) -> u64,
    ) -> Result<Option<Reply>, DeviceError> {
        let number = |n| Ok(Some(Reply::number(code, n)));
        match request {
            Request::GetFeatures => return number(self.offered()),
            Request::SetFeatures(f) => self.set_features(f)?,
            Request::SetOwner | Request::SendRarp(_) => {}
            Request::GetProtocolFeatures => return number(self.protocol_offered()),
            Request::SetProtocolFeatures(f) => match f & !self.protocol_offered() {
                0 => self.protocol = f,
                others => return Err(DeviceError::Features(others)),
            },
            // Front ends for network devices count pairs.
            Request::GetQueueNum => return number(self.count as u64),
            Request::GetMaxMemSlots => return number(MAX_SLOTS as u64),
            Request::SetMemTable(regions) => self.common.memory.replace(&regions, fds)?,
            Request::SetLogBase(len, offset) => {
                if let Some(fd) = fds.pop() {
                    self.set_log(DirtyLog::map(fd, len, offset)?)?;
                }
                // Who shares a log waits for an answer to this.
                return number(0);
            }
            Request::SetLogFd => self.common.log_event = Some(Arc::new(event(fds.pop(), DeviceError::NoLogEvent)?)),
            Request::AddMemReg(r) => {
                if let Some(fd) = fds.pop() {
                    self.common.memory.add(r, fd)?;
                }
            }
            Request::RemMemReg(r) => self.common.memory.remove(r)?,
            Request::ResetOwner | Request::ResetDevice => {
                for ring in self.pairs.iter_mut().flat_map(|p| &mut p.rings) {
                    ring.stop();
                    ring.enabled = false;
                    ring.queue.reset();
                }
            }
            Request::GetInflightFd(wanted) => {
                let (extent, fd) = wanted.make(2 * self.count)?;
                return Ok(Some(Reply::inflight(code, extent, fd)));
            }
            Request::SetInflightFd(extent) => {
                if let Some(fd) = fds.pop() {
                    let all = extent.map(fd, 2 * self.count)?;
                    let mut rings = self.pairs.iter_mut().flat_map(|p| &mut p.rings);
                    all.into_iter().zip(&mut rings).for_each(|(i, ring)| ring.queue.inflight = Some(i));
                    rings.for_each(|ring| ring.queue.inflight = None);
                }
            }
            Request::SetVringNum(n, size) => self.ring(n)?.queue.size = ring_size(size)?,
            Request::SetVringAddr(a) => self.set_addr(a)?,
            Request::SetVringBase(n, base) => self.ring(n)?.queue.set_base(base as u16),
            Request::GetVringBase(n) => {
                let ring = self.ring(n)?;
                ring.stop();
                return Ok(Some(Reply::ring(code, n, ring.queue.base().into())));
            }
            Request::SetVringKick(n, false) => return Err(DeviceError::Polled(n)),
            Request::SetVringKick(n, true) => {
                // Without features of the protocol there is no request that enables it.
                let at_once = !self.common.has(feature::PROTOCOL_FEATURES);
                self.ring(n)?;
                let Pair { rings, poll, .. } = &mut self.pairs[n as usize / 2];
                let ring = &mut rings[n as usize % 2];
                ring.start(event(fds.pop(), DeviceError::NoEvent(n))?, poll, word(n))?;
                ring.enabled |= at_once;
            }
            Request::SetVringCall(n, some) => {
                let ring = self.ring(n)?;
                ring.set_call(if some { Some(event(fds.pop(), DeviceError::NoEvent(n))?) } else { None });
            }
            Request::SetVringErr(n, some) => {
                let ring = self.ring(n)?;
                ring.set_error(if some { Some(event(fds.pop(), DeviceError::NoEvent(n))?) } else { None });
            }
            Request::SetVringEnable(n, on) => self.ring(n)?.enabled = on,
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
    pub fn take_vring(&mut self, n: u32, v: Vring, word: u64) -> Result<(), DeviceError> {
        let (kick, call) = (event(Some(v.kick), DeviceError::NoEvent(n))?, event(Some(v.call), DeviceError::NoEvent(n))?);
        let size = ring_size(v.size.into())?;
        self.ring(n)?;
        let Pair { rings, poll, .. } = &mut self.pairs[n as usize / 2];
        let ring = &mut rings[n as usize % 2];
        let queue = &mut ring.queue;
        (queue.size, queue.desc, queue.avail, queue.used) = (size, v.desc, v.avail, v.used);
        let addr = RingAddr { index: n, desc: v.desc, avail: v.avail, used: v.used, log: None };
        queue.rings(&self.common.memory).and_then(|rings| queue.begin(&rings)).map_err(|_| DeviceError::Address(addr))?;
        ring.start(kick, poll, word)?;
        ring.set_call(Some(call));
        ring.enabled = true;
        Ok(())
    }

    pub fn set_features(&mut self, f: u64) -> Result<(), DeviceError> {
        let others = f & !self.offered();
        if others != 0 {
            return Err(DeviceError::Features(others));
        }
        self.common.features = f;
        self.common.memory.logging = f & feature::LOG_ALL != 0;
        for ring in self.pairs.iter_mut().flat_map(|p| &mut p.rings) {
            ring.queue.event_idx = f & feature::EVENT_IDX != 0;
            ring.queue.indirect = f & feature::INDIRECT_DESC != 0;
        }
        Ok(())
    }

    fn set_addr(&mut self, a: RingAddr) -> Result<(), DeviceError> {
        let at = |user| self.common.memory.guest_address(user).ok_or(DeviceError::Address(a));
        let (desc, avail, used) = (at(a.desc)?, at(a.avail)?, at(a.used)?);
        let len = self.ring(a.index)?.queue.used_len() as u64;
        if let (Some(log), Some(at)) = (self.common.memory.log(), a.log) {
            log.covers(at.saturating_add(len))?;
        }
        let queue = &mut self.ring(a.index)?.queue;
        (queue.desc, queue.avail, queue.used, queue.log) = (desc, avail, used, a.log);
        Ok(())
    }

    /// Logs into this from now on, if it has bits for all that is written to.
    fn set_log(&mut self, log: DirtyLog) -> Result<(), LogError> {
        for queue in self.pairs.iter().flat_map(|p| &p.rings).map(|r| &r.queue) {
            log.covers(queue.log.map_or(0, |at| at.saturating_add(queue.used_len() as u64)))?;
        }
        self.common.memory.set_log(log)
    }

    /// Whether requests can ask for an acknowledgement.
    pub fn acknowledges(&self) -> bool {
        self.protocol & protocol::REPLY_ACK != 0
    }

    /// Whether its state can be saved or loaded: that was agreed on, and no ring runs.
    pub fn can_move(&self) -> bool {
        self.protocol & protocol::DEVICE_STATE != 0 && !self.pairs.iter().flat_map(|p| &p.rings).any(Ring::is_running)
    }
}

fn ring_size(size: u32) -> Result<u16, DeviceError> {
    let valid = u16::try_from(size).ok().filter(|s| s.is_power_of_two() && *s <= MAX_SIZE);
    valid.ok_or(DeviceError::Size(size))
}
