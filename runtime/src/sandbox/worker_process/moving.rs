//! A virtual machine that moves, in the worker's process: the monitor's wish goes to the supervisor, who has what it takes; the image goes through the
//! thread that writes and reads them.

use super::main::Served;
use super::messages::{FromWorker, ToWorker};
use super::writer::Written;
use crate::checkpoint::helper::Helper;
use crate::checkpoint::report::FreezeReport;
use crate::link::Transfer;
use crate::sandbox::failure::Failure;
use crate::worker::{Moved, Ports, Prepare, RulesSetup, WantedPorts};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Move {
    /// Where the image goes or comes from.
    pipe: Option<OwnedFd>,
    /// The freeze whose image is being written into it.
    report: Option<Box<FreezeReport>>,
    /// Who switches the repair mode of sockets, while an image is read.
    helper: Option<Helper>,
    /// The thread is at it.
    is_under_way: bool,
    /// It was read, and waits for ports.
    is_loaded: bool,
    /// Rules that take the place of those of a machine that comes.
    rules: RulesSetup,
    /// Flows of a machine that comes that must go on, in percent; else it does not come.
    require: u8,
}

impl Move {
    /// Of none.
    pub(super) fn new(rules: RulesSetup, require: u8) -> Move {
        Move { rules, require, ..Move::default() }
    }
}

impl Served<'_> {
    /// Looks whether a machine moves, or has.
    pub(super) fn follow_move(&mut self) -> Result<(), Failure> {
        if let Some(moved) = self.worker()?.take_moved() {
            let message = match moved {
                Moved::Away => FromWorker::Moving(self.moving.report.take()),
                Moved::Here(report) => {
                    let config = self.worker()?.stack().config().clone();
                    FromWorker::Here(report, Box::new(config))
                }
                Moved::Stayed => FromWorker::Stays("its machine runs here, or its monitor has left".into()),
            };
            self.end_move();
            self.channel.send(&message, &[])?;
            self.ask_for_ports()?;
        }
        if let Some(Transfer { direction, pipe }) = self.worker()?.take_transfer() {
            self.moving.pipe = Some(pipe);
            self.channel.send(&FromWorker::Transfer(direction), &[])?;
        }
        Ok(())
    }

    /// Asks for sockets of published ports if there are to be some; whether that is so.
    fn ask_for_ports(&mut self) -> Result<bool, Failure> {
        let Some(WantedPorts { config, udp }) = self.worker()?.take_wanted_ports() else { return Ok(false) };
        self.channel.send(&FromWorker::Ports(Box::new(config), udp), &[])?;
        Ok(true)
    }

    fn end_move(&mut self) {
        if std::mem::take(&mut self.moving.is_under_way) {
            self.writer.give_up();
        }
        (self.moving.pipe, self.moving.report, self.moving.helper, self.moving.is_loaded) = (None, None, None, false);
    }

    /// What the supervisor says of a machine that is to move.
    pub(super) fn obey_moving(&mut self, message: ToWorker, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let mut fds = fds.into_iter();
        match message {
            ToWorker::Save(how) => self.save(&how, fds.next().map(Helper::from_socket)),
            ToWorker::Ports(tcp, udp) => {
                let tcp = tcp.into_iter().zip(&mut fds).collect();
                let udp = udp.into_iter().zip(fds).collect();
                self.worker()?.supply_ports(Ports { tcp, udp });
                if std::mem::take(&mut self.moving.is_loaded) {
                    self.channel.send(&FromWorker::Moving(None), &[])?;
                }
                Ok(())
            }
            ToWorker::Load => {
                let helper = fds.next().map(Helper::from_socket);
                if let Some(pipe) = self.moving.pipe.take() {
                    (self.moving.helper, self.moving.is_under_way) = (helper, true);
                    self.writer.read(File::from(pipe));
                    return Ok(());
                }
                self.stays("it was given up".into())
            }
            // It was refused.
            _ => {
                self.end_move();
                self.worker()?.stay();
                Ok(())
            }
        }
    }

    fn save(&mut self, how: &Prepare, helper: Option<Helper>) -> Result<(), Failure> {
        let Some(copy) = self.moving.pipe.as_ref().map(OwnedFd::try_clone) else {
            return self.stays("it was given up".into());
        };
        let copy = match copy {
            Ok(fd) => fd,
            Err(e) => return self.stays(format!("its pipe cannot be kept: {e}")),
        };
        match self.worker()?.prepare_to_move(how, helper) {
            Ok(prepared) => {
                (self.moving.report, self.moving.is_under_way) = (Some(Box::new(prepared.report.clone())), true);
                // Ours stays open until the sockets are let go of: its end tells that they are.
                self.writer.write(Arc::new(prepared), File::from(copy));
                Ok(())
            }
            Err(e) => self.stays(e.to_string()),
        }
    }

    /// The thread says something about a machine's image; what is about another one comes back.
    pub(super) fn image_moved(&mut self, news: Written) -> Result<Option<Written>, Failure> {
        if !self.moving.is_under_way {
            return Ok(Some(news));
        }
        match news {
            Written::Part(..) => return Ok(None),
            Written::Done(Ok(_)) => {
                self.moving.is_under_way = false;
                let Some(pipe) = self.moving.pipe.take() else { return Ok(None) };
                if let Err(e) = self.worker()?.depart(pipe) {
                    self.stays(e.to_string())?;
                }
            }
            Written::Done(Err(why)) => self.stays(format!("its image cannot be written: {why}"))?,
            Written::Read(Ok(image)) => {
                self.moving.is_under_way = false;
                let (rules, helper) = (self.moving.rules.clone(), self.moving.helper.take());
                let require = self.moving.require;
                match self.worker()?.expect(&image, rules, helper, require) {
                    Ok(()) if self.ask_for_ports()? => self.moving.is_loaded = true,
                    Ok(()) => self.channel.send(&FromWorker::Moving(None), &[])?,
                    Err(e) => self.stays(format!("its image cannot be loaded: {e}"))?,
                }
            }
            Written::Read(Err(why)) => self.stays(format!("its image cannot be loaded: {why}"))?,
        }
        Ok(None)
    }

    /// Nothing comes of it.
    fn stays(&mut self, why: String) -> Result<(), Failure> {
        self.end_move();
        self.worker()?.stay();
        self.channel.send(&FromWorker::Stays(why), &[])
    }
}
