//! The program in the demo's sandbox.

use super::stream::{PACE, Pattern, send_record, verify};
use crate::sandbox::failure::{Failure, Status, complain};
use clap::Args;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

#[derive(Debug, Args)]
pub(in crate::cli) struct DemoGuestArgs {
    /// Where the demo's server is
    server: SocketAddr,
    /// How many connections
    connections: u64,
}

/// Streams until the server has ended its side of every connection, or nobody is at standard input any more.
pub(in crate::cli) fn guest(args: &DemoGuestArgs) -> Result<u8, Failure> {
    // Whoever started the demo may be killed while the network sleeps: then nothing else tells.
    thread::spawn(|| {
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    stream(args)?;
    Ok(0)
}

/// The same, whoever is there.
pub(super) fn stream(args: &DemoGuestArgs) -> Result<(), Failure> {
    let fail = |n: u64, e: io::Error| Failure::new(Status::Internal, format!("in the sandbox: connection {n}: {e}"));
    let all: Vec<_> =
        (0..args.connections).map(|n| TcpStream::connect(args.server).map_err(|e| fail(n, e))).collect::<Result<_, _>>()?;
    thread::scope(|s| {
        for (n, connection) in (0..).zip(&all) {
            s.spawn(move || {
                if let Err(e) = both_ways(n, connection) {
                    // The others would go on for as long as the demo does.
                    complain(fail(n, e));
                    std::process::exit(1);
                }
            });
        }
    });
    Ok(())
}

fn both_ways(n: u64, mut connection: &TcpStream) -> io::Result<()> {
    connection.write_all(&n.to_le_bytes())?;
    let (verified, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|s| {
        let reading = s.spawn(|| {
            let done = verify(connection, Pattern::from_host(n), |bytes| verified.store(bytes, Ordering::Release));
            if done.is_err() {
                // The sender notices.
                let _ = connection.shutdown(Shutdown::Both);
            }
            ended.store(true, Ordering::Release);
            done
        });
        let sent = send(n, connection, &verified, &ended);
        let read = reading.join().unwrap_or_else(|_| Err(io::Error::other("its reader has ended early")));
        read.and(sent)
    })
}

/// Sends records until the other direction has ended; the last one says how much there was of that in all.
fn send(n: u64, connection: &TcpStream, verified: &AtomicU64, ended: &AtomicBool) -> io::Result<()> {
    let mut pattern = Pattern::from_guest(n);
    let mut record = 0;
    loop {
        let last = ended.load(Ordering::Acquire);
        send_record(connection, record, verified.load(Ordering::Acquire), &mut pattern)?;
        if last {
            return connection.shutdown(Shutdown::Write);
        }
        record += 1;
        thread::sleep(PACE);
    }
}
