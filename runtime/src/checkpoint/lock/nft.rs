//! The few nf_tables messages that a packet lock needs, over a socket of nfnetlink.
//!
//! Messages: linux/netfilter/nf_tables.h. Numbers in attributes are big-endian, those in headers are the machine's.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;
/// `NFPROTO_INET`: tables for both IPv4 and IPv6.
const INET: u8 = 1;
/// Marks attributes that hold attributes.
const NESTED: u16 = 0x8000;
/// Length of a message's header and of `struct nfgenmsg` behind it.
const HEAD: usize = 20;

/// Requests that change something, all or none of which is done.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where the message begins that is being written.
    begin: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut b = Batch { bytes: Vec::new(), begin: 0 };
        b.message(BATCH_BEGIN, 0, 0, SUBSYSTEM);
        b
    }

    fn message(&mut self, ty: u16, flags: u16, family: u8, resource: u16) {
        self.end_message();
        self.begin = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(ty.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        // Sequence number and sender.
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
    }

    /// Begins a message of nf_tables.
    pub(super) fn request(&mut self, message: u8, flags: u16) -> &mut Self {
        self.message(SUBSYSTEM << 8 | u16::from(message), flags, INET, 0);
        self
    }

    fn end_message(&mut self) {
        let len = (self.bytes.len() - self.begin) as u32;
        if let Some(place) = self.bytes.get_mut(self.begin..self.begin + 4) {
            place.copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// Adds an attribute.
    pub(super) fn bytes(&mut self, ty: u16, value: &[u8]) -> &mut Self {
        self.bytes.extend((4 + value.len() as u16).to_ne_bytes());
        self.bytes.extend(ty.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number.
    pub(super) fn word(&mut self, ty: u16, value: u32) -> &mut Self {
        self.bytes(ty, &value.to_be_bytes())
    }

    /// Adds a name.
    pub(super) fn name(&mut self, ty: u16, value: &str) -> &mut Self {
        self.bytes(ty, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds what `inner` adds.
    pub(super) fn nested(&mut self, ty: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((ty | NESTED).to_ne_bytes());
        inner(self);
        let len = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Has the message that is being written acknowledged.
    fn want_answer(&mut self) {
        let at = self.begin + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | ACK;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }
}

/// A connection to nf_tables in the network namespace of the calling thread.
#[derive(Debug)]
pub(super) struct Nft {
    socket: Socket,
}

impl Nft {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Nft { socket })
    }

    /// Does what a batch says, or nothing of it.
    pub(super) fn commit(&mut self, mut batch: Batch) -> io::Result<()> {
        batch.want_answer();
        batch.message(BATCH_END, 0, 0, SUBSYSTEM);
        batch.end_message();
        self.socket.send(&batch.bytes, 0)?;
        // Answers stand in the queue when the call returns: those of the messages that failed, then that of the last.
        let mut result = Ok(());
        self.answers(|ty, body| {
            if ty == NLMSG_ERROR && result.is_ok() {
                result = errno(body);
            }
        })?;
        result
    }

    /// Names of all tables for both families.
    pub(super) fn tables(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        self.dump(1, &[], |body| names.extend(attribute(body, 1).and_then(text)))?;
        Ok(names)
    }

    /// Whether a set has elements.
    pub(super) fn has_elements(&mut self, table: &str, set: &str) -> io::Result<bool> {
        let mut found = false;
        self.dump(13, &[(1, table), (2, set)], |body| {
            found |= attribute(body, 3).is_some_and(|list| !list.is_empty());
        })?;
        Ok(found)
    }

    fn dump(&mut self, message: u8, names: &[(u16, &str)], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut request = Batch { bytes: Vec::new(), begin: 0 };
        request.request(message, DUMP);
        for (ty, value) in names {
            request.name(*ty, value);
        }
        request.end_message();
        self.socket.send(&request.bytes, 0)?;
        let mut result = Ok(());
        let mut is_done = false;
        while !is_done {
            let (answer, _) = self.socket.recv_from_full()?;
            for (ty, body) in messages(&answer) {
                match ty {
                    NLMSG_DONE => is_done = true,
                    NLMSG_ERROR => (is_done, result) = (true, errno(body)),
                    _ => each(body.get(4..).unwrap_or_default()),
                }
            }
        }
        result
    }

    /// Hands all answers that are there to `each`.
    fn answers(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let (answer, _) = self.socket.recv_from_full()?;
        messages(&answer).for_each(|(ty, body)| each(ty, body));
        self.socket.set_non_blocking(true)?;
        while let Ok((answer, _)) = self.socket.recv_from_full() {
            messages(&answer).for_each(|(ty, body)| each(ty, body));
        }
        self.socket.set_non_blocking(false)
    }
}

/// Begins a message that makes something.
pub(super) fn make(batch: &mut Batch, message: u8) -> &mut Batch {
    batch.request(message, CREATE)
}

fn errno(body: &[u8]) -> io::Result<()> {
    match body.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(e) => Err(io::Error::from_raw_os_error(-e)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Type and body of every message.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = rest.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)? as usize;
        let m = rest.get(..len).filter(|m| m.len() >= HEAD - 4)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([m[4], m[5]]), &m[16..]))
    })
}

/// The value of an attribute.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *rest {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..len)?;
        if u16::from_ne_bytes([c, d]) & !NESTED == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_and_padded() {
        let mut b = Batch::new();
        b.request(0, 0).name(1, "abcd").nested(2, |b| {
            b.word(1, 7);
        });
        b.want_answer();
        b.end_message();
        let all: Vec<_> = messages(&b.bytes).collect();
        assert_eq!(all.iter().map(|(ty, body)| (*ty, body.len())).collect::<Vec<_>>(), [(16, 4), (0xa00, 4 + 12 + 12)]);
        let body = &all[1].1[4..];
        assert_eq!(attribute(body, 1).and_then(text).as_deref(), Some("abcd"));
        assert_eq!(attribute(body, 2).and_then(|inner| attribute(inner, 1)), Some(&[0, 0, 0, 7][..]));
        assert_eq!(attribute(body, 3), None);
    }

    #[test]
    fn cut_answers_end_quietly() {
        let mut b = Batch::new();
        b.request(0, 0).name(1, "abcd");
        b.end_message();
        for n in 0..b.bytes.len() {
            for (_, body) in messages(&b.bytes[..n]) {
                attribute(body.get(4..).unwrap_or_default(), 1);
            }
        }
    }
}
