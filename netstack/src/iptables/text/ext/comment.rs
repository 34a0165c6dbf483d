//! `comment`: means nothing to a packet.

use super::super::error::Fault;
use super::super::value::cut;
use super::{Extension, Given, Scope, quoted, value};
use crate::iptables::Match;

/// The kernel's field for a comment in bytes, with the end mark: one byte more is cut off, as there; more is refused.
const FIELD: usize = 256;

pub(super) static COMMENT: Extension<Match> =
    Extension { names: &["comment"], family: None, options: &[value(&["comment"])], build };

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let word = given.require("comment")?.value();
    if word.text.len() > FIELD {
        return Err(word.bad(format!("at most {FIELD} bytes of text")));
    }
    Ok(Match::Comment(cut(word.as_str(), FIELD - 1).to_owned()))
}

pub(super) fn print(text: &str, out: &mut String) {
    out.push_str(" -m comment --comment");
    quoted(out, text);
}
