//! A virtual machine that moves, as its supervisor sees it: its monitor asks the worker, and we have what the worker lacks. While the
//! machine is on its way, nothing else can be done with its network.

use super::{Network, Task};
use crate::control::lifecycle::State;
use crate::link::Direction;
use crate::sandbox::carry;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::host::HostFds;
use crate::sandbox::worker_process::{FromWorker, ToWorker};
use crate::worker::{Mode, Prepare};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What those are told who ask for something meanwhile.
pub(super) const MOVING: &str = "its virtual machine is on its way to or from elsewhere";

impl Network {
    /// What the worker says of it.
    pub(super) fn moving(&mut self, message: FromWorker) -> Result<(), Failure> {
        let is_ours = matches!(self.task, Task::Move) || self.state == State::Moving;
        match message {
            FromWorker::Transfer(direction) => self.transfer(direction),
            // It was refused meanwhile.
            FromWorker::Stays(_) if !is_ours => Ok(()),
            FromWorker::Ports(config, udp) => {
                let (ports, failed) = HostFds::ports(&config, udp);
                failed
                    .iter()
                    .for_each(|e| complain(format_args!("warning: a virtual machine comes without a published port: {e}")));
                let indices = |list: &[(usize, OwnedFd)]| list.iter().map(|(i, _)| *i).collect();
                let fds: Vec<_> = ports.tcp.iter().chain(&ports.udp).map(|(_, fd)| fd.as_fd()).collect();
                self.tell(&ToWorker::Ports(indices(&ports.tcp), indices(&ports.udp)), &fds)
            }
            FromWorker::Moving(_) => {
                (self.task, self.state) = (Task::None, State::Moving);
                Ok(())
            }
            FromWorker::Here(_, config) => {
                (self.task, self.state) = (Task::None, State::Running);
                self.kit.plan.config = *config;
                self.relist = true;
                Ok(())
            }
            FromWorker::Stays(why) => {
                (self.task, self.state) = (Task::None, State::Running);
                complain(format_args!("warning: a virtual machine was to move, and did not: {why}"));
                Ok(())
            }
            m => Err(Failure::new(Status::WorkerDied, format!("the network worker says what it was not asked: {m:?}"))),
        }
    }

    /// A machine is to move. Nothing of its network that cannot come along keeps it, unless that was required.
    fn transfer(&mut self, direction: Direction) -> Result<(), Failure> {
        let refuse = match (&self.task, self.state) {
            (Task::None, _) if self.has_members() => Some("others have joined its network, which cannot move"),
            (Task::None, State::Running | State::Moving) => None,
            _ => Some("another request is being carried out"),
        };
        if let Some(why) = refuse {
            complain(format_args!("warning: a virtual machine is to move, which is refused: {why}"));
            return self.tell(&ToWorker::NoTransfer, &[]);
        }
        let carry = &self.kit.plan.carry;
        let helper = carry.start().map_err(|e| {
            let what = if direction == Direction::Save { "leaves" } else { "comes" };
            complain(format_args!("warning: a virtual machine {what}, its connections do not come along: {e}"));
        });
        let fds: Vec<BorrowedFd<'_>> = helper.iter().map(carry::RunningHelper::socket).collect();
        let message = match direction {
            Direction::Save => {
                let mode = if fds.is_empty() { Mode::Drop } else { Mode::Repair };
                let name = self.kit.plan.name.clone().unwrap_or_default();
                let (unlocked, require, compat) = (carry.unlocked(), carry.require, carry.compat);
                ToWorker::Save(Prepare { mode, unlocked, require, name, compat, ..Prepare::default() })
            }
            Direction::Load => ToWorker::Load,
        };
        self.task = Task::Move;
        self.tell(&message, &fds)
    }
}
