//! The walk over the words of a line.

use super::{BASE, Base, Jump, Line, Spec, Takes, Verb};
use crate::iptables::text::error::{ErrorKind, Fault};
use crate::iptables::text::ext::{self, Extension, Given, Opt, Use};
use crate::iptables::text::lexer::Word;
use crate::iptables::text::{names, value};
use crate::iptables::{Counters, Family, Inv, Match, Target};
use std::borrow::Cow;

/// An extension that this line has called.
#[derive(Clone, Copy)]
struct Loaded {
    options: &'static [Opt],
    name: &'static str,
    /// Place among the rule's matches; `None` for the target.
    place: Option<usize>,
}

/// What a long option is.
#[derive(Clone, Copy)]
enum Found {
    Base(Takes, Base),
    Extension(Loaded, usize),
}

/// The state of the walk.
pub(super) struct Walker<'a, 'c> {
    family: Family,
    is_chain: &'c dyn Fn(&str) -> bool,
    words: std::iter::Peekable<std::vec::IntoIter<Word<'a>>>,
    /// The newest last.
    loaded: Vec<Loaded>,
    /// The word of `-p`, as long as its match was not loaded because of an option.
    implicit: Option<(u8, Word<'a>)>,
    command: Option<(Verb, Word<'a>)>,
    chain: Option<Word<'a>>,
    number: Option<(Word<'a>, usize)>,
    second: Option<Word<'a>>,
    rule: Spec<'a>,
}

impl<'a, 'c> Walker<'a, 'c> {
    pub fn new(family: Family, words: Vec<Word<'a>>, is_chain: &'c dyn Fn(&str) -> bool) -> Self {
        Self {
            family,
            is_chain,
            words: words.into_iter().peekable(),
            loaded: Vec::new(),
            implicit: None,
            command: None,
            chain: None,
            number: None,
            second: None,
            rule: Spec::default(),
        }
    }

    /// What was found on the line, which ends at a column.
    pub fn line(self, end: u32) -> Result<Line<'a>, Fault> {
        let Walker { command, chain, number, second, rule, .. } = self;
        match command {
            Some((verb, word)) => Ok(Line { verb, word, chain, number, second, rule }),
            None => Err(Fault { column: end, word: String::new(), kind: ErrorKind::NoCommand }),
        }
    }

    /// Finds what each word belongs to; `false` if the line is for the other family.
    pub fn walk(&mut self) -> Result<bool, Fault> {
        let mut not: Option<Word<'a>> = None;
        while let Some(word) = self.words.next() {
            let text = word.text.clone();
            if text == "!" {
                if not.is_some() {
                    return Err(word.fault(ErrorKind::BadInversion));
                }
                not = Some(word);
                continue;
            }
            if text == "--" {
                match self.words.next() {
                    Some(word) => return Err(word.fault(ErrorKind::Stray)),
                    None => break,
                }
            }
            let inverted = not.take();
            if let Some(long) = text.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    None => (long, None),
                    Some((name, value)) => (name, Some(part_of(&word, text.len() - value.len()))),
                };
                match self.find(name, &word)? {
                    Found::Base(takes, base) => {
                        let value = self.value(takes, value, &word)?;
                        if !self.base(base, word, value, inverted)? {
                            return Ok(false);
                        }
                    }
                    Found::Extension(loaded, opt) => self.extension(loaded, opt, word, value, inverted)?,
                }
            } else if text.len() > 1 && text.starts_with('-') {
                if !self.short(&text, word, inverted)? {
                    return Ok(false);
                }
            } else {
                return Err(word.fault(ErrorKind::Stray));
            }
        }
        match not {
            Some(word) => Err(word.fault(ErrorKind::BadInversion)),
            None => Ok(true),
        }
    }

    /// One word of short options.
    fn short(&mut self, text: &str, word: Word<'a>, mut not: Option<Word<'a>>) -> Result<bool, Fault> {
        for (at, c) in text.char_indices().skip(1) {
            let Some(&(_, _, takes, base)) = BASE.iter().find(|b| b.1 == c && b.1 != '0') else {
                return Err(word.fault(ErrorKind::UnknownOption(None)));
            };
            let rest = at + c.len_utf8();
            let attached = (takes != Takes::Nothing && rest < text.len()).then(|| part_of(&word, rest));
            let last = attached.is_some();
            let value = self.value(takes, attached, &word)?;
            if !self.base(base, word.clone(), value, not.take())? {
                return Ok(false);
            }
            if last {
                break;
            }
        }
        Ok(true)
    }

    /// The value of an option: what is attached to it, or the next word.
    fn value(&mut self, takes: Takes, attached: Option<Word<'a>>, word: &Word<'a>) -> Result<Option<Word<'a>>, Fault> {
        match (takes, attached) {
            (Takes::Nothing, Some(value)) => Err(value.fault(ErrorKind::NoValue)),
            (Takes::Value, None) => self.words.next().map(Some).ok_or_else(|| word.fault(ErrorKind::NeedsValue)),
            (_, attached) => Ok(attached),
        }
    }

    /// The next word, if it does not look like an option.
    fn plain(&mut self) -> Option<Word<'a>> {
        self.words.next_if(|w| !w.text.starts_with(['-', '!']))
    }

    /// A long option by its name, or by a beginning of it that no other has. Newer extensions go before older ones. If
    /// there is none, the match of `-p` is loaded.
    fn find(&mut self, name: &str, word: &Word<'a>) -> Result<Found, Fault> {
        if let Some(found) = self.find_loaded(name, word)? {
            return Ok(found);
        }
        if let Some((proto, proto_word)) = self.implicit.take() {
            let known = names::protocol_name(proto).unwrap_or_default();
            if let Some(extension) = ext::find_match(self.family, known) {
                self.load_match(extension, proto_word);
                if let Some(found) = self.find_loaded(name, word)? {
                    return Ok(found);
                }
            } else if let Some(reason) = ext::refused_match(known) {
                return Err(unsupported(word, format!("match {known}"), reason));
            }
        }
        let hint = ext::owner_of(self.family, name);
        let hint = hint.map(|(kind, owner)| format!("it belongs to `-{kind} {owner}`, which must come before it"));
        Err(word.fault(ErrorKind::UnknownOption(hint)))
    }

    fn find_loaded(&self, name: &str, word: &Word<'a>) -> Result<Option<Found>, Fault> {
        if name.is_empty() {
            return Ok(None);
        }
        let mut candidate: Option<(&'static str, Found)> = None;
        let mut other: Option<&'static str> = None;
        let mut consider = |full: &'static str, found: Found| {
            if full == name {
                return Some(found);
            }
            if full.starts_with(name) {
                match &candidate {
                    None => candidate = Some((full, found)),
                    Some((_, first)) if first.same(&found) => {}
                    Some(_) => other = other.or(Some(full)),
                }
            }
            None
        };
        for &(full, _, takes, base) in BASE {
            if let Some(found) = consider(full, Found::Base(takes, base)) {
                return Ok(Some(found));
            }
        }
        for (i, loaded) in self.loaded.iter().enumerate().rev() {
            // Of several of one kind only the newest takes options.
            if self.loaded.iter().skip(i + 1).any(|newer| newer.name == loaded.name) {
                continue;
            }
            for (n, opt) in loaded.options.iter().enumerate() {
                for &full in opt.names {
                    if let Some(found) = consider(full, Found::Extension(*loaded, n)) {
                        return Ok(Some(found));
                    }
                }
            }
        }
        match (candidate, other) {
            (Some((first, _)), Some(second)) => Err(word.fault(ErrorKind::Ambiguous(first, second))),
            (candidate, _) => Ok(candidate.map(|c| c.1)),
        }
    }

    /// An option of an extension, with its values.
    fn extension(
        &mut self,
        loaded: Loaded,
        opt: usize,
        word: Word<'a>,
        attached: Option<Word<'a>>,
        not: Option<Word<'a>>,
    ) -> Result<(), Fault> {
        let Some(option) = loaded.options.get(opt) else { return Err(word.fault(ErrorKind::UnknownOption(None))) };
        let name = option.names.first().copied().unwrap_or_default();
        if let Some(reason) = option.refused {
            return Err(unsupported(&word, format!("--{name} of {}", loaded.name), reason));
        }
        if not.is_some() && !option.invert {
            return Err(word.fault(ErrorKind::NotInvertible));
        }
        let takes = if option.values == 0 { Takes::Nothing } else { Takes::Value };
        let mut values: Vec<Word<'a>> = self.value(takes, attached, &word)?.into_iter().collect();
        while values.len() < usize::from(option.values) {
            values.push(self.plain().ok_or_else(|| word.fault(ErrorKind::NeedsValue))?);
        }
        let given = match (loaded.place, &mut self.rule.target) {
            (Some(place), _) => self.rule.matches.get_mut(place).map(|m| &mut m.1),
            (None, Some(Jump::Extension(_, given))) => Some(given),
            _ => None,
        };
        let Some(given) = given else { return Err(word.fault(ErrorKind::UnknownOption(None))) };
        if given.uses.iter().any(|u| u.opt == opt) {
            return Err(word.fault(ErrorKind::Repeated));
        }
        given.uses.push(Use { opt, not: not.is_some(), word, values });
        Ok(())
    }

    fn load_match(&mut self, extension: &'static Extension<Match>, head: Word<'a>) {
        let name = extension.names.first().copied().unwrap_or_default();
        self.loaded.push(Loaded { options: extension.options, name, place: Some(self.rule.matches.len()) });
        self.rule.matches.push((extension, Given { head, options: extension.options, uses: Vec::new() }));
    }

    /// An option that needs no extension. `false` if the line is for the other family.
    fn base(&mut self, base: Base, word: Word<'a>, value: Option<Word<'a>>, not: Option<Word<'a>>) -> Result<bool, Fault> {
        let invertible = [Base::Source, Base::Destination, Base::Protocol, Base::In, Base::Out, Base::Fragments];
        if not.is_some() && !invertible.contains(&base) {
            return Err(word.fault(ErrorKind::NotInvertible));
        }
        let not = not.is_some();
        if !matches!(base, Base::Command(_) | Base::V4 | Base::V6 | Base::Verbose) {
            self.rule.first.get_or_insert_with(|| word.clone());
        }
        // An option that takes a value has got one.
        let value_word = value.clone().unwrap_or_else(|| word.clone());
        let inv = Inv { not, value: value_word.clone() };
        match base {
            Base::Command(verb) => self.command(verb, word, value)?,
            Base::Source => once(&mut self.rule.src, inv, &word)?,
            Base::Destination => once(&mut self.rule.dst, inv, &word)?,
            Base::In => once(&mut self.rule.input, (word.clone(), inv), &word)?,
            Base::Out => once(&mut self.rule.output, (word.clone(), inv), &word)?,
            Base::Protocol => {
                let proto = value::protocol(&value_word)?;
                if proto == 0 && not {
                    return Err(value_word.bad("a protocol: `!` with all of them matches nothing"));
                }
                once(&mut self.rule.proto, Inv { not, value: proto }, &word)?;
                self.implicit = Some((proto, value_word));
            }
            Base::Fragments if self.family == Family::V6 => {
                return Err(unsupported(&word, "-f".to_owned(), "it exists in IPv4 only"));
            }
            Base::Fragments => once(&mut self.rule.fragment, !not, &word)?,
            Base::Match => self.match_by_name(value_word)?,
            Base::Jump => {
                let jump = self.jump(value_word)?;
                once(&mut self.rule.target, jump, &word)?;
            }
            Base::Goto => {
                if !(self.is_chain)(value_word.as_str()) {
                    return Err(value_word.fault(ErrorKind::UnknownTarget));
                }
                once(&mut self.rule.target, Jump::Chain { name: value_word, goto: true }, &word)?;
            }
            Base::Counters => {
                let counters = self.counters(&value_word)?;
                once(&mut self.rule.counters, counters, &word)?;
            }
            Base::V4 => return Ok(self.family == Family::V4),
            Base::V6 => return Ok(self.family == Family::V6),
            Base::Verbose => {}
            Base::Refused(reason) => {
                let what = word.text.clone().into_owned();
                return Err(unsupported(&word, what, reason));
            }
        }
        Ok(true)
    }

    fn command(&mut self, verb: Verb, word: Word<'a>, value: Option<Word<'a>>) -> Result<(), Fault> {
        if self.command.is_some() {
            return Err(word.fault(ErrorKind::TwoCommands));
        }
        self.chain = value;
        match verb {
            Verb::Append | Verb::Check | Verb::New => {}
            Verb::Flush | Verb::DeleteChain => self.chain = self.chain.take().or_else(|| self.plain()),
            Verb::Zero => {
                self.chain = self.chain.take().or_else(|| self.plain());
                self.number = self.rule_number()?;
            }
            Verb::Insert | Verb::Delete => self.number = self.rule_number()?,
            Verb::Replace => {
                self.number = self.rule_number()?;
                if self.number.is_none() {
                    return Err(word.fault(ErrorKind::Missing("the number of the rule to replace".to_owned())));
                }
            }
            Verb::Policy | Verb::Rename => {
                self.second = self.plain();
                if self.second.is_none() {
                    let what = if verb == Verb::Policy { "the policy" } else { "the new name" };
                    return Err(word.fault(ErrorKind::Missing(what.to_owned())));
                }
            }
        }
        self.command = Some((verb, word));
        Ok(())
    }

    fn rule_number(&mut self) -> Result<Option<(Word<'a>, usize)>, Fault> {
        let Some(word) = self.plain() else { return Ok(None) };
        let number = value::number_in(&word, 1, i32::MAX as u64)?;
        Ok(Some((word, number as usize)))
    }

    /// `-c P B` or `-c P,B`.
    fn counters(&mut self, first: &Word<'a>) -> Result<Counters, Fault> {
        let expected = "two counters: packets and bytes";
        let decimal = |text: &str| text.parse::<u64>().ok();
        let (packets, bytes) = match first.as_str().split_once(',') {
            Some((packets, bytes)) => (decimal(packets), decimal(bytes)),
            None => (decimal(first.as_str()), self.plain().and_then(|w| decimal(w.as_str()))),
        };
        match (packets, bytes) {
            (Some(packets), Some(bytes)) => Ok(Counters { packets, bytes }),
            _ => Err(first.bad(expected)),
        }
    }

    fn match_by_name(&mut self, name: Word<'a>) -> Result<(), Fault> {
        let text = name.as_str();
        if let Some(extension) = ext::find_match(self.family, text) {
            self.load_match(extension, name);
            return Ok(());
        }
        Err(match ext::refused_match(text) {
            Some(reason) => unsupported(&name, format!("match {text}"), reason),
            None => match other_family(self.family, |f| ext::find_match(f, text).is_some()) {
                Some(reason) => unsupported(&name, format!("match {text}"), reason),
                None => name.fault(ErrorKind::UnknownMatch),
            },
        })
    }

    fn jump(&mut self, name: Word<'a>) -> Result<Jump<'a>, Fault> {
        let text = name.as_str();
        if (self.is_chain)(text) {
            return Ok(Jump::Chain { name, goto: false });
        }
        match text {
            "ACCEPT" => return Ok(Jump::Verdict(Target::Accept)),
            "DROP" => return Ok(Jump::Verdict(Target::Drop)),
            "RETURN" => return Ok(Jump::Verdict(Target::Return)),
            _ => {}
        }
        if let Some(extension) = ext::find_target(self.family, text) {
            let first = extension.names.first().copied().unwrap_or_default();
            self.loaded.push(Loaded { options: extension.options, name: first, place: None });
            return Ok(Jump::Extension(extension, Given { head: name, options: extension.options, uses: Vec::new() }));
        }
        Err(match ext::refused_target(text) {
            Some(reason) => unsupported(&name, format!("target {text}"), reason),
            None => name.fault(ErrorKind::UnknownTarget),
        })
    }
}

impl Found {
    /// Whether both are the same option under two names.
    fn same(&self, other: &Found) -> bool {
        match (self, other) {
            (Found::Base(_, a), Found::Base(_, b)) => a == b,
            (Found::Extension(a, i), Found::Extension(b, j)) => {
                a.name == b.name && a.place.is_some() == b.place.is_some() && i == j
            }
            _ => false,
        }
    }
}

/// Sets what may be given only once.
fn once<T>(place: &mut Option<T>, value: T, word: &Word<'_>) -> Result<(), Fault> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(word.fault(ErrorKind::Repeated)),
    }
}

fn unsupported(word: &Word<'_>, what: String, reason: &str) -> Fault {
    word.fault(ErrorKind::Unsupported { what, reason: reason.to_owned() })
}

fn other_family(family: Family, has: impl Fn(Family) -> bool) -> Option<&'static str> {
    match family {
        Family::V4 => has(Family::V6).then_some("it exists in IPv6 only"),
        Family::V6 => has(Family::V4).then_some("it exists in IPv4 only"),
    }
}

/// What follows the first bytes of a word, as a word.
fn part_of<'a>(word: &Word<'a>, skip: usize) -> Word<'a> {
    let text = match &word.text {
        Cow::Borrowed(text) => Cow::Borrowed(text.get(skip..).unwrap_or_default()),
        Cow::Owned(text) => Cow::Owned(text.get(skip..).unwrap_or_default().to_owned()),
    };
    let before = word.text.get(..skip).map_or(0, |t| t.chars().count());
    Word { text, column: word.column + before as u32 }
}
