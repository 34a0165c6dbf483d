//! `hibernet pause` and `hibernet resume`.

use super::{print, print_json};
use crate::control::lifecycle::{Asking, Changed, Request};
use crate::sandbox::failure::Failure;
use clap::Args;
use serde_json::json;

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// The sandbox
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn pause(args: &NameArgs) -> Result<u8, Failure> {
    change(args, &Request::Pause)
}

pub(super) fn resume(args: &NameArgs) -> Result<u8, Failure> {
    change(args, &Request::Resume)
}

fn change(NameArgs { name, json }: &NameArgs, request: &Request) -> Result<u8, Failure> {
    let Changed { state, changed } = Asking::new(name, request)?.answer()?;
    if *json {
        return print_json(&json!({ "name": name, "state": state, "changed": changed }));
    }
    let already = if changed { "" } else { "already " };
    print(&format!("{name} is {already}{state}\n"))
}
