//! Words of a line.

use super::{SetError, SetFault};

/// A word of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    /// Column of its first character, from 1.
    pub(super) column: u32,
}

impl<'a> Word<'a> {
    pub(super) fn fault(&self, what: SetFault) -> SetError {
        SetError { line: 0, column: self.column, word: self.text.to_owned(), what }
    }

    pub(super) fn bad(&self, expected: &'static str) -> SetError {
        self.fault(SetFault::Value(expected))
    }

    /// A part of the word.
    pub(super) fn part(&self, text: &'a str) -> Word<'a> {
        let before = (text.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let column = self.text.get(..before).map_or(0, |t| t.chars().count()) as u32;
        Word { text, column: self.column + column }
    }

    /// A decimal or `0x` hexadecimal number up to `most`.
    pub(super) fn number(&self, most: u64, expected: &'static str) -> Result<u64, SetError> {
        let (digits, radix) = self.text.strip_prefix("0x").map_or((self.text, 10), |hex| (hex, 16));
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let n = if plain { u64::from_str_radix(digits, radix).ok() } else { None };
        n.filter(|n| *n <= most).ok_or_else(|| self.bad(expected))
    }
}

/// What is left of a line.
#[derive(Debug)]
pub(super) struct Words<'a> {
    words: std::vec::IntoIter<Word<'a>>,
    end: u32,
}

impl<'a> Words<'a> {
    /// Splits a line at blanks; a word that begins with `"` goes to the next `"`.
    pub(super) fn of(line: &'a str) -> Result<Words<'a>, SetError> {
        let mut words = Vec::new();
        let (mut rest, mut column) = (line, 1u32);
        loop {
            let skipped = rest.len() - rest.trim_start().len();
            column += rest[..skipped].chars().count() as u32;
            rest = &rest[skipped..];
            if rest.is_empty() {
                return Ok(Words { words: words.into_iter(), end: column });
            }
            let (text, used) = match rest.strip_prefix('"') {
                Some(quoted) => {
                    let open = || Word { text: rest, column }.fault(SetFault::OpenQuote);
                    let len = quoted.find('"').ok_or_else(open)?;
                    (&quoted[..len], len + 2)
                }
                None => {
                    let len = rest.find(char::is_whitespace).unwrap_or(rest.len());
                    (&rest[..len], len)
                }
            };
            words.push(Word { text, column });
            column += rest[..used].chars().count() as u32;
            rest = &rest[used..];
        }
    }

    /// Takes `-exist` or `-!` out, wherever it stands.
    pub(super) fn take_exist(&mut self) -> bool {
        let all: Vec<_> = self.words.by_ref().collect();
        let is = |w: &Word<'_>| matches!(w.text, "-exist" | "-!" | "--exist");
        let exist = all.iter().any(is);
        self.words = all.into_iter().filter(|w| !is(w)).collect::<Vec<_>>().into_iter();
        exist
    }

    pub(super) fn next(&mut self) -> Option<Word<'a>> {
        self.words.next()
    }

    /// The next word, which must be there.
    pub(super) fn need(&mut self, what: &'static str) -> Result<Word<'a>, SetError> {
        self.next().ok_or_else(|| SetError { line: 0, column: self.end, word: String::new(), what: SetFault::Missing(what) })
    }

    /// Refuses further words.
    pub(super) fn end(&mut self) -> Result<(), SetError> {
        self.next().map_or(Ok(()), |w| Err(w.fault(SetFault::Option)))
    }
}
