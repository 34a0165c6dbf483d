//! What front end and back end say to each other (QEMU's vhost-user specification, "Front-end message types").

use super::inflight::Extent;
use crate::link::Direction;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Length of a message's header: request, flags, length of what follows.
pub const HEADER: usize = 12;
/// Most bytes behind a header that any request has which we know.
pub const MAX_BODY: usize = 8 + MAX_REGIONS * REGION;
/// Most regions in one table (`VHOST_MEMORY_BASELINE_NREGIONS`), and so most descriptors in one message.
pub const MAX_REGIONS: usize = 8;
/// Length of what says how large the memory for buffers in flight is, and the same padded as C has it.
const INFLIGHT: usize = 20;
const PADDED: usize = 24;
/// Length of a region's description.
const REGION: usize = 32;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Flag of a ring's addresses: what is written to its used ring is logged (`VHOST_VRING_F_LOG`).
const LOG_USED: u32 = 1;

/// Virtio features that matter here, by bit (virtio 1.3 sections 5.1.3 and 6; `linux/vhost_types.h`).
pub mod feature {
    /// Checksums are completed for the guest.
    pub const CSUM: u64 = 1 << 0;
    /// The guest takes frames with partial checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The front end may say how large packets are.
    pub const MTU: u64 = 1 << 3;
    /// The guest takes TCP super-segments over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The guest takes TCP super-segments over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The guest takes super-segments with CWR.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The guest may send TCP super-segments over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The guest may send TCP super-segments over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The guest may send super-segments with CWR.
    pub const HOST_ECN: u64 = 1 << 13;
    /// What is written to the guest's memory is logged.
    pub const LOG_ALL: u64 = 1 << 26;
    /// A frame may fill several of the guest's buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// Descriptors may stand in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Each side says from which entry on it wants to be told.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user has features of its own.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Virtio 1.
    pub const VERSION_1: u64 = 1 << 32;
    /// There are several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The guest takes UDP super-segments over IPv4.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The guest takes UDP super-segments over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The guest may send UDP super-segments.
    pub const HOST_USO: u64 = 1 << 56;
}

/// vhost-user's own features, by bit.
pub mod protocol {
    /// There may be several pairs of queues.
    pub const MQ: u64 = 1 << 0;
    /// The log of what is written is in shared memory.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// A request to announce the guest's address.
    pub const RARP: u64 = 1 << 2;
    /// Any request can ask whether it succeeded.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The front end may say how large packets are.
    pub const NET_MTU: u64 = 1 << 4;
    /// Buffers that were taken are noted in memory of the front end's.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// The state of the back end moves with the guest.
    pub const DEVICE_STATE: u64 = 1 << 19;
    /// Regions of memory come and go one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// Which way the back end's state goes.
const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// Phase of that: the rings are stopped. There is no other.
const STOPPED: u32 = 0;

/// Why a message cannot be understood. The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Another version of the protocol.
    #[error("flags {0:#x}: this is not vhost-user of version 1")]
    Version(u32),
    /// Longer than any request.
    #[error("request {request}: {size} bytes; none has more than {MAX_BODY}")]
    TooLong {
        /// Its number.
        request: u32,
        /// What its header says.
        size: u32,
    },
    /// Its content has another length than it should have.
    #[error("{request:?}: {size} bytes are not what this request has")]
    Length {
        /// Which one.
        request: Code,
        /// What came.
        size: usize,
    },
    /// Its number of descriptors is not what it should be.
    #[error("{request:?}: {count} descriptors came along")]
    Descriptors {
        /// Which one.
        request: Code,
        /// How many.
        count: usize,
    },
}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the request.
    pub request: u32,
    /// The sender waits for an answer even if this request has none.
    pub need_reply: bool,
    /// Bytes that follow, at most [`MAX_BODY`].
    pub size: usize,
}

impl Header {
    /// Of a request.
    pub fn parse(b: &[u8; HEADER]) -> Result<Header, MessageError> {
        let [request, flags, size] = [0, 4, 8].map(|at| word(b, at));
        if flags & VERSION_MASK != VERSION {
            return Err(MessageError::Version(flags));
        }
        if size as usize > MAX_BODY {
            return Err(MessageError::TooLong { request, size });
        }
        Ok(Header { request, need_reply: flags & NEED_REPLY != 0, size: size as usize })
    }
}

/// An answer, ready to be sent: header, content, and a descriptor that goes along.
pub struct Reply {
    bytes: [u8; HEADER + PADDED],
    len: usize,
    fd: Option<OwnedFd>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reply {:x?}", &self.bytes[HEADER..self.len])
    }
}

impl Reply {
    fn new(request: u32, content: &[u8]) -> Reply {
        let mut reply = Reply { bytes: [0; HEADER + PADDED], len: HEADER + content.len(), fd: None };
        for (at, v) in [(0, request), (4, VERSION | REPLY), (8, content.len() as u32)] {
            reply.bytes[at..at + 4].copy_from_slice(&v.to_ne_bytes());
        }
        reply.bytes[HEADER..reply.len].copy_from_slice(content);
        reply
    }

    /// A number.
    pub fn number(request: u32, n: u64) -> Reply {
        Reply::new(request, &n.to_ne_bytes())
    }

    /// State of a ring: its number and a value.
    pub fn ring(request: u32, index: u32, value: u32) -> Reply {
        Reply::number(request, u64::from(index) | u64::from(value) << 32)
    }

    /// Memory for buffers in flight.
    pub fn inflight(request: u32, e: Extent, fd: OwnedFd) -> Reply {
        let numbers = u64::from(e.queues) | u64::from(e.size) << 16;
        let content: Vec<u8> = [e.len, e.offset, numbers].iter().flat_map(|v| v.to_ne_bytes()).collect();
        Reply { fd: Some(fd), ..Reply::new(request, &content) }
    }

    /// What goes over the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// What goes along.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

/// A region of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where the guest has it.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Where the front end has it. Addresses of rings are given so.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// Addresses of a ring, in the front end's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddr {
    /// Which ring.
    pub index: u32,
    /// Descriptors.
    pub desc: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
    /// Where what is written to the used ring is logged, as an address of the guest's; `None` if it is not to be.
    pub log: Option<u64>,
}

macro_rules! codes {
    ($($name:ident = $n:literal,)*) => {
        /// Requests that we know, by number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        #[repr(u32)]
        pub enum Code { $($name = $n,)* }

        impl Code {
            fn of(n: u32) -> Option<Code> {
                match n { $($n => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetLogFd = 7,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SendRarp = 19,
    NetSetMtu = 20,
    GetInflightFd = 31,
    SetInflightFd = 32,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
    SetDeviceStateFd = 42,
    CheckDeviceState = 43,
}

/// What is asked for. Descriptors are apart; their number was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Which features are there.
    GetFeatures,
    /// The features that the guest uses.
    SetFeatures(u64),
    /// The session begins.
    SetOwner,
    /// Ends nothing any more; every ring is switched off.
    ResetOwner,
    /// All of the guest's memory, one descriptor each.
    SetMemTable(Vec<Region>),
    /// The log of what is written to the guest's memory: its length, and where in its file it begins.
    SetLogBase(u64, u64),
    /// A descriptor that takes word of what was logged.
    SetLogFd,
    /// Entries of a ring.
    SetVringNum(u32, u32),
    /// Where a ring is.
    SetVringAddr(RingAddr),
    /// The next entry of the available ring that is to be looked at.
    SetVringBase(u32, u32),
    /// Stops a ring, and asks which entry is next.
    GetVringBase(u32),
    /// A descriptor that says that there are buffers. `None`: there is none.
    SetVringKick(u32, bool),
    /// A descriptor that takes what the guest is told.
    SetVringCall(u32, bool),
    /// A descriptor that takes word of errors.
    SetVringErr(u32, bool),
    /// Which features of the protocol are there.
    GetProtocolFeatures,
    /// The ones that the front end uses.
    SetProtocolFeatures(u64),
    /// How many pairs of rings there can be.
    GetQueueNum,
    /// Switches a ring on or off.
    SetVringEnable(u32, bool),
    /// Announce this address.
    SendRarp([u8; 6]),
    /// Packets are at most this large.
    NetSetMtu(u64),
    /// Memory in which to note which buffers were taken.
    GetInflightFd(Extent),
    /// Note it there, in the descriptor, where perhaps another back end has.
    SetInflightFd(Extent),
    /// As ever after power-on.
    ResetDevice,
    /// How many regions of memory there can be.
    GetMaxMemSlots,
    /// One region more, with its descriptor.
    AddMemReg(Region),
    /// One region less.
    RemMemReg(Region),
    /// Save the state into the descriptor, or load it from there. `None`: not as the specification has it.
    SetDeviceStateFd(Option<Direction>),
    /// Whether that was done.
    CheckDeviceState,
    /// One that we do not know.
    Unknown,
}

fn word(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn long(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|w| w.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn region(b: &[u8], at: usize) -> Region {
    Region { guest: long(b, at), size: long(b, at + 8), user: long(b, at + 16), offset: long(b, at + 24) }
}

fn extent(b: &[u8]) -> Extent {
    let numbers = word(b, 16);
    Extent { len: long(b, 0), offset: long(b, 8), queues: numbers as u16, size: (numbers >> 16) as u16 }
}

/// The number of a ring, and whether a descriptor comes along, in the word of the requests that set descriptors.
fn ring_fd(b: &[u8]) -> (u32, bool) {
    let n = long(b, 0);
    (n as u32 & 0xff, n & 0x100 == 0)
}

impl Request {
    /// From a request's number, what follows its header, and how many descriptors came along.
    pub fn parse(n: u32, b: &[u8], fds: usize) -> Result<Request, MessageError> {
        let Some(code) = Code::of(n) else { return Ok(Request::Unknown) };
        let (length, wanted) = match code {
            Code::SetFeatures | Code::SetProtocolFeatures | Code::SendRarp | Code::NetSetMtu => (8, 0),
            Code::SetVringNum | Code::SetVringBase | Code::GetVringBase | Code::SetVringEnable => (8, 0),
            Code::SetVringKick | Code::SetVringCall | Code::SetVringErr => (8, usize::from(ring_fd(b).1)),
            Code::SetVringAddr => (40, 0),
            Code::SetDeviceStateFd => (8, 1),
            // With and without what fills it up to a multiple of eight.
            Code::GetInflightFd => (if b.len() == INFLIGHT { INFLIGHT } else { PADDED }, 0),
            Code::SetInflightFd => (if b.len() == INFLIGHT { INFLIGHT } else { PADDED }, 1),
            Code::SetLogBase => (16, 1),
            Code::SetLogFd => (b.len(), 1),
            Code::SetMemTable => {
                let count = word(b, 0) as usize;
                if count > MAX_REGIONS {
                    return Err(MessageError::Length { request: code, size: b.len() });
                }
                (8 + count * REGION, count)
            }
            Code::AddMemReg => (8 + REGION, 1),
            // The specification lets a descriptor come along that nobody needs.
            Code::RemMemReg => (8 + REGION, fds.min(1)),
            // Those without content: what some front ends send all the same is of no matter.
            _ => (b.len(), 0),
        };
        if b.len() != length {
            return Err(MessageError::Length { request: code, size: b.len() });
        }
        if fds != wanted {
            return Err(MessageError::Descriptors { request: code, count: fds });
        }
        Ok(match code {
            Code::GetFeatures => Request::GetFeatures,
            Code::SetFeatures => Request::SetFeatures(long(b, 0)),
            Code::SetOwner => Request::SetOwner,
            Code::ResetOwner => Request::ResetOwner,
            Code::SetMemTable => Request::SetMemTable((0..fds).map(|i| region(b, 8 + i * REGION)).collect()),
            Code::SetLogBase => Request::SetLogBase(long(b, 0), long(b, 8)),
            Code::SetLogFd => Request::SetLogFd,
            Code::SetVringNum => Request::SetVringNum(word(b, 0), word(b, 4)),
            Code::SetVringAddr => Request::SetVringAddr(RingAddr {
                index: word(b, 0),
                desc: long(b, 8),
                used: long(b, 16),
                avail: long(b, 24),
                log: (word(b, 4) & LOG_USED != 0).then(|| long(b, 32)),
            }),
            Code::SetVringBase => Request::SetVringBase(word(b, 0), word(b, 4)),
            Code::GetVringBase => Request::GetVringBase(word(b, 0)),
            Code::SetVringKick => Request::SetVringKick(ring_fd(b).0, ring_fd(b).1),
            Code::SetVringCall => Request::SetVringCall(ring_fd(b).0, ring_fd(b).1),
            Code::SetVringErr => Request::SetVringErr(ring_fd(b).0, ring_fd(b).1),
            Code::GetProtocolFeatures => Request::GetProtocolFeatures,
            Code::SetProtocolFeatures => Request::SetProtocolFeatures(long(b, 0)),
            Code::GetQueueNum => Request::GetQueueNum,
            Code::SetVringEnable => Request::SetVringEnable(word(b, 0), word(b, 4) != 0),
            Code::SendRarp => Request::SendRarp(std::array::from_fn(|i| b[i])),
            Code::NetSetMtu => Request::NetSetMtu(long(b, 0)),
            Code::GetInflightFd => Request::GetInflightFd(extent(b)),
            Code::SetInflightFd => Request::SetInflightFd(extent(b)),
            Code::ResetDevice => Request::ResetDevice,
            Code::GetMaxMemSlots => Request::GetMaxMemSlots,
            Code::AddMemReg => Request::AddMemReg(region(b, 8)),
            Code::RemMemReg => Request::RemMemReg(region(b, 8)),
            Code::SetDeviceStateFd => Request::SetDeviceStateFd(match (word(b, 0), word(b, 4)) {
                (SAVE, STOPPED) => Some(Direction::Save),
                (LOAD, STOPPED) => Some(Direction::Load),
                _ => None,
            }),
            Code::CheckDeviceState => Request::CheckDeviceState,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER] {
        let mut b = [0; HEADER];
        for (at, v) in [(0, request), (4, flags), (8, size)] {
            b[at..at + 4].copy_from_slice(&v.to_ne_bytes());
        }
        b
    }

    #[test]
    fn headers_are_judged() {
        assert_eq!(Header::parse(&header(1, 9, 8)), Ok(Header { request: 1, need_reply: true, size: 8 }));
        assert_eq!(Header::parse(&header(1, 2, 8)), Err(MessageError::Version(2)));
        let size = MAX_BODY as u32 + 1;
        assert_eq!(Header::parse(&header(5, 1, size)), Err(MessageError::TooLong { request: 5, size }));
    }

    #[test]
    fn a_table_of_memory_has_a_descriptor_for_each_region() {
        let mut b = vec![0; 8 + 2 * REGION];
        b[0] = 2;
        b[8 + REGION..8 + REGION + 8].copy_from_slice(&0x1000u64.to_ne_bytes());
        let Ok(Request::SetMemTable(r)) = Request::parse(5, &b, 2) else { panic!() };
        assert_eq!(r.iter().map(|r| r.guest).collect::<Vec<_>>(), [0, 0x1000]);
        assert!(matches!(Request::parse(5, &b, 1), Err(MessageError::Descriptors { count: 1, .. })));
        assert!(matches!(Request::parse(5, &b[..9], 2), Err(MessageError::Length { .. })));
        b[0] = MAX_REGIONS as u8 + 1;
        assert!(matches!(Request::parse(5, &b, 2), Err(MessageError::Length { .. })));
    }

    #[test]
    fn a_ring_can_be_without_a_descriptor() {
        let b = 0x101u64.to_ne_bytes();
        assert_eq!(Request::parse(12, &b, 0), Ok(Request::SetVringKick(1, false)));
        assert!(Request::parse(12, &b, 1).is_err());
        assert_eq!(Request::parse(13, &1u64.to_ne_bytes(), 1), Ok(Request::SetVringCall(1, true)));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_judged_without_panic(n in 0u32..50, b in proptest::collection::vec(any::<u8>(), 0..=MAX_BODY), fds in 0usize..10) {
            let _ = Request::parse(n, &b, fds);
        }
    }
}
