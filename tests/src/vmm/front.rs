//! A vhost-user front end with a network device of one or several pairs of queues, whose memory is its own.

use super::driver::{DriverQueue, Layout};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, recvmsg,
    sendmsg,
};
use rustix::pipe::PipeFlags;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Numbers of requests (QEMU's vhost-user specification).
#[allow(missing_docs)]
pub mod code {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const NET_SET_MTU: u32 = 20;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// Features, by bit (virtio 1.3).
#[allow(missing_docs)]
pub mod feature {
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const MQ: u64 = 1 << 22;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Where the front end claims to have the guest's memory.
const USER: u64 = 0x7f00_0000_0000;
const NEED_REPLY: u32 = 8;
/// Ways of the back end's state.
const SAVE: u32 = 0;
const LOAD: u32 = 1;
const HEADER: usize = 12;

/// What a guest and its monitor are like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Features that the guest takes if they are offered.
    pub features: u64,
    /// Features of the protocol that the monitor takes if they are offered.
    pub protocol: u64,
    /// Pairs of queues, at most 8.
    pub pairs: usize,
    /// Entries of each queue.
    pub size: u16,
    /// Length of a buffer to receive into.
    pub rx_buffer: u32,
    /// Length of a buffer to send from.
    pub tx_buffer: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { features: !feature::EVENT_IDX, protocol: !0, pairs: 1, size: 256, rx_buffer: 1536, tx_buffer: 68 * 1024 }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct FrontEnd {
    socket: UnixStream,
    options: Options,
    file: OwnedFd,
    memory: GuestMemoryMmap,
    /// What was agreed on.
    pub features: u64,
    /// The queue of what the guest receives, of the first pair.
    pub rx: DriverQueue,
    /// The queue of what the guest sends, of the first pair.
    pub tx: DriverQueue,
    /// The queues of the other pairs, receiving and sending.
    pub others: Vec<[DriverQueue; 2]>,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
    /// The log of pages that the back end has written to.
    log: Option<OwnedFd>,
    /// Where the back end notes which buffers it has taken, with what it said of that.
    inflight: Option<(OwnedFd, Vec<u8>)>,
}

/// Bytes of a page of the log.
pub const LOG_PAGE: u64 = 4096;
/// Where the log begins in its file.
const LOG_OFFSET: u64 = 4096;

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}

impl FrontEnd {
    /// Before anything was said.
    pub fn new(socket: UnixStream, options: Options) -> FrontEnd {
        let mut end = 1 << 20;
        let mut layout = |base: u64, buffer: u32| {
            let layout = Layout { size: options.size, base, buffers: end, buffer };
            end = layout.buffer(options.size).next_multiple_of(1 << 16);
            layout
        };
        // Rings are below the buffers, 64 KiB for each.
        let pair = |n: usize| {
            let at = (n as u64) << 16;
            [layout(at, options.rx_buffer), layout((1 << 19) + at, options.tx_buffer)]
        };
        let layouts: Vec<[Layout; 2]> = (0..options.pairs).map(pair).collect();
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, end).expect("memfd");
        let shared = FileOffset::new(File::from(file.try_clone().expect("dup")), 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), end as usize, Some(shared))]).expect("map");
        let mut queues = layouts.iter().map(|l| l.map(|l| DriverQueue::new(memory.clone(), l, false)));
        let [rx, tx] = queues.next().expect("a pair");
        let others = queues.collect();
        let events = || (0..2 * options.pairs).map(|_| event()).collect();
        FrontEnd {
            socket,
            options,
            file,
            features: 0,
            rx,
            tx,
            others,
            memory,
            kicks: events(),
            calls: events(),
            log: None,
            inflight: None,
        }
    }

    /// Each queue under its number, receiving and sending by turns.
    fn queues(&mut self) -> impl Iterator<Item = &mut DriverQueue> {
        [&mut self.rx, &mut self.tx].into_iter().chain(self.others.iter_mut().flatten())
    }

    /// A queue by its number.
    pub fn queue(&mut self, index: u32) -> &mut DriverQueue {
        self.queues().nth(index as usize).expect("a queue")
    }

    fn all(&self) -> impl Iterator<Item = &DriverQueue> {
        [&self.rx, &self.tx].into_iter().chain(self.others.iter().flatten())
    }

    /// Where each queue is.
    fn layouts(&self) -> Vec<Layout> {
        self.all().map(|q| q.layout).collect()
    }

    /// Sends a request.
    pub fn send(&self, request: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let head: Vec<u8> = [request, 1 | flags, body.len() as u32].iter().flat_map(|v| v.to_ne_bytes()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        sendmsg(&self.socket, &[IoSlice::new(&head), IoSlice::new(body)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The answer to a request: its number and content.
    pub fn answer(&self) -> io::Result<(u32, u64)> {
        let mut b = [0; HEADER + 8];
        let (_, n) = recv(&self.socket, &mut b[..], RecvFlags::WAITALL)?;
        if n != b.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let word = |at: usize| u32::from_ne_bytes(b[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((word(4), word(8)), (5, 8), "flags and length of an answer");
        Ok((word(0), u64::from_ne_bytes(b[HEADER..].try_into().expect("eight bytes"))))
    }

    /// Asks for a number.
    pub fn get(&self, request: u32) -> io::Result<u64> {
        self.ask(request, &[], &[], 0)
    }

    /// Sends a request that has an answer, or, with `NEED_REPLY`, one of whether it succeeded.
    fn ask(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>], flags: u32) -> io::Result<u64> {
        self.send(request, flags, body, fds)?;
        let (to, n) = self.answer()?;
        assert_eq!(to, request, "the answer is to another request");
        Ok(n)
    }

    /// Sends a request that is to succeed.
    fn must(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        match self.set(request, body, fds)? {
            true => Ok(()),
            false => Err(io::Error::other(format!("request {request} was refused"))),
        }
    }

    /// Sends a request; whether it succeeded.
    pub fn set(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
        Ok(self.ask(request, body, fds, NEED_REPLY)? == 0)
    }

    /// A region of memory, as requests have it.
    pub fn region(guest: u64, size: u64, user: u64, offset: u64) -> Vec<u8> {
        [guest, size, user, offset].iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    /// The length of the guest's memory.
    pub fn memory_len(&self) -> u64 {
        let t = self.layouts().pop().expect("a queue");
        t.buffer(t.size).next_multiple_of(1 << 16)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The file behind the guest's memory.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Agrees on features; queues begin anew.
    pub fn negotiate(&mut self) -> io::Result<()> {
        self.agree()?;
        let event_idx = self.features & feature::EVENT_IDX != 0;
        let memory = self.memory.clone();
        for q in self.queues() {
            *q = DriverQueue::new(memory.clone(), q.layout, event_idx);
        }
        Ok(())
    }

    fn agree(&mut self) -> io::Result<()> {
        self.greet()?;
        self.must(code::SET_FEATURES, &self.features.to_ne_bytes(), &[])
    }

    /// What a monitor says first of all.
    pub fn greet(&mut self) -> io::Result<()> {
        let offered = self.get(code::GET_FEATURES)?;
        let own = self.get(code::GET_PROTOCOL_FEATURES)?;
        self.send(code::SET_PROTOCOL_FEATURES, 0, &(own & self.options.protocol).to_ne_bytes(), &[])?;
        self.features = offered & self.options.features & !feature::LOG_ALL;
        self.send(code::SET_OWNER, 0, &[], &[])
    }

    /// Goes on with another back end, as a monitor does whose guest knows nothing of it: behind the last buffers that were used.
    pub fn go_on(&mut self, socket: UnixStream) -> io::Result<()> {
        self.socket = socket;
        self.agree()?;
        self.share_memory()?;
        self.share_inflight()?;
        self.start_rings()
    }

    /// Starts all rings where they stand.
    pub fn start_rings(&self) -> io::Result<()> {
        (0..).zip(self.all()).try_for_each(|(i, q)| self.start_ring(i, q.used_index()))
    }

    /// Stops all rings.
    pub fn stop_rings(&self) -> io::Result<()> {
        (0..2 * self.options.pairs as u32).try_for_each(|i| self.stop_ring(i).map(|_| ()))
    }

    /// Goes on with another back end and with the state of the one before; both connections stay. Whether it takes the state; if not, nothing has changed.
    pub fn move_to(&mut self, socket: UnixStream, state: &[u8]) -> io::Result<(UnixStream, bool)> {
        let old = std::mem::replace(&mut self.socket, socket);
        self.greet()?;
        if !self.load(state)? {
            return Ok((std::mem::replace(&mut self.socket, old), false));
        }
        self.must(code::SET_FEATURES, &self.features.to_ne_bytes(), &[])?;
        self.share_memory()?;
        self.start_rings()?;
        Ok((old, true))
    }

    /// Hands over the end of a pipe for the state; whether that is accepted. `way` and `phase` as the specification has them.
    pub fn transfer(&self, way: u32, phase: u32, pipe: BorrowedFd<'_>) -> io::Result<bool> {
        let answer = self.ask(code::SET_DEVICE_STATE_FD, &FrontEnd::pair(way, phase), &[pipe], 0)?;
        assert_eq!(answer & !0xff, 0x100, "the back end wants to use another descriptor");
        Ok(answer & 0xff == 0)
    }

    /// Whether the state was saved or loaded.
    pub fn check_state(&self) -> io::Result<bool> {
        Ok(self.get(code::CHECK_DEVICE_STATE)? == 0)
    }

    /// The back end's state, of which at most so many bytes are read before the pipe is closed; or `None` if it says that it was not saved.
    pub fn save(&self, at_most: u64) -> io::Result<Option<Vec<u8>>> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        if !self.transfer(SAVE, 0, theirs.as_fd())? {
            return Ok(None);
        }
        drop(theirs);
        let mut state = Vec::new();
        File::from(ours).take(at_most).read_to_end(&mut state)?;
        Ok(self.check_state()?.then_some(state))
    }

    /// Has the back end load a state; whether it did.
    pub fn load(&self, state: &[u8]) -> io::Result<bool> {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        if !self.transfer(LOAD, 0, theirs.as_fd())? {
            return Ok(false);
        }
        drop(theirs);
        // One that does not read on has found it bad.
        let _ = File::from(ours).write_all(state);
        self.check_state()
    }

    /// Shares the guest's memory.
    pub fn share_memory(&self) -> io::Result<()> {
        self.must(code::SET_MEM_TABLE, &self.memory_table(), &[self.file.as_fd()])
    }

    /// The guest's memory, as the request has it that shares it.
    pub fn memory_table(&self) -> Vec<u8> {
        [1u64.to_ne_bytes().to_vec(), FrontEnd::region(0, self.memory_len(), USER, 0)].concat()
    }

    /// Two numbers, as requests about rings have them.
    pub fn pair(index: u32, value: u32) -> [u8; 8] {
        let mut b = [0; 8];
        b[..4].copy_from_slice(&index.to_ne_bytes());
        b[4..].copy_from_slice(&value.to_ne_bytes());
        b
    }

    /// Where a ring is, as the request has it.
    pub fn addresses(index: u32, layout: &Layout) -> Vec<u8> {
        let mut body = FrontEnd::pair(index, 0).to_vec();
        for at in [layout.desc(), layout.used(), layout.avail()] {
            body.extend((USER + at).to_ne_bytes());
        }
        body.extend(0u64.to_ne_bytes());
        body
    }

    /// The same, with what is written to the used ring logged as written to this address of the guest's.
    pub fn logged_addresses(index: u32, layout: &Layout, log: u64) -> Vec<u8> {
        let mut body = FrontEnd::addresses(index, layout);
        body[4..8].copy_from_slice(&1u32.to_ne_bytes());
        body[32..].copy_from_slice(&log.to_ne_bytes());
        body
    }

    /// Has the back end make memory in which it notes which buffers it has taken, for the queues that there are; it is handed over with
    /// [`FrontEnd::share_inflight`], now and after every new beginning.
    pub fn make_inflight(&mut self) -> io::Result<()> {
        let numbers = (2 * self.options.pairs as u64) | u64::from(self.options.size) << 16;
        let body: Vec<u8> = [0, 0, numbers].iter().flat_map(|v| v.to_ne_bytes()).collect();
        self.send(code::GET_INFLIGHT_FD, 0, &body, &[])?;
        let mut said = [0; HEADER + 24];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut said)], &mut control, RecvFlags::WAITALL)?;
        assert_eq!(got.bytes, said.len(), "an answer to this request");
        assert_eq!(said[HEADER + 16..], body[16..], "it is for what was asked for");
        let fd = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        self.inflight = Some((fd.expect("a descriptor"), said[HEADER..].to_vec()));
        Ok(())
    }

    /// Hands that memory over, if there is any.
    pub fn share_inflight(&self) -> io::Result<()> {
        self.inflight.as_ref().map_or(Ok(()), |(fd, body)| self.must(code::SET_INFLIGHT_FD, body, &[fd.as_fd()]))
    }

    /// The memory in which it is noted which buffers were taken, and what describes it.
    pub fn inflight(&self) -> (BorrowedFd<'_>, &[u8]) {
        let (fd, body) = self.inflight.as_ref().expect("made");
        (fd.as_fd(), body)
    }

    /// Hands over a log with a bit for each page below `end`. Whether it is taken.
    pub fn share_log(&mut self, end: u64) -> io::Result<bool> {
        let len = end.div_ceil(8 * LOG_PAGE);
        let file = memfd_create("log", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, LOG_OFFSET + len)?;
        let body = [len, LOG_OFFSET].iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>();
        let taken = self.ask(code::SET_LOG_BASE, &body, &[file.as_fd()], NEED_REPLY)? == 0;
        self.log = Some(file);
        Ok(taken)
    }

    /// Has what the back end writes logged from now on, or no more: buffers, and used rings as a monitor does.
    pub fn set_logging(&mut self, on: bool) -> io::Result<()> {
        let features = self.features | if on { feature::LOG_ALL } else { 0 };
        self.must(code::SET_FEATURES, &features.to_ne_bytes(), &[])?;
        for (i, l) in (0..).zip(self.layouts()) {
            let body = if on { FrontEnd::logged_addresses(i, &l, l.used()) } else { FrontEnd::addresses(i, &l) };
            self.must(code::SET_VRING_ADDR, &body, &[])?;
        }
        Ok(())
    }

    /// The pages that were logged since this was asked last, by their numbers.
    pub fn take_logged(&self) -> Vec<u64> {
        let log = self.log.as_ref().expect("a log");
        let mut bytes = vec![0; (fstat(log).expect("log").st_size as u64 - LOG_OFFSET) as usize];
        rustix::io::pread(log, &mut bytes[..], LOG_OFFSET).expect("log");
        rustix::io::pwrite(log, &vec![0; bytes.len()], LOG_OFFSET).expect("log");
        let pages = bytes.iter().zip(0..).flat_map(|(b, i)| (0..8).filter(move |n| b >> n & 1 != 0).map(move |n| 8 * i + n));
        pages.collect()
    }

    /// What stands before and behind the log in its file, which is nobody's to write to.
    pub fn beside_log(&self) -> Vec<u8> {
        let log = self.log.as_ref().expect("a log");
        let mut bytes = vec![0; LOG_OFFSET as usize];
        rustix::io::pread(log, &mut bytes[..], 0).expect("log");
        bytes
    }

    /// Starts a ring where it stands.
    pub fn start_ring(&self, index: u32, base: u16) -> io::Result<()> {
        let layout = self.layouts()[index as usize];
        self.must(code::SET_VRING_NUM, &FrontEnd::pair(index, layout.size.into()), &[])?;
        self.must(code::SET_VRING_BASE, &FrontEnd::pair(index, base.into()), &[])?;
        self.must(code::SET_VRING_ADDR, &FrontEnd::addresses(index, &layout), &[])?;
        self.must(code::SET_VRING_CALL, &u64::from(index).to_ne_bytes(), &[self.calls[index as usize].as_fd()])?;
        let enable = || self.enable_ring(index, true);
        // What is sent by a ring that runs and is disabled is thrown away.
        if self.inflight.is_some() {
            enable()?;
        }
        self.must(code::SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[self.kicks[index as usize].as_fd()])?;
        enable()
    }

    /// Has frames go through a ring, or no longer.
    pub fn enable_ring(&self, index: u32, on: bool) -> io::Result<()> {
        self.must(code::SET_VRING_ENABLE, &FrontEnd::pair(index, on.into()), &[])
    }

    /// Stops a ring; the number of the next entry that the device would have looked at.
    pub fn stop_ring(&self, index: u32) -> io::Result<u16> {
        Ok((self.ask(code::GET_VRING_BASE, &FrontEnd::pair(index, 0), &[], 0)? >> 32) as u16)
    }

    /// All that a monitor does until the guest can receive and send.
    pub fn set_up(&mut self) -> io::Result<()> {
        self.negotiate()?;
        self.share_memory()?;
        self.begin_rings()
    }

    /// Starts all rings, with buffers to receive into.
    pub fn begin_rings(&mut self) -> io::Result<()> {
        for i in 0..2 * self.options.pairs as u32 {
            if i % 2 == 0 {
                self.queue(i).fill();
                self.queue(i).want_calls();
            }
            self.start_ring(i, 0)?;
        }
        Ok(())
    }

    /// Tells the device of what was offered, if it wants to know.
    pub fn kick(&mut self) {
        let wanted: Vec<bool> = self.queues().map(DriverQueue::wants_kick).collect();
        for (i, _) in wanted.into_iter().enumerate().filter(|(_, wanted)| *wanted) {
            self.kick_anyway(i);
        }
    }

    /// Tells the device, whether it wants to know or not.
    pub fn kick_anyway(&self, index: usize) {
        rustix::io::write(&self.kicks[index], &1u64.to_ne_bytes()).expect("kick");
    }

    /// Sends a frame behind a virtio-net header that asks for nothing. False if there is no room.
    pub fn transmit(&mut self, frame: &[u8]) -> bool {
        self.transmit_with(&[0; 12], frame)
    }

    /// Sends a frame behind a header.
    pub fn transmit_with(&mut self, header: &[u8; 12], frame: &[u8]) -> bool {
        self.transmit_by(0, header, frame)
    }

    /// Sends a frame by a pair of queues.
    pub fn transmit_by(&mut self, pair: u32, header: &[u8; 12], frame: &[u8]) -> bool {
        let queue = self.queue(2 * pair + 1);
        queue.reclaim();
        let sent = queue.send(&[header, frame].concat());
        self.kick();
        sent
    }

    /// The next frame that the guest has received, with its header.
    pub fn receive(&mut self) -> Option<([u8; 12], Vec<u8>)> {
        self.receive_by(0)
    }

    /// The next frame that the guest has received by a pair of queues.
    pub fn receive_by(&mut self, pair: u32) -> Option<([u8; 12], Vec<u8>)> {
        let queue = self.queue(2 * pair);
        let (head, len) = queue.used()?;
        let first = queue.read(head, len as usize);
        let mut chain = vec![head];
        let header: [u8; 12] = first[..12].try_into().expect("a header in the first buffer");
        let mut frame = first[12..].to_vec();
        for _ in 1..u16::from_le_bytes([header[10], header[11]]) {
            let (head, len) = queue.used().expect("all buffers of a frame at once");
            frame.extend(queue.read(head, len as usize));
            chain.push(head);
        }
        chain.into_iter().for_each(|n| queue.give(n));
        Some((header, frame))
    }

    /// Offers all free buffers to be received into.
    pub fn refill(&mut self) {
        self.queues().step_by(2).for_each(DriverQueue::fill);
        self.kick();
    }

    /// The descriptor that tells the device of a queue.
    pub fn kick_fd(&self, index: usize) -> BorrowedFd<'_> {
        self.kicks[index].as_fd()
    }

    /// The descriptor that says that a queue has something.
    pub fn call_fd(&self, index: usize) -> BorrowedFd<'_> {
        self.calls[index].as_fd()
    }

    /// Whether the guest was called for a queue, waiting for it; then it no longer is.
    pub fn called(&self, index: usize, wait: Duration) -> bool {
        let timeout = Timespec::try_from(wait).expect("time");
        let mut fds = [PollFd::new(&self.calls[index], PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).expect("poll") == 1 && rustix::io::read(&self.calls[index], &mut [0; 8][..]).is_ok()
    }

    /// The connection.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }
}
