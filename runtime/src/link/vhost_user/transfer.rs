//! The network's state in the migration of its guest (protocol feature `DEVICE_STATE`): what the front end wants is handed on, and it is told what became
//! of that.
//!
//! It asks for the latter when the pipe has ended, and waits for the answer: nothing else is read from it before.

use super::message::{Code, Reply};
use super::session::SessionError;
use super::{Request, SESSION, VhostUserLink};
use crate::link::{Direction, LinkNews, Transfer};
use crate::slots::Slots;
use rustix::fs::{FileType, fstat};
use std::os::fd::OwnedFd;

/// Answer: done, no other descriptor than the one that came is to be used.
const ACCEPTED: u64 = 0x100;
/// Answer: that cannot be.
const REFUSED: u64 = 0x101;

/// How far what the front end wants is.
#[derive(Debug, Default)]
enum Stage {
    /// Nothing was asked for.
    #[default]
    None,
    /// It was not handed on yet.
    Wanted(Transfer),
    /// Somebody does it.
    UnderWay,
    /// Whether it was done.
    Done(bool),
}

/// What the front end wants done with the state.
#[derive(Debug, Default)]
pub(super) struct StateTransfer {
    stage: Stage,
    /// It waits to hear of the end.
    awaited: bool,
}

impl StateTransfer {
    pub(super) fn is_some(&self) -> bool {
        !matches!(self.stage, Stage::None)
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.awaited
    }

    fn is_under_way(&self) -> bool {
        matches!(self.stage, Stage::Wanted(_) | Stage::UnderWay)
    }

    /// What is wanted, if it was not handed on yet.
    pub(super) fn take(&mut self) -> Option<Transfer> {
        match std::mem::take(&mut self.stage) {
            Stage::Wanted(t) => {
                self.stage = Stage::UnderWay;
                Some(t)
            }
            other => {
                self.stage = other;
                None
            }
        }
    }
}

impl VhostUserLink {
    /// Answers a request about the state.
    pub(super) fn about_state(&mut self, code: u32, request: &Request, mut fds: Vec<OwnedFd>) -> Result<(), SessionError> {
        let answer = match request {
            Request::SetDeviceStateFd(direction) => match self.begin_transfer(*direction, fds.pop()) {
                Ok(()) => ACCEPTED,
                Err(why) => {
                    self.trouble(format_args!("the front end wants the state moved, which is refused: {why}"));
                    REFUSED
                }
            },
            _ if self.transfer.is_under_way() => {
                self.transfer.awaited = true;
                // What it says meanwhile is no reason to wake up.
                if let Some(s) = &self.session {
                    self.poll.remove(s.fd());
                }
                return Ok(());
            }
            _ => u64::from(!matches!(self.transfer.stage, Stage::Done(true))),
        };
        self.session.as_ref().map_or(Ok(()), |s| s.answer(&Reply::number(code, answer)))
    }

    fn begin_transfer(&mut self, direction: Option<Direction>, pipe: Option<OwnedFd>) -> Result<(), &'static str> {
        let direction = direction.ok_or("neither saved nor loaded with stopped rings is what it wants")?;
        let pipe = pipe.ok_or("there is no descriptor for it")?;
        if !self.device.can_move() {
            return Err("its rings run, or that was not agreed on");
        }
        if self.transfer.is_under_way() {
            return Err("it is moved already");
        }
        let kind = fstat(&pipe).map(|s| FileType::from_raw_mode(s.st_mode));
        if !matches!(kind, Ok(FileType::Fifo | FileType::Socket | FileType::RegularFile)) {
            return Err("the descriptor is no pipe");
        }
        self.transfer.stage = Stage::Wanted(Transfer { direction, pipe });
        self.news.push_back(LinkNews::Transfer);
        Ok(())
    }

    /// Tells the front end what became of what it wanted.
    pub(super) fn state_moved(&mut self, slots: &mut Slots, done: bool) {
        if !self.transfer.is_under_way() {
            return;
        }
        self.transfer.stage = Stage::Done(done);
        if !std::mem::take(&mut self.transfer.awaited) {
            return;
        }
        let Some(s) = &self.session else { return };
        let answered = s.answer(&Reply::number(Code::CheckDeviceState as u32, (!done).into()));
        let watched = self.poll.add(s.fd(), SESSION).map_err(SessionError::Os);
        if let Err(e) = answered.and(watched)
            && self.whole(|l| l.end_session(slots, &e)).is_err()
        {
            // The next call says that the link is gone.
            self.stopped = true;
            self.more.signal();
        }
    }
}
