//! The host's end of the demo's connections.

use super::stream::{PACE, PIECE, Pattern, verify_records};
use crate::sandbox::failure::{Failure, Status};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Bytes that were found right, both ways, of all connections or of the one that has moved least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verified {
    /// From the guest, by this process.
    pub(super) from_guest: u64,
    /// To the guest, by its program.
    pub(super) to_guest: u64,
}

/// A connection, as its threads know it.
#[derive(Debug, Default)]
struct Counts {
    from_guest: AtomicU64,
    to_guest: AtomicU64,
    sent: AtomicU64,
    /// Both its threads have ended, and nothing was wrong.
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Shared {
    connections: Mutex<Vec<Arc<Counts>>>,
    wrong: Mutex<Option<String>>,
    stop: AtomicBool,
}

/// A server at a port of the loopback that the system chose.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    shared: Arc<Shared>,
}

fn locked<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Server {
    /// Accepts `expected` connections.
    pub(super) fn start(expected: u64) -> Result<Server, Failure> {
        let fail = |e| Failure::os(Status::Resources, "cannot listen at the loopback", e);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(fail)?;
        let addr = listener.local_addr().map_err(fail)?;
        let shared = Arc::new(Shared::default());
        let ours = shared.clone();
        thread::spawn(move || {
            for _ in 0..expected {
                match listener.accept() {
                    Ok((c, _)) => ours.clone().serve(c),
                    Err(e) => ours.is_wrong(format!("cannot accept a connection: {e}")),
                }
            }
        });
        Ok(Server { addr, shared })
    }

    /// Has every stream to the guest end.
    pub(super) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }

    /// What has gone wrong, if anything.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match &*locked(&self.shared.wrong) {
            Some(what) => Err(Failure::new(Status::Internal, what.clone())),
            None => Ok(()),
        }
    }

    /// Connections that are there.
    pub(super) fn connections(&self) -> usize {
        locked(&self.shared.connections).len()
    }

    /// Connections that have ended in good order, all bytes verified.
    pub(super) fn ended(&self) -> usize {
        locked(&self.shared.connections).iter().filter(|c| c.ended.load(Ordering::Acquire)).count()
    }

    fn each(&self) -> Vec<Verified> {
        let read = |c: &Arc<Counts>| Verified {
            from_guest: c.from_guest.load(Ordering::Acquire),
            to_guest: c.to_guest.load(Ordering::Acquire),
        };
        locked(&self.shared.connections).iter().map(read).collect()
    }

    /// Of all connections together.
    pub(super) fn verified(&self) -> Verified {
        self.each().iter().fold(Verified::default(), |sum, v| Verified {
            from_guest: sum.from_guest + v.from_guest,
            to_guest: sum.to_guest + v.to_guest,
        })
    }

    /// A mark that every connection is to pass in both directions.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.each())
    }

    /// Whether every connection has moved by so many bytes each way.
    pub(super) fn is_past(&self, mark: &Mark, bytes: u64) -> bool {
        let now = self.each();
        now.len() == mark.0.len()
            && now.iter().zip(&mark.0).all(|(n, m)| n.from_guest >= m.from_guest + bytes && n.to_guest >= m.to_guest + bytes)
    }
}

/// How far each connection was.
#[derive(Debug)]
pub(super) struct Mark(Vec<Verified>);

impl Shared {
    fn is_wrong(&self, what: String) {
        locked(&self.wrong).get_or_insert(what);
    }

    fn serve(self: Arc<Self>, connection: TcpStream) {
        thread::spawn(move || {
            if let Err(e) = self.both_ways(&connection) {
                self.is_wrong(format!("a connection of the sandbox's: {e}"));
            }
        });
    }

    fn both_ways(&self, mut connection: &TcpStream) -> io::Result<()> {
        let mut hello = [0; 8];
        connection.read_exact(&mut hello)?;
        let n = u64::from_le_bytes(hello);
        let counts = Arc::new(Counts::default());
        locked(&self.connections).push(counts.clone());
        thread::scope(|s| {
            let sending = s.spawn(|| self.send(connection, Pattern::from_host(n), &counts));
            let received = verify_records(connection, Pattern::from_guest(n), |bytes, theirs| {
                counts.from_guest.store(bytes, Ordering::Release);
                counts.to_guest.store(theirs, Ordering::Release);
            });
            if received.is_err() {
                // The sender notices.
                let _ = connection.shutdown(Shutdown::Both);
            }
            received.and(sending.join().unwrap_or_else(|_| Err(io::Error::other("its sender has ended early"))))
        })?;
        let (sent, theirs) = (counts.sent.load(Ordering::Acquire), counts.to_guest.load(Ordering::Acquire));
        if sent != theirs {
            return Err(io::Error::other(format!("{sent} bytes were sent to it, it has verified {theirs}")));
        }
        counts.ended.store(true, Ordering::Release);
        Ok(())
    }

    fn send(&self, mut connection: &TcpStream, mut pattern: Pattern, counts: &Counts) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        while !self.stop.load(Ordering::Acquire) {
            pattern.fill(&mut piece);
            connection.write_all(&piece)?;
            counts.sent.fetch_add(PIECE as u64, Ordering::AcqRel);
            thread::sleep(PACE);
        }
        connection.shutdown(Shutdown::Write)
    }
}
