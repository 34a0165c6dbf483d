//! Writing images while the network goes on: a thread of the worker's, made before the worker confines itself.

use crate::worker::Prepared;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use vmm_sys_util::eventfd::EventFd;

/// Stack of the thread: it encodes and copies, no more.
const STACK: usize = 256 << 10;

/// What the thread tells.
#[derive(Debug)]
pub(super) enum Written {
    /// So many bytes of so many are written.
    Part(u64, u64),
    /// All is written, or why not.
    Done(Result<u64, String>),
}

#[derive(Debug)]
struct Job {
    number: u64,
    prepared: Arc<Prepared>,
    file: File,
    given_up: Arc<AtomicBool>,
}

/// The thread, and what it is doing.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Sender<Job>,
    /// With the number of the image.
    news: Receiver<(u64, Written)>,
    /// Of the image that is wanted.
    number: u64,
    bell: EventFd,
    given_up: Arc<AtomicBool>,
}

impl Writer {
    /// Starts the thread. When this returns, it has made all system calls of a thread's beginning.
    pub(super) fn start() -> io::Result<Writer> {
        let (jobs, work) = channel::<Job>();
        let (begun, has_begun) = channel();
        let (tell, news) = channel();
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let ring = bell.try_clone()?;
        thread::Builder::new().name("image".into()).stack_size(STACK).spawn(move || {
            let _ = begun.send(());
            while let Ok(Job { number, prepared, mut file, given_up }) = work.recv() {
                let say = |news| {
                    // The other end is there as long as the process is.
                    let _ = tell.send((number, news));
                    let _ = ring.write(1);
                };
                let mut progress = |done, total| {
                    say(Written::Part(done, total));
                    if given_up.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let done = prepared.contents.write_to(&mut file, &mut progress);
                drop(file);
                say(Written::Done(done.map_err(|e| e.to_string())));
            }
        })?;
        has_begun.recv().map_err(io::Error::other)?;
        Ok(Writer { jobs, news, number: 0, bell, given_up: Arc::default() })
    }

    /// Readable when there are news.
    pub(super) fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Has an image written. One at a time.
    pub(super) fn write(&mut self, prepared: Arc<Prepared>, file: File) {
        self.given_up = Arc::default();
        self.number += 1;
        // The thread ends only with the process.
        let _ = self.jobs.send(Job { number: self.number, prepared, file, given_up: self.given_up.clone() });
    }

    /// Gives up what is being written, and hears no more of it.
    pub(super) fn give_up(&mut self) {
        self.number += 1;
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// What it has told since the last call.
    pub(super) fn news(&self) -> Vec<Written> {
        let _ = self.bell.read();
        self.news.try_iter().filter(|(number, _)| *number == self.number).map(|(_, news)| news).collect()
    }
}
