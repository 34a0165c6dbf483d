//! What is in a packet: `string`, `u32`.

use super::super::error::Fault;
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, option_value, push, value};
use crate::iptables::{Inv, Match, StringMatch, U32Step, U32Test};

pub(super) static STRING: Extension<Match> = Extension {
    names: &["string"],
    family: None,
    options: &[
        value(&["string"]).not(),
        value(&["hex-string"]).not(),
        value(&["algo"]),
        value(&["from"]),
        value(&["to"]),
        flag(&["icase"]),
    ],
    build: build_string,
};

pub(super) static U32: Extension<Match> = Extension {
    names: &["u32"],
    family: None,
    options: &[value(&["u32"]).not()],
    build: |_, given| {
        let used = given.require("u32")?;
        let word = used.value();
        let tests = Tests { text: word.as_str(), rest: word.as_str() }.read().map_err(|(rest, expected)| {
            let at = word.as_str().len() - rest.len();
            word.bad(format!("{expected} at its character {}", word.as_str()[..at].chars().count() + 1))
        })?;
        Ok(Match::U32(Inv { not: used.not, value: tests }))
    },
};

/// Longest pattern in bytes.
const PATTERN: usize = 128;
/// Most tests, steps of a test, and values of a test.
const MOST: usize = 10;

fn build_string(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    given.at_most_one(&["string", "hex-string"])?;
    let (used, pattern) = match (given.get("string"), given.get("hex-string")) {
        (Some(used), _) => (used, used.value().as_str().as_bytes().to_vec()),
        (None, Some(used)) => {
            let expected = "text with bytes in hexadecimal between bars, such as |0d 0a|; \\| stands for a bar";
            (used, hex(used.value().as_str()).ok_or_else(|| used.value().bad(expected))?)
        }
        (None, None) => return Err(given.missing("--string or --hex-string")),
    };
    if !(1..=PATTERN).contains(&pattern.len()) {
        return Err(used.value().bad(format!("a pattern of 1 to {PATTERN} bytes")));
    }
    let algorithm = given.require("algo")?.value();
    let kmp = match algorithm.as_str() {
        "bm" => false,
        "kmp" => true,
        _ => return Err(algorithm.bad("bm or kmp")),
    };
    let short = |word: &Word<'_>| read::number_in(word, 0, u16::MAX.into()).map(|n| n as u16);
    let span = (given.read("from", short)?.unwrap_or(0), given.read("to", short)?.unwrap_or(u16::MAX));
    if let (true, Some(to)) = (span.0 > span.1, given.get("to").or(given.get("from"))) {
        return Err(to.value().bad("--from is at most --to"));
    }
    Ok(Match::String(Box::new(StringMatch { not: used.not, pattern, kmp, icase: given.has("icase"), span })))
}

/// The bytes of a text with hexadecimal parts.
fn hex(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    let mut in_hex = false;
    while let Some(b) = bytes.next() {
        match b {
            b'|' => in_hex = !in_hex,
            b' ' | b'\t' if in_hex => {}
            _ if in_hex => {
                let digit = |b: u8| char::from(b).to_digit(16);
                out.push((digit(b)? << 4 | digit(bytes.next()?)?) as u8);
            }
            b'\\' => out.push(bytes.next()?),
            b => out.push(b),
        }
    }
    (!in_hex).then_some(out)
}

pub(super) fn print_string(m: &StringMatch, out: &mut String) {
    out.push_str(" -m string");
    let printable = m.pattern.iter().all(|b| (b' '..=b'~').contains(b)) && m.pattern.last() != Some(&b' ');
    if printable {
        option(out, m.not, "string");
        out.push_str(" \"");
        for b in &m.pattern {
            if matches!(b, b'"' | b'\\') {
                out.push('\\');
            }
            out.push(char::from(*b));
        }
        out.push('"');
    } else {
        option(out, m.not, "hex-string");
        out.push_str(" \"|");
        m.pattern.iter().for_each(|b| push(out, format_args!("{b:02x}")));
        out.push_str("|\"");
    }
    option_value(out, false, "algo", if m.kmp { "kmp" } else { "bm" });
    if m.span.0 != 0 {
        option_value(out, false, "from", m.span.0);
    }
    if m.span.1 != u16::MAX {
        option_value(out, false, "to", m.span.1);
    }
    if m.icase {
        option(out, false, "icase");
    }
}

/// Reads the tests of `u32`: `START [& | << | >> | @ NUMBER]... = VALUE[:VALUE][,...]`, several of them joined by `&&`. Blanks do not matter.
struct Tests<'a> {
    text: &'a str,
    rest: &'a str,
}

/// What is left of the text where something else was expected, and what.
type Expected<'a> = (&'a str, &'static str);

impl<'a> Tests<'a> {
    fn read(mut self) -> Result<Vec<U32Test>, Expected<'a>> {
        let mut tests = Vec::new();
        loop {
            tests.push(self.test()?);
            if !self.take("&&") {
                break;
            }
            if tests.len() == MOST {
                return Err((self.rest, "at most 10 tests, not another one,"));
            }
        }
        debug_assert!(self.text.ends_with(self.rest));
        if self.rest.is_empty() { Ok(tests) } else { Err((self.rest, "&& or the end")) }
    }

    fn take(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn number(&mut self) -> Result<u32, Expected<'a>> {
        self.take("");
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let number = read::number(digits).and_then(|n| u32::try_from(n).ok()).ok_or((self.rest, "a number of 32 bits"))?;
        self.rest = rest;
        self.take("");
        Ok(number)
    }

    fn test(&mut self) -> Result<U32Test, Expected<'a>> {
        let mut test = U32Test { start: self.number()?, steps: Vec::new(), values: Vec::new() };
        while !self.take("=") {
            if test.steps.len() == MOST - 1 {
                return Err((self.rest, "at most 9 steps, not another one,"));
            }
            let before = self.rest;
            test.steps.push(if self.take("<<") {
                U32Step::Left(self.number()?)
            } else if self.take(">>") {
                U32Step::Right(self.number()?)
            } else if !before.starts_with("&&") && self.take("&") {
                U32Step::And(self.number()?)
            } else if self.take("@") {
                U32Step::At(self.number()?)
            } else {
                return Err((self.rest, "one of & << >> @ ="));
            });
        }
        loop {
            let first = self.number()?;
            let last = if self.take(":") { self.number()? } else { first };
            test.values.push((first, last));
            if !self.take(",") {
                return Ok(test);
            }
            if test.values.len() == MOST {
                return Err((self.rest, "at most 10 values, not another one,"));
            }
        }
    }
}

pub(super) fn print_u32(tests: &Inv<Vec<U32Test>>, out: &mut String) {
    out.push_str(" -m u32");
    option(out, tests.not, "u32");
    out.push_str(" \"");
    for (n, test) in tests.value.iter().enumerate() {
        push(out, format_args!("{}{:#x}", if n == 0 { "" } else { "&&" }, test.start));
        for step in &test.steps {
            match step {
                U32Step::And(n) => push(out, format_args!("&{n:#x}")),
                U32Step::Left(n) => push(out, format_args!("<<{n:#x}")),
                U32Step::Right(n) => push(out, format_args!(">>{n:#x}")),
                U32Step::At(n) => push(out, format_args!("@{n:#x}")),
            }
        }
        for (n, (first, last)) in test.values.iter().enumerate() {
            push(out, format_args!("{}{first:#x}", if n == 0 { "=" } else { "," }));
            if first != last {
                push(out, format_args!(":{last:#x}"));
            }
        }
    }
    out.push('"');
}
