//! `hibernet pause`, `hibernet resume` and `hibernet upgrade`.

use super::{print, print_json};
use crate::checkpoint::report::Outcome;
use crate::control::lifecycle::{Asking, Changed, Request, Upgraded};
use crate::sandbox::failure::{Failure, Status};
use clap::Args;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// The sandbox
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn pause(args: &NameArgs) -> Result<u8, Failure> {
    change(args, &Request::Pause {})
}

pub(super) fn resume(args: &NameArgs) -> Result<u8, Failure> {
    change(args, &Request::Resume {})
}

fn change(NameArgs { name, json }: &NameArgs, request: &Request) -> Result<u8, Failure> {
    let Changed { state, changed } = Asking::new(name, request, &[])?.answer()?;
    if *json {
        return print_json(&json!({ "name": name, "state": state, "changed": changed }));
    }
    let already = if changed { "" } else { "already " };
    print(&format!("{name} is {already}{state}\n"))
}

/// The program that this process executes.
const THIS: &str = "/proc/self/exe";

#[derive(Debug, Args)]
pub(super) struct UpgradeArgs {
    /// The sandbox
    name: String,
    /// The program to be put in place [default: this one]
    #[arg(long, value_name = "PATH", default_value = THIS, hide_default_value = true)]
    binary: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn upgrade(UpgradeArgs { name, binary, json }: &UpgradeArgs) -> Result<u8, Failure> {
    let program =
        File::open(binary).map_err(|e| Failure::os(Status::File, format_args!("cannot open {}", binary.display()), e))?;
    let mut asking = Asking::new(name, &Request::Upgrade {}, &[program.as_fd()])?;
    asking.be_patient();
    while asking.event()?.is_some() {}
    let done: Upgraded = asking.answer().map_err(|e| match e.status {
        Status::Internal if binary.as_os_str() != THIS => {
            Failure::new(e.status, format!("{e}; is {} a hibernet for this machine?", binary.display()))
        }
        _ => e,
    })?;
    if *json {
        return print_json(&done);
    }
    let (resumed, all) = (done.thawed.count(Outcome::Resumed), done.thawed.flows.len());
    print(&format!("{name} is served by the new program; {resumed} of {all} flows go on\n"))
}
