//! A text of rules, carried out on rules that are in force.

use super::error::{ErrorKind, Fault, ParseError};
use super::lexer::{self, Word};
use super::options::{self, Line, Verb};
use super::rule;
use super::table::WorkTable;
use crate::iptables::{Counters, Family, Policy, Rule, Ruleset, Table, TableName};
use std::collections::BTreeMap;

/// Most rules that a ruleset may have, all tables together: text that lists addresses makes many rules, and much memory, of few bytes.
pub const MAX_RULES: usize = 100_000;

/// How a text is restored.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Take the counters in the text over (`-c`); otherwise they are only checked.
    pub counters: bool,
    /// Leave the rules that are there, but for those of user chains that the text declares (`-n`).
    pub noflush: bool,
}

/// Reads a text of rules onto no rules at all. Counters in it are not taken over.
pub fn parse(family: Family, text: &str) -> Result<Ruleset, ParseError> {
    restore(&Ruleset::new(family), text, RestoreOptions::default())
}

/// Carries a text out on rules in force: all of it, or, on an error, nothing.
///
/// Tables that the text does not mention stay as they are. In those it mentions, unless `noflush` is set, all rules and
/// user chains go first; policies of chains that it does not list stay.
pub fn restore(base: &Ruleset, text: &str, options: RestoreOptions) -> Result<Ruleset, ParseError> {
    read(base, text, options).map(|reader| reader.rules)
}

/// The line of a text on which a rule stands, by table, chain and number (from 1) after [`restore`]. `None` if the text did
/// not make it.
pub fn locate(base: &Ruleset, text: &str, options: RestoreOptions, table: TableName, chain: &str, rule: usize) -> Option<u32> {
    let reader = read(base, text, options).ok()?;
    let line = *reader.lines.get(&table)?.get(chain)?.get(rule.checked_sub(1)?)?;
    (line > 0).then_some(line)
}

fn read(base: &Ruleset, text: &str, options: RestoreOptions) -> Result<Reader, ParseError> {
    let mut reader = Reader { rules: base.clone(), table: None, options, elsewhere: 0, number: 0, lines: BTreeMap::new() };
    for line in text.split_inclusive('\n') {
        reader.number += 1;
        let (content, ended) = line.strip_suffix('\n').map_or((line, false), |content| (content, true));
        reader.line(content, ended).map_err(|fault| fault.on_line(reader.number))?;
    }
    if reader.table.is_some() {
        let fault = Fault { column: 1, word: String::new(), kind: ErrorKind::EndInTable };
        return Err(fault.on_line(reader.number + 1));
    }
    reader.rules.tables.sort_by_key(|t| t.name);
    Ok(reader)
}

struct Reader {
    rules: Ruleset,
    /// The table whose lines are being read.
    table: Option<WorkTable>,
    options: RestoreOptions,
    /// Rules of the other tables.
    elsewhere: usize,
    /// The line being read, from 1.
    number: u32,
    /// On which lines rules stand, by table and chain.
    lines: BTreeMap<TableName, BTreeMap<String, Vec<u32>>>,
}

impl Reader {
    fn line(&mut self, line: &str, ended: bool) -> Result<(), Fault> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let at = |at: usize, kind| {
            let column = line.get(..at).map_or(0, |t| t.chars().count()) as u32 + 1;
            Err(Fault { column, word: String::new(), kind })
        };
        if let Some(nul) = line.find('\0') {
            return at(nul, ErrorKind::Nul);
        }
        if line.ends_with('\r') {
            return at(line.len() - 1, ErrorKind::CarriageReturn);
        }
        if !ended {
            return at(line.len(), ErrorKind::NoFinalNewline);
        }
        let first = Word { text: line.into(), column: 1 };
        match (self.table.take(), line.as_bytes()[0]) {
            (None, b'*') => self.table = Some(self.begin(line)?),
            (None, _) => return Err(first.fault(ErrorKind::OutsideTable)),
            (Some(_), b'*') => return Err(first.fault(ErrorKind::NoCommit)),
            (Some(table), _) if line == "COMMIT" => self.commit(table),
            (Some(_), _) if line.starts_with("COMMIT") => return Err(first.fault(ErrorKind::BadCommit)),
            (Some(mut table), b':') => {
                self.declare(&mut table, line)?;
                self.table = Some(table);
            }
            (Some(mut table), _) => {
                self.command(&mut table, line)?;
                self.table = Some(table);
            }
        }
        Ok(())
    }

    /// `*TABLE`; what follows on the line is ignored.
    fn begin(&mut self, line: &str) -> Result<WorkTable, Fault> {
        let name = blank_words(line).next();
        let Some(name) = name else {
            return Err(Fault { column: 2, word: String::new(), kind: ErrorKind::UnknownTable });
        };
        let Some(known) = TableName::ALL.into_iter().find(|t| t.as_str() == name.as_str()) else {
            return Err(name.fault(ErrorKind::UnknownTable));
        };
        let place = self.rules.tables.iter().position(|t| t.name == known);
        let table = place.map_or_else(|| Table::new(known), |place| self.rules.tables.swap_remove(place));
        self.elsewhere = self.rules.tables.iter().flat_map(|t| &t.chains).map(|c| c.rules.len()).sum();
        let mut table = WorkTable::new(table);
        if !self.options.noflush {
            table.clear();
        }
        Ok(table)
    }

    fn commit(&mut self, table: WorkTable) {
        let (table, lines) = table.finish();
        self.lines.insert(table.name, lines);
        self.rules.tables.push(table);
    }

    /// `:CHAIN POLICY [PACKETS:BYTES]`.
    fn declare(&mut self, table: &mut WorkTable, line: &str) -> Result<(), Fault> {
        let mut words = blank_words(line);
        let missing = |what: &str| {
            let column = line.chars().count() as u32 + 1;
            Fault { column, word: String::new(), kind: ErrorKind::Missing(what.to_owned()) }
        };
        let chain = words.next().ok_or_else(|| missing("the name of a chain"))?;
        let policy = words.next().ok_or_else(|| missing("the policy of the chain (`-` for one of your own)"))?;
        if !table.is_built_in(chain.as_str()) {
            check_name(&chain, false, self.rules.family)?;
            match table.find(chain.as_str()) {
                Some(id) if self.options.noflush => table.flush(id),
                Some(_) => return Err(chain.fault(ErrorKind::DeclaredTwice)),
                None => table.create(chain.as_str()),
            }
        }
        if policy.as_str() == "-" {
            return Ok(());
        }
        let counters = match words.next() {
            Some(word) => parse_counters(&word)?,
            None if self.options.counters => return Err(missing("the counters of the chain, [PACKETS:BYTES]")),
            None => Counters::default(),
        };
        let counters = if self.options.counters { counters } else { Counters::default() };
        set_policy(table, &chain, &policy, counters)
    }

    /// `[PACKETS:BYTES] COMMAND`.
    fn command(&mut self, table: &mut WorkTable, line: &str) -> Result<(), Fault> {
        let (counters, rest, column) = match line.find(']') {
            Some(end) if line.starts_with('[') => {
                let word = Word { text: line.get(..=end).unwrap_or_default().into(), column: 1 };
                let rest = line.get(end + 1..).unwrap_or_default();
                (Some(parse_counters(&word)?), rest, word.text.chars().count() as u32 + 1)
            }
            _ if line.starts_with('[') => {
                let word = Word { text: line.into(), column: 1 };
                return Err(word.bad(COUNTERS));
            }
            _ => (None, line, 1),
        };
        let words = lexer::words(rest, column)?;
        let family = self.rules.family;
        let Some(mut line) = options::read(family, words, &|name| table.find(name).is_some())? else { return Ok(()) };
        if let (Some(counters), true) = (counters, self.options.counters)
            && line.rule.counters.replace(counters).is_some()
        {
            return Err(line.word.fault(ErrorKind::Combination("counters are given twice".to_owned())));
        }
        self.carry_out(table, &line)
    }

    fn carry_out(&self, table: &mut WorkTable, line: &Line<'_>) -> Result<(), Fault> {
        let family = self.rules.family;
        let takes_rule = match line.verb {
            Verb::Append | Verb::Insert | Verb::Replace | Verb::Check => true,
            Verb::Delete => line.number.is_none(),
            _ => false,
        };
        let counters_only = line.verb == Verb::Policy && line.rule.counters.is_some();
        if let Some(word) = &line.rule.first
            && !takes_rule
            && !(counters_only && line.rule.matches.is_empty() && line.rule.target.is_none())
        {
            return Err(word.fault(ErrorKind::Combination("this command takes no description of a rule".to_owned())));
        }
        let Some(chain) = &line.chain else {
            match line.verb {
                Verb::Flush => table.flush_all(),
                Verb::Zero => table.zero_all(),
                Verb::DeleteChain => table.delete_all().map_err(|kind| line.word.fault(kind))?,
                _ => return Err(line.word.fault(ErrorKind::NeedsValue)),
            }
            return Ok(());
        };
        if line.verb == Verb::New {
            check_name(chain, true, family)?;
            if table.find(chain.as_str()).is_some() {
                return Err(chain.fault(ErrorKind::ChainExists));
            }
            table.create(chain.as_str());
            return Ok(());
        }
        let id = table.find(chain.as_str()).ok_or_else(|| chain.fault(ErrorKind::NoSuchChain))?;
        let rules = if takes_rule { rule::build(line, family, table.name(), chain.as_str())? } else { Vec::new() };
        let (number_word, number) = line.number.as_ref().map_or((chain, None), |(word, n)| (word, Some(n - 1)));
        let wrong_number = |kind| number_word.fault(kind);
        match line.verb {
            Verb::Append => {
                self.room(table, rules.len(), line)?;
                rules.into_iter().for_each(|rule| table.append(id, rule, self.number));
            }
            Verb::Insert => {
                self.room(table, rules.len(), line)?;
                for rule in rules {
                    table.insert(id, number.unwrap_or(0), rule, self.number).map_err(wrong_number)?;
                }
            }
            Verb::Replace => {
                let Ok([rule]) = <[Rule; 1]>::try_from(rules) else {
                    let why = "a rule is replaced by one rule: give one address, not a list";
                    return Err(line.word.fault(ErrorKind::Combination(why.to_owned())));
                };
                table.replace(id, number.unwrap_or(0), rule, self.number).map_err(wrong_number)?;
            }
            Verb::Delete => match number {
                Some(number) => table.delete(id, number).map_err(wrong_number)?,
                None => {
                    for rule in rules {
                        table.delete_rule(id, rule).map_err(|kind| chain.fault(kind))?;
                    }
                }
            },
            Verb::Check => {
                for rule in rules {
                    table.check(id, rule).map_err(|kind| chain.fault(kind))?;
                }
            }
            Verb::Flush => table.flush(id),
            Verb::Zero => match number {
                None => table.zero(id),
                Some(number) => table.zero_rule(id, number).map_err(wrong_number)?,
            },
            Verb::DeleteChain => table.delete_chain(id).map_err(|kind| chain.fault(kind))?,
            Verb::Policy => {
                let Some(policy) = &line.second else { return Err(line.word.fault(ErrorKind::NeedsValue)) };
                if table.name() == TableName::Nat && policy.as_str() == "DROP" {
                    let why = "the nat table is not for filtering: no DROP there";
                    return Err(policy.fault(ErrorKind::Combination(why.to_owned())));
                }
                set_policy(table, chain, policy, line.rule.counters.unwrap_or_default())?;
            }
            Verb::Rename => {
                let Some(name) = &line.second else { return Err(line.word.fault(ErrorKind::NeedsValue)) };
                check_name(name, true, family)?;
                if table.find(name.as_str()).is_some() {
                    return Err(name.fault(ErrorKind::ChainExists));
                }
                table.rename(id, name.as_str()).map_err(|kind| chain.fault(kind))?;
            }
            // Done above: the chain is not there yet.
            Verb::New => {}
        }
        Ok(())
    }

    /// Refuses more rules than there may be.
    fn room(&self, table: &WorkTable, more: usize, line: &Line<'_>) -> Result<(), Fault> {
        let rules = self.elsewhere + table.rules() + more;
        if rules > MAX_RULES { Err(line.word.fault(ErrorKind::TooMany(MAX_RULES))) } else { Ok(()) }
    }
}

/// Words of a line after its first character, by blanks alone.
fn blank_words(line: &str) -> impl Iterator<Item = Word<'_>> {
    let rest = line.get(1..).unwrap_or_default();
    rest.split([' ', '\t'])
        .scan(2u32, |column, text| {
            let word = Word { text: text.into(), column: *column };
            *column += text.chars().count() as u32 + 1;
            Some(word)
        })
        .filter(|word| !word.text.is_empty())
}

const COUNTERS: &str = "counters, [PACKETS:BYTES]";

fn parse_counters(word: &Word<'_>) -> Result<Counters, Fault> {
    let inner = word.as_str().strip_prefix('[').and_then(|t| t.strip_suffix(']')).and_then(|t| t.split_once(':'));
    let decimal = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    match inner.map(|(packets, bytes)| (decimal(packets), decimal(bytes))) {
        Some((Some(packets), Some(bytes))) => Ok(Counters { packets, bytes }),
        _ => Err(word.bad(COUNTERS)),
    }
}

fn set_policy(table: &mut WorkTable, chain: &Word<'_>, policy: &Word<'_>, counters: Counters) -> Result<(), Fault> {
    let known = match policy.as_str() {
        "ACCEPT" => Policy::Accept,
        "DROP" => Policy::Drop,
        _ => return Err(policy.fault(ErrorKind::BadPolicy)),
    };
    match table.find(chain.as_str()) {
        Some(id) if table.is_built_in(chain.as_str()) => {
            table.set_policy(id, known, counters);
            Ok(())
        }
        _ => Err(policy.fault(ErrorKind::BadPolicy)),
    }
}

/// Refuses what a chain cannot be called. A chain that is declared may have the name of a target and then hides it, one
/// that is made by a command may not.
fn check_name(name: &Word<'_>, by_command: bool, family: Family) -> Result<(), Fault> {
    const MOST: usize = 28;
    let text = name.as_str();
    let bad = |why| Err(name.fault(ErrorKind::BadChainName(why)));
    if text.is_empty() {
        bad("it is empty")
    } else if text.len() > MOST {
        bad("it is longer than 28 bytes")
    } else if text.starts_with(['-', '!']) {
        bad("it may not begin with `-` or `!`")
    } else if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') {
        bad("it may not contain blanks, quotes or control characters")
    } else if ["ACCEPT", "DROP", "RETURN", "QUEUE"].contains(&text) {
        bad("it is that of a verdict")
    } else if by_command && (super::ext::find_target(family, text).is_some() || super::ext::refused_target(text).is_some()) {
        bad("it is that of a target")
    } else {
        Ok(())
    }
}
