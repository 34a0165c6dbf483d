//! A tee: every frame of a link, as it is, goes to a capture file that tcpdump and Wireshark read.
//!
//! The format is classic pcap with nanoseconds, link type Ethernet. Frames whose checksum or segmentation the link is yet to do
//! are written as they are, as tcpdump on the sender's side shows them.

use super::{Connection, Link, LinkError, LinkNews, LinkStats, MAX_FRAME, RxBatch, Transfer};
use crate::slots::Slots;
use hibernet_netstack::edge::{LinkInfo, TxError, TxFrame};
use slog::{Logger, warn};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// Magic number of a file with nanoseconds, in the byte order in which it is written.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: (u16, u16) = (2, 4);
const LINKTYPE_ETHERNET: u32 = 1;
/// Longest frame written; longer than any that a link carries.
const SNAPLEN: u32 = 262_144;
const _: () = assert!(MAX_FRAME < SNAPLEN as usize);

/// Length of a record's header.
const RECORD: usize = 16;

/// Bytes gathered before they are written although the batch goes on.
const BUFFER: usize = 256 * 1024;

/// A capture file. Records are gathered; [`Pcap::flush`] writes them, so a file holds whole records whenever nobody is writing.
struct Pcap {
    out: Box<dyn Write + Send>,
    buffer: Vec<u8>,
}

impl Pcap {
    fn new(mut out: Box<dyn Write + Send>) -> io::Result<Pcap> {
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC.to_le_bytes());
        header.extend(VERSION.0.to_le_bytes());
        header.extend(VERSION.1.to_le_bytes());
        // Time zone and accuracy: always zero.
        header.extend([0; 8]);
        header.extend(SNAPLEN.to_le_bytes());
        header.extend(LINKTYPE_ETHERNET.to_le_bytes());
        out.write_all(&header)?;
        Ok(Pcap::going_on(out))
    }

    fn going_on(out: Box<dyn Write + Send>) -> Pcap {
        Pcap { out, buffer: Vec::with_capacity(BUFFER) }
    }

    /// Adds a record of a frame that is in parts.
    fn record(&mut self, time: SystemTime, parts: [&[u8]; 2]) {
        // A clock before 1970 is shown as 1970.
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let len = (parts[0].len() + parts[1].len()) as u32;
        // Seconds wrap in 2106; the format has no more bits.
        for word in [time.as_secs() as u32, time.subsec_nanos(), len, len] {
            self.buffer.extend_from_slice(&word.to_le_bytes());
        }
        self.buffer.extend_from_slice(parts[0]);
        self.buffer.extend_from_slice(parts[1]);
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.out.write_all(&self.buffer).and_then(|()| self.out.flush());
        self.buffer.clear();
        written
    }
}

/// A link whose frames are also written to a capture file.
pub struct PcapLink<L> {
    inner: L,
    /// `None` after an error.
    pcap: Option<Pcap>,
    log: Logger,
}

impl<L: Link> PcapLink<L> {
    /// Starts a capture; writes the file's header at once. `out` must not block for long: the worker waits for it.
    pub fn new(inner: L, out: Box<dyn Write + Send>, log: Logger) -> io::Result<PcapLink<L>> {
        Ok(PcapLink { inner, pcap: Some(Pcap::new(out)?), log })
    }

    /// Goes on with a capture that another link has begun.
    pub fn going_on(inner: L, out: Box<dyn Write + Send>, log: Logger) -> PcapLink<L> {
        PcapLink { inner, pcap: Some(Pcap::going_on(out)), log }
    }

    /// Writes what was gathered. After an error the capture ends, the link goes on.
    fn write(&mut self) {
        if let Some(Err(e)) = self.pcap.as_mut().map(Pcap::flush) {
            warn!(self.log, "the capture ends: its file cannot be written"; "error" => %e);
            self.pcap = None;
        }
    }

    fn write_if_full(&mut self) {
        if self.pcap.as_ref().is_some_and(|p| p.buffer.len() > BUFFER - MAX_FRAME - RECORD) {
            self.write();
        }
    }
}

impl<L: Link> Link for PcapLink<L> {
    fn info(&self) -> LinkInfo {
        self.inner.info()
    }

    fn take_change(&mut self) -> bool {
        self.inner.take_change()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }

    fn recv_batch(&mut self, slots: &mut Slots, out: &mut RxBatch) -> Result<(), LinkError> {
        let before = out.len();
        let result = self.inner.recv_batch(slots, out);
        let now = SystemTime::now();
        for r in &out.frames()[before..] {
            if let Some(pcap) = &mut self.pcap {
                // What is captured is what is dealt with, also if the guest changes it meanwhile. Without a slot for that it is shown as empty.
                let bytes = slots.private(r.frame).map_or(&[][..], |p| slots.bytes(p));
                pcap.record(now, [bytes, &[]]);
            }
            self.write_if_full();
        }
        result
    }

    fn send(&mut self, slots: &mut Slots, frame: TxFrame<'_>) -> Result<(), TxError> {
        self.write_if_full();
        let mark = self.pcap.as_ref().map_or(0, |p| p.buffer.len());
        if let Some(pcap) = &mut self.pcap {
            pcap.record(SystemTime::now(), [frame.head, slots.bytes(frame.body)]);
        }
        let sent = self.inner.send(slots, frame);
        // A frame that was refused has not been on the link.
        if let (Err(_), Some(pcap)) = (sent, &mut self.pcap) {
            pcap.buffer.truncate(mark);
        }
        sent
    }

    fn flush(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        let sent = self.inner.flush(slots);
        self.write();
        sent
    }

    fn waits(&self) -> bool {
        self.inner.waits()
    }

    fn has_room(&self) -> bool {
        self.inner.has_room()
    }

    fn stop(&mut self, slots: &mut Slots) {
        self.write();
        self.inner.stop(slots);
    }

    fn stats(&self) -> LinkStats {
        self.inner.stats()
    }

    fn asks_for_all(&self) -> bool {
        self.inner.asks_for_all()
    }

    fn answer_peer(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        self.inner.answer_peer(slots)
    }

    fn take_news(&mut self) -> Option<LinkNews> {
        self.inner.take_news()
    }

    fn take_transfer(&mut self) -> Option<Transfer> {
        self.inner.take_transfer()
    }

    fn end_transfer(&mut self, slots: &mut Slots, done: bool) {
        self.inner.end_transfer(slots, done);
    }

    fn connection(&self, slots: &Slots) -> io::Result<Option<Connection>> {
        self.inner.connection(slots)
    }

    fn take_over(&mut self, slots: &mut Slots, connection: Connection) {
        self.inner.take_over(slots, connection);
    }
}

impl<L> std::fmt::Debug for PcapLink<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PcapLink").field("capturing", &self.pcap.is_some()).finish_non_exhaustive()
    }
}

impl<L> Drop for PcapLink<L> {
    fn drop(&mut self) {
        if let Some(pcap) = &mut self.pcap {
            // Nobody is left to be told.
            let _ = pcap.flush();
        }
    }
}
