//! A text of sets, carried out on sets that are there.

use super::element::{self, Range};
use super::words::{Word, Words};
use super::{SetError, SetFault, create, is_comment};
use crate::ipset::set::{Contents, Member};
use crate::ipset::{Elem, Head, MAX_SETS, Set, Sets};
use crate::time::Time;
use std::sync::Arc;

/// Most elements that a text may stand for, those that ranges mean counted one by one.
pub(super) const MAX_STEPS: u32 = 4 << 20;

impl Sets {
    /// Carries a text out on a copy of the sets. Time-outs in it begin `now`.
    ///
    /// # Errors
    /// Says what is wrong, and where.
    pub fn restore(&self, text: &str, now: Time) -> Result<Sets, SetError> {
        let mut reader = Reader { sets: self.copy(self.key), now, steps: MAX_STEPS };
        for (n, line) in text.lines().enumerate() {
            reader.line(line).map_err(|e| SetError { line: n as u32 + 1, ..e })?;
        }
        Ok(reader.sets)
    }
}

struct Reader {
    sets: Sets,
    now: Time,
    /// Elements that the text may yet stand for.
    steps: u32,
}

/// What follows an element.
struct Options {
    elem: Elem,
    /// `before` or `after` another member of a list.
    place: Option<(bool, String)>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), SetError> {
        if line.trim_start().starts_with('#') {
            return Ok(());
        }
        let mut words = Words::of(line)?;
        let exist = words.take_exist();
        let Some(command) = words.next() else { return Ok(()) };
        match command.text {
            "create" | "n" | "-N" | "--create" => self.create(&mut words, exist),
            "add" | "a" | "-A" | "--add" => self.add(&mut words, exist),
            "del" | "d" | "-D" | "--del" => self.del(&mut words, exist),
            "flush" | "f" | "-F" | "--flush" => self.flush(&mut words),
            "destroy" | "x" | "-X" | "--destroy" => self.destroy(&mut words),
            "COMMIT" | "quit" => words.end(),
            _ => Err(command.fault(SetFault::Command)),
        }
    }

    fn create(&mut self, words: &mut Words<'_>, exist: bool) -> Result<(), SetError> {
        let (name, head) = create::head(words)?;
        match self.sets.get(name.text) {
            // What `initval` and `hashsize` are does not make another set of it.
            Some(there) if exist => {
                let alike = Head { initval: there.head().initval, hashsize: there.head().hashsize, ..head };
                if *there.head() == alike { Ok(()) } else { Err(name.fault(SetFault::SetExists)) }
            }
            Some(_) => Err(name.fault(SetFault::SetExists)),
            None if self.sets.list.len() >= MAX_SETS => Err(name.fault(SetFault::TooManySets)),
            None => {
                let set = Set::new(head, self.sets.key);
                self.sets.push(set);
                Ok(())
            }
        }
    }

    fn set<'a>(&self, words: &mut Words<'a>) -> Result<(Word<'a>, Arc<Set>), SetError> {
        let name = words.need("the name of a set")?;
        let set = self.sets.get(name.text).ok_or_else(|| name.fault(SetFault::NoSet))?;
        Ok((name, set.clone()))
    }

    fn add(&mut self, words: &mut Words<'_>, exist: bool) -> Result<(), SetError> {
        let (_, set) = self.set(words)?;
        let word = words.need("an element")?;
        let Options { elem, place } = self.options(&set, words)?;
        if set.head().is_list() {
            let member = self.sets.get(word.text).ok_or_else(|| word.fault(SetFault::NoSet))?.clone();
            return enlist(&set, &word, Member { set: member, elem }, place, exist, self.now);
        }
        let range = Range::read(set.head(), &word)?;
        let Contents::Elems(body) = &mut *set.lock() else { return Ok(()) };
        let (steps, now) = (&mut self.steps, self.now);
        let added = range.try_each(|key| {
            *steps = steps.checked_sub(1).ok_or(SetFault::TooMany)?;
            Ok(body.add(set.head(), key, elem.clone(), exist, now)?)
        });
        added.map_err(|fault| word.fault(fault))
    }

    fn del(&mut self, words: &mut Words<'_>, exist: bool) -> Result<(), SetError> {
        let (_, set) = self.set(words)?;
        let word = words.need("an element")?;
        words.end()?;
        let (steps, now) = (&mut self.steps, self.now);
        match &mut *set.lock() {
            Contents::Members(list) => {
                let place = list.iter().position(|m| m.set.name() == word.text);
                match place {
                    Some(place) => _ = list.remove(place),
                    None if exist => {}
                    None => return Err(word.fault(SetFault::NoElement)),
                }
                Ok(())
            }
            Contents::Elems(body) => {
                let deleted = Range::read(set.head(), &word)?.try_each(|key| {
                    *steps = steps.checked_sub(1).ok_or(SetFault::TooMany)?;
                    if body.del(&key, now) || exist { Ok(()) } else { Err(SetFault::NoElement) }
                });
                deleted.map_err(|fault| word.fault(fault))
            }
        }
    }

    fn options(&self, set: &Set, words: &mut Words<'_>) -> Result<Options, SetError> {
        let head = set.head();
        let mut given: Vec<&str> = Vec::new();
        let mut options = Options { elem: Elem { expires: set.end(None, self.now), ..Elem::default() }, place: None };
        while let Some(option) = words.next() {
            if given.contains(&option.text) {
                return Err(option.fault(SetFault::Repeated));
            }
            given.push(option.text);
            let made_with = |is: bool, what| if is { Ok(()) } else { Err(option.fault(SetFault::Without(what))) };
            let number = |words: &mut Words<'_>| words.need("a number")?.number(u64::MAX, "a number");
            match option.text {
                "timeout" => {
                    made_with(head.timeout.is_some(), "timeout")?;
                    let seconds = element::timeout(&words.need("seconds")?)?;
                    options.elem.expires = set.end(Some(seconds), self.now);
                }
                "packets" | "bytes" => {
                    made_with(head.counters, "counters")?;
                    let n = number(words)?;
                    *(if option.text == "bytes" { &mut options.elem.bytes } else { &mut options.elem.packets }) = n;
                }
                "comment" => {
                    made_with(head.comment, "comment")?;
                    let text = words.need("a comment")?;
                    if !is_comment(text.text) {
                        return Err(text.bad("a comment of at most 255 bytes without quotes"));
                    }
                    options.elem.comment = Some(text.text.into());
                }
                "nomatch" if head.kind.is_net() => options.elem.nomatch = true,
                "before" | "after" if head.is_list() => {
                    let other = words.need("the name of a member")?;
                    options.place = Some((option.text == "before", other.text.to_owned()));
                }
                "skbmark" | "skbprio" | "skbqueue" => {
                    return Err(option.fault(SetFault::Unsupported("marks, priorities and queues come from rules only (MARK)")));
                }
                _ => return Err(option.fault(SetFault::Option)),
            }
        }
        Ok(options)
    }

    fn flush(&mut self, words: &mut Words<'_>) -> Result<(), SetError> {
        let Some(name) = words.next() else {
            self.sets.iter().for_each(|s| s.clear());
            return Ok(());
        };
        words.end()?;
        self.sets.get(name.text).ok_or_else(|| name.fault(SetFault::NoSet))?.clear();
        Ok(())
    }

    fn destroy(&mut self, words: &mut Words<'_>) -> Result<(), SetError> {
        let Some(name) = words.next() else {
            self.sets.list.clear();
            return Ok(());
        };
        words.end()?;
        if self.sets.get(name.text).is_none() {
            return Err(name.fault(SetFault::NoSet));
        }
        for list in self.sets.iter() {
            if let Contents::Members(members) = &*list.lock()
                && members.iter().any(|m| m.set.name() == name.text)
            {
                return Err(name.fault(SetFault::Member(list.name().to_owned())));
            }
        }
        self.sets.remove(name.text);
        Ok(())
    }
}

impl Set {
    fn clear(&self) {
        match &mut *self.lock() {
            Contents::Elems(body) => body.clear(),
            Contents::Members(list) => list.clear(),
        }
    }
}

/// Makes a set a member of a list.
fn enlist(
    list: &Set,
    word: &Word<'_>,
    member: Member,
    place: Option<(bool, String)>,
    exist: bool,
    now: Time,
) -> Result<(), SetError> {
    if member.set.head().is_list() {
        return Err(word.fault(SetFault::ListInList));
    }
    let Contents::Members(members) = &mut *list.lock() else { return Ok(()) };
    members.retain(|m| !m.elem.is_over(now));
    if let Some(there) = members.iter_mut().find(|m| m.set.name() == member.set.name()) {
        if !exist {
            return Err(word.fault(SetFault::Refused(crate::ipset::Refused::Exists)));
        }
        there.elem = member.elem;
        return Ok(());
    }
    // Unlike hashes a list pushes nothing out; `size` only says how large it was to be at first.
    let at = match place {
        None => members.len(),
        Some((before, other)) => {
            let at = members.iter().position(|m| m.set.name() == other).ok_or_else(|| word.fault(SetFault::NoElement))?;
            if before { at } else { at + 1 }
        }
    };
    members.insert(at, member);
    Ok(())
}
