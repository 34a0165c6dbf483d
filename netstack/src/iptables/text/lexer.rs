//! Words of a line, by the quoting rules of `iptables-restore`.

use super::error::{ErrorKind, Fault};
use std::borrow::Cow;

/// A word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    pub text: Cow<'a, str>,
    /// Column of its first character, from 1.
    pub column: u32,
}

impl Word<'_> {
    pub fn fault(&self, kind: ErrorKind) -> Fault {
        Fault { column: self.column, word: self.text.clone().into_owned(), kind }
    }

    pub fn bad(&self, expected: impl Into<String>) -> Fault {
        self.fault(ErrorKind::BadValue(expected.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Splits a line (without its end) into words. `column` is that of the line's first character.
///
/// Blanks and tabs split. `"` begins a quoted part, also inside a word; in it `\x` stands for x; the closing `"` ends the
/// word. `'` and, outside of quotes, `\` have no meaning.
pub(super) fn words(line: &str, column: u32) -> Result<Vec<Word<'_>>, Fault> {
    let mut out = Vec::new();
    let mut chars = line.char_indices().zip(column..);
    let mut word: Option<(usize, u32)> = None;
    while let Some(((at, c), col)) = chars.next() {
        match c {
            '"' => {
                let (start, first) = word.take().unwrap_or((at, col));
                let mut text = line[start..at].to_owned();
                loop {
                    match chars.next() {
                        Some(((_, '"'), _)) => break,
                        Some(((_, '\\'), _)) => match chars.next() {
                            Some(((_, escaped), _)) => text.push(escaped),
                            None => return Err(open_quote(&line[at..], col)),
                        },
                        Some(((_, c), _)) => text.push(c),
                        None => return Err(open_quote(&line[at..], col)),
                    }
                }
                out.push(Word { text: Cow::Owned(text), column: first });
            }
            ' ' | '\t' => {
                if let Some((start, column)) = word.take() {
                    out.push(Word { text: Cow::Borrowed(&line[start..at]), column });
                }
            }
            _ => {
                word.get_or_insert((at, col));
            }
        }
    }
    if let Some((start, column)) = word {
        out.push(Word { text: Cow::Borrowed(&line[start..]), column });
    }
    Ok(out)
}

fn open_quote(rest: &str, column: u32) -> Fault {
    Fault { column, word: rest.to_owned(), kind: ErrorKind::OpenQuote }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<(String, u32)> {
        words(line, 1).expect("words").into_iter().map(|w| (w.text.into_owned(), w.column)).collect()
    }

    fn w(text: &str, column: u32) -> (String, u32) {
        (text.to_owned(), column)
    }

    #[test]
    fn blanks_split_and_quotes_hold_together() {
        assert_eq!(texts("-A  X\t-j Y "), [w("-A", 1), w("X", 5), w("-j", 7), w("Y", 10)]);
        assert_eq!(texts(r#"a "b c" d"#), [w("a", 1), w("b c", 3), w("d", 9)]);
        assert_eq!(texts(r#""""#), [w("", 1)]);
    }

    #[test]
    fn a_closing_quote_ends_the_word_and_an_opening_one_does_not_begin_it() {
        assert_eq!(texts(r#""abc"def"#), [w("abc", 1), w("def", 6)]);
        assert_eq!(texts(r#"abc"d e" f"#), [w("abcd e", 1), w("f", 10)]);
    }

    #[test]
    fn backslash_escapes_inside_of_quotes_only() {
        assert_eq!(texts(r#""a\"b\\c\'d\n" e\ f"#), [w(r#"a"b\c'dn"#, 1), w("e\\", 16), w("f", 19)]);
        assert_eq!(texts("it's 'a b'"), [w("it's", 1), w("'a", 6), w("b'", 9)]);
    }

    #[test]
    fn an_open_quote_is_refused_at_its_place() {
        for (line, column) in [("x \"abc", 3), ("\"abc\\", 1), ("é \"", 3)] {
            let fault = words(line, 1).expect_err("open");
            assert_eq!((fault.column, fault.kind), (column, ErrorKind::OpenQuote), "{line}");
        }
    }
}
