//! `mac`: the sender's link address.

use super::super::error::Fault;
use super::super::value as read;
use super::{Extension, Given, Scope, option_value, value};
use crate::iptables::{Inv, Match};
use crate::wire::Mac;

pub(super) static MAC: Extension<Match> =
    Extension { names: &["mac"], family: None, options: &[value(&["mac-source"]).not()], build };

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let used = given.require("mac-source")?;
    Ok(Match::Mac(Inv { not: used.not, value: read::mac(used.value())? }))
}

pub(super) fn print(mac: &Inv<Mac>, out: &mut String) {
    out.push_str(" -m mac");
    option_value(out, mac.not, "mac-source", mac.value);
}
