//! The language of rules: the text that `iptables-save` writes and `iptables-restore` reads.
//!
//! A text is read by [`restore()`] onto rules that are in force, or by [`parse`] onto none; it takes effect as a whole or not
//! at all, unlike there, where it is by table. [`print()`] writes the canonical form, [`diff()`] compares two rulesets. What is
//! not supported is refused by its name with the reason, never passed over.
//!
//! `lexer` makes words of lines, `options` finds what each word belongs to, `restore` carries the commands out, `ext` has
//! the matches and targets. Everything takes time linear in the length of a line.

mod diff;
mod error;
mod ext;
mod lexer;
pub(crate) mod names;
mod options;
mod print;
mod restore;
mod rule;
mod table;
mod value;

pub use diff::{Difference, diff};
pub use error::{ErrorKind, ParseError};
pub use print::{PrintOptions, print, print_rule};
pub(crate) use value::Shown;

pub use restore::{MAX_RULES, RestoreOptions, locate, parse, restore};
