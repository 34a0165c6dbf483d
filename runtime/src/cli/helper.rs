//! Options of commands that carry sockets over.

use super::checkpoint::{level, percent};
use crate::checkpoint::lock::LockMode;
use crate::sandbox::carry::{Carry, RunningHelper};
use crate::sandbox::failure::Failure;
use clap::Args;
use std::path::PathBuf;

/// For `checkpoint` and `restore`.
#[derive(Debug, Args)]
pub(super) struct RepairOptions {
    /// With --repair: have this `hibernet repair-helper` switch the repair mode [default: do it ourselves]
    #[arg(long, value_name = "SOCKET", requires = "repair", help_heading = "Carrying sockets over")]
    repair_helper: Option<PathBuf>,
    /// With --repair: keep peers from hearing that nobody is there (auto: if it can be done)
    #[arg(long, value_name = "HOW", default_value = "auto", requires = "repair", help_heading = "Carrying sockets over")]
    lock: LockMode,
}

impl RepairOptions {
    /// What they say.
    pub(super) fn carry(&self) -> Carry {
        Carry { helper: self.repair_helper.clone(), lock: self.lock, ..Carry::default() }
    }

    /// Connects to the helper that was named, or starts one.
    pub(super) fn start(&self) -> Result<RunningHelper, Failure> {
        self.carry().start().map_err(|e| Failure::new(e.status, format!("--repair: {}", e.message)))
    }
}

/// For `attach`: of a virtual machine that its monitor moves.
#[derive(Debug, Args)]
pub(super) struct MoveOptions {
    /// Have this `hibernet repair-helper` take connections along when the machine moves [default: do it ourselves, if we may]
    #[arg(long, value_name = "SOCKET", requires = "guest_memory", help_heading = "Moving (--vhost-user)")]
    repair_helper: Option<PathBuf>,
    /// Keep peers from hearing that nobody is there while the machine is on its way: auto (if it can be done), nft, none
    #[arg(long, value_name = "HOW", default_value = "auto", requires = "guest_memory", help_heading = "Moving (--vhost-user)")]
    lock: LockMode,
    /// Flows that must come along, `all` or N%; else the machine does not move [default: none has to]
    #[arg(long, value_name = "all|N%", value_parser = percent, requires = "guest_memory", help_heading = "Moving (--vhost-user)")]
    require: Option<u8>,
    /// Have the network move as an image of this level, for an older hibernet
    #[arg(long, value_name = "LEVEL", value_parser = level(), requires = "guest_memory", help_heading = "Moving (--vhost-user)")]
    compat: Option<u16>,
}

impl MoveOptions {
    /// What they say.
    pub(super) fn carry(self) -> Carry {
        Carry { helper: self.repair_helper, lock: self.lock, require: self.require.unwrap_or(0), compat: self.compat }
    }
}
