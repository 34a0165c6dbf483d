//! What can be wrong with a text of rules.

use std::fmt::{self, Display};

/// Why a text of rules was refused, and where. Nothing of the text is in force then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {kind}{}", near(.word))]
pub struct ParseError {
    /// Line, from 1.
    pub line: u32,
    /// Column of the first character of the word, in characters from 1.
    pub column: u32,
    /// The word that offends; empty if something is missing.
    pub word: String,
    /// What is wrong.
    pub kind: ErrorKind,
}

fn near(word: &str) -> String {
    if word.is_empty() { String::new() } else { format!(" (at `{}`)", Shown(word)) }
}

impl ParseError {
    /// The exit status of `iptables-restore` for such an error: 2 if the text itself is wrong, 1 if it asks for
    /// something that cannot be.
    pub fn exit_code(&self) -> i32 {
        if self.kind.is_semantic() { 1 } else { 2 }
    }
}

/// What is wrong with a text of rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// The last line has no end.
    #[error("the last line does not end in a newline: add one")]
    NoFinalNewline,
    /// Line ends of another system.
    #[error("the line ends in CR LF: convert the file to Unix line ends")]
    CarriageReturn,
    /// A NUL character.
    #[error("a NUL character: this is not a text")]
    Nul,
    /// `"` without its partner.
    #[error("the quote that begins here is not closed on this line")]
    OpenQuote,
    /// A line before the first table, or after COMMIT.
    #[error("expected a table (`*filter`) before this line")]
    OutsideTable,
    /// A table begins inside another.
    #[error("expected COMMIT before the next table")]
    NoCommit,
    /// The end of the text inside a table.
    #[error("the text ends inside a table: COMMIT expected")]
    EndInTable,
    /// `COMMIT` with something after it.
    #[error("COMMIT must stand alone on its line")]
    BadCommit,
    /// A table that does not exist.
    #[error("no such table: expected raw, mangle, nat, filter or security")]
    UnknownTable,
    /// A word that is neither an option nor the value of one.
    #[error("unexpected word; a value with blanks needs quotes")]
    Stray,
    /// An option nobody knows here.
    #[error("unknown option{}", .0.as_ref().map(|h| format!("; {h}")).unwrap_or_default())]
    UnknownOption(Option<String>),
    /// A shortened option that could be several.
    #[error("this short form could be {0} or {1}: write it in full")]
    Ambiguous(&'static str, &'static str),
    /// An option without its value.
    #[error("this option needs a value")]
    NeedsValue,
    /// A value given to an option that takes none.
    #[error("this option takes no value")]
    NoValue,
    /// An option given twice.
    #[error("this option may be given only once")]
    Repeated,
    /// `!` where it may not be.
    #[error("`!` may not stand before this")]
    NotInvertible,
    /// `!` with nothing after it, or twice.
    #[error("`!` must stand once, right before the option that it inverts")]
    BadInversion,
    /// Two options that exclude each other, or one that needs another.
    #[error("{0}")]
    Combination(String),
    /// A value that is none.
    #[error("bad value: expected {0}")]
    BadValue(String),
    /// An option that is missing.
    #[error("missing: {0}")]
    Missing(String),
    /// No command on the line.
    #[error("expected a command: -A, -I, -R, -D, -C, -N, -X, -F, -Z, -P or -E")]
    NoCommand,
    /// More than one command on the line.
    #[error("only one command can stand on a line")]
    TwoCommands,
    /// A match that does not exist.
    #[error("no such match")]
    UnknownMatch,
    /// A target that does not exist, and no chain has the name.
    #[error("no such target, and no chain of this name in the table")]
    UnknownTarget,
    /// A match, target or option that exists in Linux, but not here.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What, by name.
        what: String,
        /// Why.
        reason: String,
    },
    /// A name that a chain cannot have.
    #[error("bad chain name: {0}")]
    BadChainName(&'static str),
    /// A chain that is declared a second time.
    #[error("the chain is declared twice, or was there before")]
    DeclaredTwice,
    /// A chain that exists.
    #[error("the chain exists already")]
    ChainExists,
    /// A chain that does not exist.
    #[error("no chain of this name in the table")]
    NoSuchChain,
    /// A built-in chain, where a user's is needed.
    #[error("this chain is built in")]
    BuiltIn,
    /// A chain with rules, which cannot be deleted.
    #[error("the chain still has rules: flush it first")]
    ChainNotEmpty,
    /// A chain to which rules lead.
    #[error("rules still lead to the chain: {0}")]
    ChainInUse(u32),
    /// A policy that cannot be.
    #[error("bad policy: expected ACCEPT or DROP for a built-in chain, `-` for one of your own")]
    BadPolicy,
    /// A rule number with no rule.
    #[error("the chain has {0} rules")]
    NoSuchRule(usize),
    /// `-D` or `-C` of a rule that is not there.
    #[error("the chain has no such rule")]
    RuleNotFound,
    /// More rules than there may be.
    #[error("more than {0} rules")]
    TooMany(usize),
}

impl ErrorKind {
    fn is_semantic(&self) -> bool {
        use ErrorKind::*;
        matches!(
            self,
            OutsideTable
                | EndInTable
                | NoSuchChain
                | ChainExists
                | BuiltIn
                | ChainNotEmpty
                | ChainInUse(_)
                | BadPolicy
                | NoSuchRule(_)
                | RuleNotFound
                | TooMany(_)
        )
    }
}

/// A word as it may be shown to people: no control characters, not longer than a line.
struct Shown<'a>(&'a str);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 60;
        for c in self.0.chars().take(MOST) {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        if self.0.chars().nth(MOST).is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// A fault at a word, before the line is known.
#[derive(Debug)]
pub(super) struct Fault {
    pub column: u32,
    pub word: String,
    pub kind: ErrorKind,
}

impl Fault {
    pub fn on_line(self, line: u32) -> ParseError {
        ParseError { line, column: self.column, word: self.word, kind: self.kind }
    }
}
