//! `comment`: means nothing to a packet.

use super::super::error::Fault;
use super::{Extension, Given, Scope, quoted, value};
use crate::iptables::Match;

/// Longest comment in bytes: the kernel's field holds 256 with the end mark.
const MOST: usize = 255;

pub(super) static COMMENT: Extension<Match> =
    Extension { names: &["comment"], family: None, options: &[value(&["comment"])], build };

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let word = given.require("comment")?.value();
    if word.text.len() > MOST {
        return Err(word.bad(format!("at most {MOST} bytes of text")));
    }
    Ok(Match::Comment(word.text.clone().into_owned()))
}

pub(super) fn print(text: &str, out: &mut String) {
    out.push_str(" -m comment --comment");
    quoted(out, text);
}
