//! One client of a control socket, as its server sees it: nothing here waits, and what is held is bounded.

use super::protocol::MAX_REQUEST;
use hibernet_netstack::Time;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Bytes read or written for one client before others get their turn.
const TURN: usize = 256 << 10;
/// Bytes read with one call.
const CHUNK: usize = 16 << 10;
/// How long a client may take to ask.
const TIME_TO_ASK: Duration = Duration::from_secs(5);
/// How long a client may take to take the answer.
const TIME_TO_READ: Duration = Duration::from_secs(10);

/// A client: it is asking, or being answered.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    state: State,
    deadline: Time,
}

#[derive(Debug)]
enum State {
    Asking(Vec<u8>),
    Answered { bytes: Vec<u8>, sent: usize },
}

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The request is not complete yet.
    Partly,
    /// This is the request.
    Whole(Vec<u8>),
    /// The request is longer than any.
    TooLong,
    /// There is no memory for it at present.
    NoRoom,
    /// The client left.
    Gone,
}

/// What came of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The client has not taken everything yet.
    Partly,
    /// Nothing more is to be done: everything was sent, or the client left.
    Done,
}

impl Connection {
    /// A client that has just come.
    pub(crate) fn new(stream: UnixStream, now: Time) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, state: State::Asking(Vec::new()), deadline: now + TIME_TO_ASK })
    }

    /// When it has taken too long.
    pub(crate) fn deadline(&self) -> Time {
        self.deadline
    }

    /// Whether it is being answered.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.state, State::Answered { .. })
    }

    /// Bytes held for it.
    pub(crate) fn held(&self) -> usize {
        match &self.state {
            State::Asking(b) => b.capacity(),
            State::Answered { bytes, .. } => bytes.capacity(),
        }
    }

    /// Reads what there is of the request, which may be held within `room` bytes.
    pub(crate) fn read(&mut self, room: usize) -> Asked {
        let State::Asking(request) = &mut self.state else { return Asked::Partly };
        let mut chunk = [0; CHUNK];
        for _ in 0..TURN / CHUNK {
            let n = match self.stream.read(&mut chunk) {
                // Whoever says no more has said everything.
                Ok(0) if request.is_empty() => return Asked::Gone,
                Ok(0) => return Asked::Whole(std::mem::take(request)),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Asked::Partly,
                Err(_) => return Asked::Gone,
            };
            let new = &chunk[..n];
            let line = new.iter().position(|b| *b == b'\n');
            let new = &new[..line.unwrap_or(n)];
            if request.len() + new.len() > MAX_REQUEST {
                return Asked::TooLong;
            }
            if request.len() + new.len() > room {
                return Asked::NoRoom;
            }
            request.extend_from_slice(new);
            if line.is_some() {
                return Asked::Whole(std::mem::take(request));
            }
        }
        Asked::Partly
    }

    /// Begins to answer.
    pub(crate) fn answer(&mut self, bytes: Vec<u8>, now: Time) {
        self.state = State::Answered { bytes, sent: 0 };
        self.deadline = now + TIME_TO_READ;
    }

    /// Sends what the client takes of the answer.
    pub(crate) fn write(&mut self) -> Sent {
        let State::Answered { bytes, sent } = &mut self.state else { return Sent::Partly };
        let end = bytes.len().min(*sent + TURN);
        while *sent < end {
            match self.stream.write(&bytes[*sent..end]) {
                Ok(n) => *sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Sent::Partly,
                Err(_) => return Sent::Done,
            }
        }
        if *sent == bytes.len() { Sent::Done } else { Sent::Partly }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours, Time::ZERO).unwrap(), theirs)
    }

    #[test]
    fn a_request_is_a_line_however_it_comes() {
        let (mut c, mut client) = pair();
        assert_eq!(c.read(100), Asked::Partly);
        client.write_all(b"{\"a\"").unwrap();
        assert_eq!(c.read(100), Asked::Partly);
        client.write_all(b":1}\nmore").unwrap();
        assert_eq!(c.read(100), Asked::Whole(b"{\"a\":1}".to_vec()));

        let (mut c, mut client) = pair();
        client.write_all(b"x").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(c.read(100), Asked::Whole(b"x".to_vec()));

        let (mut c, client) = pair();
        drop(client);
        assert_eq!(c.read(100), Asked::Gone);
    }

    /// Bytes without end: as long as the limit lets, then no more.
    #[test]
    fn what_is_held_is_bounded() {
        let (mut c, mut client) = pair();
        let endless = vec![b'x'; 64 << 10];
        client.set_nonblocking(true).unwrap();
        let mut written = 0;
        let end = loop {
            if let Ok(n) = client.write(&endless) {
                written += n;
            }
            assert!(written <= 2 * MAX_REQUEST, "it is read without end");
            assert!(c.held() <= 2 * MAX_REQUEST);
            match c.read(usize::MAX) {
                Asked::Partly => {}
                other => break other,
            }
        };
        assert_eq!(end, Asked::TooLong);

        let (mut c, mut client) = pair();
        client.write_all(&[b'x'; 1000]).unwrap();
        assert_eq!(c.read(999), Asked::NoRoom);
    }

    #[test]
    fn an_answer_waits_for_its_reader() {
        let (mut c, mut client) = pair();
        client.write_all(b"x\n").unwrap();
        assert_eq!(c.read(100), Asked::Whole(b"x".to_vec()));
        let answer: Vec<u8> = (0..3 << 20).map(|i| (i % 251) as u8).collect();
        c.answer(answer.clone(), Time::ZERO);
        assert!(c.is_answered());
        assert_eq!(c.deadline(), Time::ZERO + TIME_TO_READ);
        assert_eq!(c.write(), Sent::Partly);
        let mut got = Vec::new();
        let mut buffer = [0; 65536];
        while c.write() == Sent::Partly {
            let n = client.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..n]);
        }
        drop(c);
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, answer);

        let (mut c, client) = pair();
        c.answer(answer, Time::ZERO);
        drop(client);
        assert_eq!(c.write(), Sent::Done);
    }
}
