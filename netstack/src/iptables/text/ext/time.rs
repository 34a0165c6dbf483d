//! `time`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, option_value, push, value};
use crate::iptables::{Match, TimeMatch};

const UTC_ONLY: &str = "there is no time zone here: give times in UTC";

pub(super) static TIME: Extension<Match> = Extension {
    names: &["time"],
    family: None,
    options: &[
        value(&["datestart"]),
        value(&["datestop"]),
        value(&["timestart"]),
        value(&["timestop"]),
        value(&["weekdays"]).not(),
        value(&["monthdays"]).not(),
        flag(&["contiguous"]),
        flag(&["utc"]),
        flag(&["kerneltz", "localtz"]).refuse(UTC_ONLY),
    ],
    build,
};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const DAY: u64 = 86_400;

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let always = TimeMatch::ALWAYS;
    let inverted = |name: &str| given.get(name).is_some_and(|used| used.not);
    let weekdays = given.read("weekdays", weekdays)?;
    let monthdays = given.read("monthdays", monthdays)?;
    let m = TimeMatch {
        dates: (
            given.read("datestart", date)?.unwrap_or(always.dates.0),
            given.read("datestop", date)?.unwrap_or(always.dates.1),
        ),
        day: (given.read("timestart", time)?.unwrap_or(always.day.0), given.read("timestop", time)?.unwrap_or(always.day.1)),
        monthdays: monthdays.map_or(always.monthdays, |d| if inverted("monthdays") { always.monthdays & !d } else { d }),
        weekdays: weekdays.map_or(always.weekdays, |d| if inverted("weekdays") { always.weekdays & !d } else { d }),
        contiguous: given.has("contiguous"),
    };
    for (name, none) in [("weekdays", m.weekdays == 0), ("monthdays", m.monthdays == 0)] {
        if let (true, Some(used)) = (none, given.get(name)) {
            return Err(used.value().bad("at least one day"));
        }
    }
    if let Some(used) = given.get("contiguous").filter(|_| m.day.0 < m.day.1) {
        let why = "--contiguous is for times that go over midnight: --timestop before --timestart";
        return Err(used.word.fault(ErrorKind::Combination(why.to_owned())));
    }
    Ok(Match::Time(Box::new(m)))
}

/// A decimal number of one to `most` digits, at most `max`.
fn decimal(text: &str, most: usize, max: u64) -> Option<u64> {
    let plain = (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| plain && *n <= max)
}

/// Hours, minutes and seconds; at least `least` of them.
fn seconds(text: &str, least: usize) -> Option<u64> {
    let mut parts = text.split(':');
    let (mut all, mut n) = (0, 0);
    for (unit, max) in [(3_600, 23), (60, 59), (1, 59)] {
        let Some(part) = parts.next() else { break };
        all += decimal(part, 2, max)? * unit;
        n += 1;
    }
    (n >= least && parts.next().is_none()).then_some(all)
}

fn time(word: &Word<'_>) -> Result<u32, Fault> {
    seconds(word.as_str(), 2).map(|s| s as u32).ok_or_else(|| word.bad("a time of day, HOURS:MINUTES[:SECONDS]"))
}

/// `YEAR[-MONTH[-DAY[THOURS[:MINUTES[:SECONDS]]]]]`, as seconds since 1970.
fn date(word: &Word<'_>) -> Result<u32, Fault> {
    let read = || {
        let (date, time) = word.as_str().split_once('T').map_or((word.as_str(), None), |(d, t)| (d, Some(t)));
        let mut parts = date.split('-');
        let year = decimal(parts.next()?, 4, 2038).filter(|y| *y >= 1970)?;
        let month = parts.next().map_or(Some(1), |p| decimal(p, 2, 12).filter(|m| *m > 0))?;
        let day = parts.next().map_or(Some(1), |p| decimal(p, 2, 31).filter(|d| *d > 0))?;
        let whole = parts.next().is_none() && (time.is_none() || date.split('-').count() == 3);
        let second = time.map_or(Some(0), |t| seconds(t, 1))?;
        let all = (days_before(year, month) + day - 1) * DAY + second;
        u32::try_from(all).ok().filter(|all| whole && *all <= TimeMatch::LAST_DATE)
    };
    read().ok_or_else(|| word.bad("a date of 1970 to 2038-01-19T03:14:07, YEAR[-MONTH[-DAY[THOURS[:MINUTES[:SECONDS]]]]]"))
}

/// Days from 1970 to the first of a month.
fn days_before(year: u64, month: u64) -> u64 {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let years: u64 = (1970..year).map(|y| 365 + u64::from(leap(y))).sum();
    const LENGTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months: u64 = LENGTHS.iter().take(month as usize - 1).sum();
    years + months + u64::from(month > 2 && leap(year))
}

fn weekdays(word: &Word<'_>) -> Result<u8, Fault> {
    let one = |text: &str| {
        let named = DAYS.iter().position(|d| text.len() >= 2 && d.starts_with(text)).map(|d| d as u64 + 1);
        named.or_else(|| decimal(text, 1, 7).filter(|d| *d > 0)).map(|d| 1 << d)
    };
    read::bits(word, "days of the week: 1 to 7 or Mon, Tue, Wed, Thu, Fri, Sat, Sun", one).map(|bits| bits as u8)
}

fn monthdays(word: &Word<'_>) -> Result<u32, Fault> {
    let one = |all: u32, text: &str| decimal(text, 2, 31).filter(|d| *d > 0).map(|d| all | 1 << d);
    word.as_str().split(',').try_fold(0, one).ok_or_else(|| word.bad("days of the month, 1 to 31"))
}

fn print_time(name: &str, second: u32, out: &mut String) {
    option_value(out, false, name, format_args!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60));
}

fn print_date(name: &str, date: u32, out: &mut String) {
    let (days, second) = (u64::from(date) / DAY, u64::from(date) % DAY);
    let year = (1970..=2038).rev().find(|y| days_before(*y, 1) <= days).unwrap_or(1970);
    let month = (1..=12).rev().find(|m| days_before(year, *m) <= days).unwrap_or(1);
    let day = days - days_before(year, month) + 1;
    let time = (second / 3_600, second / 60 % 60, second % 60);
    option_value(out, false, name, format_args!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}", time.0, time.1, time.2));
}

fn print_list<T: std::fmt::Display>(name: &str, all: impl Iterator<Item = T>, out: &mut String) {
    option(out, false, name);
    for (n, one) in all.enumerate() {
        push(out, format_args!("{}{one}", if n == 0 { " " } else { "," }));
    }
}

pub(super) fn print(m: &TimeMatch, out: &mut String) {
    let always = TimeMatch::ALWAYS;
    out.push_str(" -m time");
    if m.day != always.day {
        print_time("timestart", m.day.0, out);
        print_time("timestop", m.day.1, out);
    }
    if m.monthdays != always.monthdays {
        print_list("monthdays", (1..=31).filter(|d| m.monthdays >> d & 1 != 0), out);
    }
    if m.weekdays != always.weekdays {
        let names = DAYS.iter().enumerate().filter(|(d, _)| m.weekdays >> (d + 1) & 1 != 0);
        print_list("weekdays", names.map(|(_, name)| &name[..3]), out);
    }
    if m.dates.0 != 0 {
        print_date("datestart", m.dates.0, out);
    }
    print_date("datestop", m.dates.1, out);
    if m.contiguous {
        option(out, false, "contiguous");
    }
}
