//! Marks of packets and connections: matches `mark` and `connmark`, targets `MARK` and `CONNMARK`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Opt, Scope, flag, option_value, push, value};
use crate::iptables::{Connmark, Inv, Match, Target};

const MARK_OPTIONS: &[Opt] = &[value(&["mark"]).not()];

pub(super) static MARK_MATCH: Extension<Match> =
    Extension { names: &["mark"], family: None, options: MARK_OPTIONS, build: |_, given| Ok(Match::Mark(build_match(given)?)) };

pub(super) static CONNMARK_MATCH: Extension<Match> = Extension {
    names: &["connmark"],
    family: None,
    options: MARK_OPTIONS,
    build: |_, given| Ok(Match::Connmark(build_match(given)?)),
};

pub(super) static MARK: Extension<Target> = Extension {
    names: &["MARK"],
    family: None,
    options: &[value(&["set-xmark"]), value(&["set-mark"]), value(&["and-mark"]), value(&["or-mark"]), value(&["xor-mark"])],
    build: build_mark,
};

const NO_SHIFT: &str = "marks are not shifted here";

pub(super) static CONNMARK: Extension<Target> = Extension {
    names: &["CONNMARK"],
    family: None,
    options: &[
        value(&["set-xmark"]),
        value(&["set-mark"]),
        value(&["and-mark"]),
        value(&["or-mark"]),
        value(&["xor-mark"]),
        flag(&["save-mark"]),
        flag(&["restore-mark"]),
        value(&["nfmask"]),
        value(&["ctmask"]),
        value(&["mask"]),
        value(&["left-shift-mark"]).refuse(NO_SHIFT),
        value(&["right-shift-mark"]).refuse(NO_SHIFT),
    ],
    build: build_connmark,
};

fn build_match(given: &Given<'_>) -> Result<Inv<(u32, u32)>, Fault> {
    let used = given.require("mark")?;
    Ok(Inv { not: used.not, value: read::masked(used.value())? })
}

const SETTERS: [&str; 5] = ["set-xmark", "set-mark", "and-mark", "or-mark", "xor-mark"];

/// What a setting option makes of a mark: the bits to flip and those to clear before.
fn setter(name: &str, word: &Word<'_>) -> Result<(u32, u32), Fault> {
    Ok(match name {
        "set-xmark" => read::masked(word)?,
        "set-mark" => {
            let (value, mask) = read::masked(word)?;
            (value, value | mask)
        }
        "and-mark" => (0, !read::number32(word)?),
        "or-mark" => {
            let bits = read::number32(word)?;
            (bits, bits)
        }
        _ => (read::number32(word)?, 0),
    })
}

fn set(given: &Given<'_>) -> Result<Option<(u32, u32)>, Fault> {
    let found = SETTERS.into_iter().find_map(|name| given.get(name).map(|u| (name, u)));
    found.map(|(name, used)| setter(name, used.value())).transpose()
}

fn build_mark(_: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    given.at_most_one(&SETTERS)?;
    let (value, mask) =
        set(given)?.ok_or_else(|| given.missing("one of --set-xmark, --set-mark, --and-mark, --or-mark, --xor-mark"))?;
    Ok(Target::Mark { value, mask })
}

fn build_connmark(_: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    given.at_most_one(&["set-xmark", "set-mark", "and-mark", "or-mark", "xor-mark", "save-mark", "restore-mark"])?;
    given.at_most_one(&["mask", "nfmask"])?;
    given.at_most_one(&["mask", "ctmask"])?;
    let both = given.read("mask", read::number32)?;
    let nfmask = given.read("nfmask", read::number32)?.or(both);
    let ctmask = given.read("ctmask", read::number32)?.or(both);
    if let Some((value, mask)) = set(given)? {
        if let Some(used) = given.get("nfmask").or(given.get("ctmask")) {
            let why = "--nfmask and --ctmask go with --save-mark and --restore-mark; --set-xmark takes VALUE/MASK";
            return Err(used.word.fault(ErrorKind::Combination(why.to_owned())));
        }
        return Ok(Target::Connmark(Connmark::Set { value, mask: both.unwrap_or(mask) }));
    }
    let (nfmask, ctmask) = (nfmask.unwrap_or(u32::MAX), ctmask.unwrap_or(u32::MAX));
    if given.has("save-mark") {
        Ok(Target::Connmark(Connmark::Save { nfmask, ctmask }))
    } else if given.has("restore-mark") {
        Ok(Target::Connmark(Connmark::Restore { nfmask, ctmask }))
    } else {
        Err(given.missing("one of --set-xmark, --set-mark, --and-mark, --or-mark, --xor-mark, --save-mark, --restore-mark"))
    }
}

pub(super) fn print_match(name: &str, mark: &Inv<(u32, u32)>, out: &mut String) {
    push(out, format_args!(" -m {name}"));
    let Inv { not, value: (value, mask) } = *mark;
    option_value(out, not, "mark", format_args!("{value:#x}"));
    if mask != u32::MAX {
        push(out, format_args!("/{mask:#x}"));
    }
}

pub(super) fn print_mark(value: u32, mask: u32, out: &mut String) {
    push(out, format_args!(" -j MARK --set-xmark {value:#x}/{mask:#x}"));
}

pub(super) fn print_connmark(connmark: &Connmark, out: &mut String) {
    out.push_str(" -j CONNMARK");
    match connmark {
        Connmark::Set { value, mask } => push(out, format_args!(" --set-xmark {value:#x}/{mask:#x}")),
        Connmark::Save { nfmask, ctmask } => push(out, format_args!(" --save-mark --nfmask {nfmask:#x} --ctmask {ctmask:#x}")),
        Connmark::Restore { nfmask, ctmask } => {
            push(out, format_args!(" --restore-mark --nfmask {nfmask:#x} --ctmask {ctmask:#x}"));
        }
    }
}
