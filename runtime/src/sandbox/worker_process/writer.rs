//! Writing and reading images while the network goes on: a thread of the worker's, made before the worker confines itself.

use super::main::MAX_IMAGE;
use crate::checkpoint::known;
use crate::worker::Prepared;
use hibernet_snapshot::Image;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use vmm_sys_util::eventfd::EventFd;

/// Stack of the thread: it encodes, checks and copies, no more.
const STACK: usize = 256 << 10;

/// How often it is looked whether a job was given up whose reader does not read.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What the thread tells.
#[derive(Debug)]
pub(super) enum Written {
    /// So many bytes of so many are written.
    Part(u64, u64),
    /// All is written, or why not.
    Done(Result<u64, String>),
    /// An image was read, or why not.
    Read(Result<Box<Image<'static>>, String>),
}

#[derive(Debug)]
struct Job {
    work: Work,
    number: u64,
}

#[derive(Debug)]
enum Work {
    Write(Arc<Prepared>, Target),
    Read(Source),
}

/// Where an image goes. Who has given up does not wait for the reader of a pipe.
#[derive(Debug)]
struct Target {
    file: File,
    is_file: bool,
    given_up: Arc<AtomicBool>,
}

impl Write for Target {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        while !self.given_up.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
            match poll(&mut fds, Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {}
                // So much goes into a pipe that can be written to; files take more at a time.
                Ok(_) if fds[0].revents() == PollFlags::OUT && self.is_file => return self.file.write(buf),
                Ok(_) => return self.file.write(&buf[..buf.len().min(libc::PIPE_BUF)]),
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::Error::other("it was given up"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where an image comes from. Who has given up does not wait for the writer of a pipe.
#[derive(Debug)]
struct Source {
    file: File,
    given_up: Arc<AtomicBool>,
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !self.given_up.load(Ordering::Relaxed) {
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.file.read(buf),
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::Error::other("it was given up"))
    }
}

/// The thread, and what it is doing.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Sender<Job>,
    news: Receiver<(u64, Written)>,
    bell: EventFd,
    given_up: Arc<AtomicBool>,
    /// Of the job whose news are told; of one that was given up nobody wants to hear.
    number: u64,
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
            while let Ok(Job { work, number }) = work.recv() {
                let say = |news| {
                    // The other end is there as long as the process is.
                    let _ = tell.send((number, news));
                    let _ = ring.write(1);
                };
                match work {
                    Work::Write(prepared, mut target) => {
                        let given_up = target.given_up.clone();
                        let mut progress = |done, total| {
                            say(Written::Part(done, total));
                            if given_up.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                        };
                        let done = prepared.contents.write_to(&mut target, &mut progress);
                        drop((prepared, target));
                        say(Written::Done(done.map_err(|e| e.to_string())));
                    }
                    Work::Read(mut source) => {
                        let image = Image::read(&mut source, MAX_IMAGE, &known());
                        drop(source);
                        say(Written::Read(image.map(Box::new).map_err(|e| e.to_string())));
                    }
                }
            }
        })?;
        has_begun.recv().map_err(io::Error::other)?;
        Ok(Writer { jobs, news, bell, given_up: Arc::default(), number: 0 })
    }

    /// Readable when there are news.
    pub(super) fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Has an image written. One at a time.
    pub(super) fn write(&mut self, prepared: Arc<Prepared>, file: File) {
        self.given_up = Arc::default();
        let is_file = fstat(&file).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
        let target = Target { file, is_file, given_up: self.given_up.clone() };
        self.begin(Work::Write(prepared, target));
    }

    /// Has an image read.
    pub(super) fn read(&mut self, file: File) {
        self.given_up = Arc::default();
        self.begin(Work::Read(Source { file, given_up: self.given_up.clone() }));
    }

    fn begin(&mut self, work: Work) {
        self.number += 1;
        // The thread ends only with the process.
        let _ = self.jobs.send(Job { work, number: self.number });
    }

    /// Gives up what is being written.
    pub(super) fn give_up(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.number += 1;
    }

    /// What it has told since the last call.
    pub(super) fn news(&self) -> Vec<Written> {
        let _ = self.bell.read();
        self.news.try_iter().filter(|(n, _)| *n == self.number).map(|(_, news)| news).collect()
    }
}
