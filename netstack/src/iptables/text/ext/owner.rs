//! `owner`: whose packets. Only the router's own have an owner.

use super::super::error::Fault;
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Opt, Scope, flag, option, option_value, push, value};
use crate::iptables::{Inv, Match};

pub(super) static OWNER: Extension<Match> = Extension {
    names: &["owner"],
    family: None,
    options: &[
        value(&["uid-owner"]).not(),
        value(&["gid-owner"]).not(),
        Opt { names: &["socket-exists"], values: 0, invert: true, refused: None },
        flag(&["suppl-groups"]).refuse("supplementary groups of a socket's owner are not known here"),
    ],
    build,
};

/// One identifier or a range with `-` or `:`. Of names only `root` is known: there is no user database here.
fn ids(word: &Word<'_>) -> Result<(u32, u32), Fault> {
    const LAST: u64 = u32::MAX as u64 - 1;
    let text = word.as_str();
    if text == "root" {
        return Ok((0, 0));
    }
    let one = |text: &str| read::number(text).filter(|n| *n <= LAST).map(|n| n as u32);
    let (first, last) = text.split_once(['-', ':']).unwrap_or((text, text));
    match (one(first), one(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(word.bad("the number of a user or group, or FIRST-LAST (names are not looked up)")),
    }
}

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    if given.uses.is_empty() {
        return Err(given.missing("--uid-owner, --gid-owner or --socket-exists"));
    }
    Ok(Match::Owner {
        uid: given.inv("uid-owner", ids)?,
        gid: given.inv("gid-owner", ids)?,
        socket: given.get("socket-exists").map(|u| !u.not),
    })
}

fn print_ids(name: &str, ids: &Option<Inv<(u32, u32)>>, out: &mut String) {
    if let Some(Inv { not, value: (first, last) }) = *ids {
        option_value(out, not, name, first);
        if first != last {
            push(out, format_args!("-{last}"));
        }
    }
}

pub(super) fn print(uid: &Option<Inv<(u32, u32)>>, gid: &Option<Inv<(u32, u32)>>, socket: Option<bool>, out: &mut String) {
    out.push_str(" -m owner");
    if let Some(exists) = socket {
        option(out, !exists, "socket-exists");
    }
    print_ids("uid-owner", uid, out);
    print_ids("gid-owner", gid, out);
}
