//! The language of `ipset save` and `ipset restore`.
//!
//! [`Sets::restore`](super::Sets::restore) carries a text out on sets that are there: all of it, or, on an error, nothing.
//! [`Sets::print`](super::Sets::print) writes the canonical form: sets in their order, lists behind the others, elements in the order of their keys.
//! Names of hosts are not looked up.

mod create;
mod element;
mod icmp;
mod print;
mod restore;
mod words;

use super::Refused;

/// Longest comment of an element in bytes.
pub const MAX_COMMENT: usize = 255;

/// Whether an element may be commented so.
pub(super) fn is_comment(text: &str) -> bool {
    text.len() <= MAX_COMMENT && !text.contains(['"', '\n', '\r', '\0'])
}

/// Why a text of sets was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}{}", near(.word))]
pub struct SetError {
    /// Line, from 1.
    pub line: u32,
    /// Column of the first character of the word, in characters from 1.
    pub column: u32,
    /// The word that offends; empty if something is missing.
    pub word: String,
    /// What is wrong.
    pub what: SetFault,
}

fn near(word: &str) -> String {
    if word.is_empty() { String::new() } else { format!(" (at `{}`)", word.escape_debug().take(60).collect::<String>()) }
}

/// What is wrong with a text of sets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetFault {
    /// A command that there is not.
    #[error("expected a command: create, add, del, flush or destroy")]
    Command,
    /// `"` without its partner.
    #[error("the quote that begins here is not closed on this line")]
    OpenQuote,
    /// Something is missing.
    #[error("missing: {0}")]
    Missing(&'static str),
    /// A name that a set cannot have.
    #[error("a set's name has 1 to 31 bytes and no quotes")]
    Name,
    /// A type of Linux that there is not here, or none.
    #[error("the type must be hash:ip, hash:net, hash:ip,port, hash:net,port, bitmap:port or list:set")]
    Type,
    /// No option of this command and type.
    #[error("the type has no such option")]
    Option,
    /// An option given twice.
    #[error("this option may be given only once")]
    Repeated,
    /// An option that has no meaning here.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// A value that is none.
    #[error("bad value: expected {0}")]
    Value(&'static str),
    /// A set that there is already.
    #[error("there is a set of this name; with -exist it may be there if it is made alike")]
    SetExists,
    /// A set that there is not.
    #[error("there is no set of this name: create it before")]
    NoSet,
    /// More sets than there may be.
    #[error("more than {} sets", super::MAX_SETS)]
    TooManySets,
    /// A set that is a member of a list.
    #[error("the set is a member of the list {0}")]
    Member(String),
    /// A list as a member of a list.
    #[error("a list cannot be a member of a list")]
    ListInList,
    /// An element was not added.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// An element that is not there was to be deleted.
    #[error("the element is not in the set")]
    NoElement,
    /// An option for which the set was not made.
    #[error("the set was created without {0}")]
    Without(&'static str),
    /// An element outside of the range of its set.
    #[error("the port is outside of the range of the set")]
    Range,
    /// Ranges that stand for too many elements.
    #[error("the text stands for more than {} elements: hash:net has nets as single elements", restore::MAX_STEPS)]
    TooMany,
}
