//! Options of a line: which word belongs to what, by the rules of `getopt_long` as `iptables` uses it.

mod walker;

use super::error::Fault;
use super::ext::{Extension, Given};
use super::lexer::Word;
use crate::iptables::{Counters, Family, Inv, Match, Target};
use walker::Walker;

/// What a line tells to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Append,
    Insert,
    Replace,
    Delete,
    Check,
    New,
    DeleteChain,
    Flush,
    Zero,
    Policy,
    Rename,
}

/// A line, taken apart.
pub(super) struct Line<'a> {
    pub verb: Verb,
    /// The word of the command.
    pub word: Word<'a>,
    pub chain: Option<Word<'a>>,
    /// A rule's number, from 1.
    pub number: Option<(Word<'a>, usize)>,
    /// The policy, or the new name.
    pub second: Option<Word<'a>>,
    pub rule: Spec<'a>,
}

/// The description of a rule.
#[derive(Default)]
pub(super) struct Spec<'a> {
    /// The first option of a rule on the line.
    pub first: Option<Word<'a>>,
    pub src: Option<Inv<Word<'a>>>,
    pub dst: Option<Inv<Word<'a>>>,
    pub input: Option<(Word<'a>, Inv<Word<'a>>)>,
    pub output: Option<(Word<'a>, Inv<Word<'a>>)>,
    pub proto: Option<Inv<u8>>,
    pub fragment: Option<bool>,
    pub counters: Option<Counters>,
    pub matches: Vec<(&'static Extension<Match>, Given<'a>)>,
    pub target: Option<Jump<'a>>,
}

/// `-j` or `-g`.
pub(super) enum Jump<'a> {
    Verdict(Target),
    Chain { name: Word<'a>, goto: bool },
    Extension(&'static Extension<Target>, Given<'a>),
}

/// Options that are there without any extension.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    Command(Verb),
    Source,
    Destination,
    Protocol,
    In,
    Out,
    Jump,
    Goto,
    Match,
    Fragments,
    Counters,
    V4,
    V6,
    /// Means nothing in a file.
    Verbose,
    Refused(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
    /// Only with `=`, or right behind a short option.
    Maybe,
}

const ONLY_SHOWS: &str = "a file of rules cannot list or explain: take the line out";
const OF_THE_COMMAND: &str = "it is an option of the command, not of a file of rules";

#[rustfmt::skip]
const BASE: &[(&str, char, Takes, Base)] = &[
    ("append",        'A', Takes::Value,   Base::Command(Verb::Append)),
    ("delete",        'D', Takes::Value,   Base::Command(Verb::Delete)),
    ("check",         'C', Takes::Value,   Base::Command(Verb::Check)),
    ("insert",        'I', Takes::Value,   Base::Command(Verb::Insert)),
    ("replace",       'R', Takes::Value,   Base::Command(Verb::Replace)),
    ("flush",         'F', Takes::Maybe,   Base::Command(Verb::Flush)),
    ("zero",          'Z', Takes::Maybe,   Base::Command(Verb::Zero)),
    ("new-chain",     'N', Takes::Value,   Base::Command(Verb::New)),
    ("delete-chain",  'X', Takes::Maybe,   Base::Command(Verb::DeleteChain)),
    ("rename-chain",  'E', Takes::Value,   Base::Command(Verb::Rename)),
    ("policy",        'P', Takes::Value,   Base::Command(Verb::Policy)),
    ("source",        's', Takes::Value,   Base::Source),
    ("src",           's', Takes::Value,   Base::Source),
    ("destination",   'd', Takes::Value,   Base::Destination),
    ("dst",           'd', Takes::Value,   Base::Destination),
    ("protocol",      'p', Takes::Value,   Base::Protocol),
    ("in-interface",  'i', Takes::Value,   Base::In),
    ("out-interface", 'o', Takes::Value,   Base::Out),
    ("jump",          'j', Takes::Value,   Base::Jump),
    ("goto",          'g', Takes::Value,   Base::Goto),
    ("match",         'm', Takes::Value,   Base::Match),
    ("fragments",     'f', Takes::Nothing, Base::Fragments),
    ("set-counters",  'c', Takes::Value,   Base::Counters),
    ("ipv4",          '4', Takes::Nothing, Base::V4),
    ("ipv6",          '6', Takes::Nothing, Base::V6),
    ("verbose",       'v', Takes::Nothing, Base::Verbose),
    ("list",          'L', Takes::Maybe,   Base::Refused(ONLY_SHOWS)),
    ("list-rules",    'S', Takes::Maybe,   Base::Refused(ONLY_SHOWS)),
    ("numeric",       'n', Takes::Nothing, Base::Refused(ONLY_SHOWS)),
    ("exact",         'x', Takes::Nothing, Base::Refused(ONLY_SHOWS)),
    ("line-numbers",  '0', Takes::Nothing, Base::Refused(ONLY_SHOWS)),
    ("help",          'h', Takes::Maybe,   Base::Refused(ONLY_SHOWS)),
    ("version",       'V', Takes::Nothing, Base::Refused(ONLY_SHOWS)),
    ("table",         't', Takes::Value,   Base::Refused("the line `*TABLE` says which table it is")),
    ("wait",          'w', Takes::Maybe,   Base::Refused(OF_THE_COMMAND)),
    ("wait-interval", 'W', Takes::Maybe,   Base::Refused(OF_THE_COMMAND)),
    ("modprobe",      'M', Takes::Value,   Base::Refused(OF_THE_COMMAND)),
];

/// Takes a line apart. `None` if it is for the other family (`-4`, `-6`). `is_chain` knows the table's chains.
pub(super) fn read<'a>(family: Family, words: Vec<Word<'a>>, is_chain: &dyn Fn(&str) -> bool) -> Result<Option<Line<'a>>, Fault> {
    let end = words.last().map_or(1, |w| w.column + w.text.chars().count() as u32);
    let mut walker = Walker::new(family, words, is_chain);
    if walker.walk()? { walker.line(end).map(Some) } else { Ok(None) }
}
