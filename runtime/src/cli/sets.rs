//! `hibernet sets`: the sets of a running sandbox.

use super::print;
use crate::control::client::Client;
use crate::control::protocol::{Page, Request};
use crate::sandbox::failure::Failure;
use clap::Subcommand;

/// What to do with sets. They are given with rules: `--ipset FILE`.
#[derive(Debug, Subcommand)]
pub(super) enum SetsCommand {
    /// Print the sets, as `ipset save` does: elements sorted, time-outs as far as they are left
    Save {
        /// The sandbox
        name: String,
        /// Only this set
        set: Option<String>,
    },
}

pub(super) fn sets(command: SetsCommand) -> Result<u8, Failure> {
    let SetsCommand::Save { name, set } = command;
    let client = Client::new(&name)?;
    let mut from = 0;
    loop {
        let page: Page<String> = client.ask(&Request::SetsSave { set: set.clone(), from })?;
        print(&page.items.concat())?;
        match page.next {
            Some(next) => from = next,
            None => return Ok(0),
        }
    }
}
