//! `hashlimit`, with the arithmetic of Linux's tool: what a rate becomes in the kernel's units is what is printed.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, option_value, push, table_name, value};
use crate::iptables::{Family, HashlimitMatch, Match, hashlimit_mode};

pub(super) static HASHLIMIT: Extension<Match> = Extension {
    names: &["hashlimit"],
    family: None,
    options: &[
        // `--hashlimit` is the name that it had.
        value(&["hashlimit-upto", "hashlimit"]).not(),
        value(&["hashlimit-above"]).not(),
        value(&["hashlimit-burst"]),
        value(&["hashlimit-mode"]),
        value(&["hashlimit-name"]),
        value(&["hashlimit-htable-size"]),
        value(&["hashlimit-htable-max"]),
        value(&["hashlimit-htable-expire"]),
        value(&["hashlimit-htable-gcinterval"]),
        value(&["hashlimit-srcmask"]),
        value(&["hashlimit-dstmask"]),
        flag(&["hashlimit-rate-match"]),
        value(&["hashlimit-rate-interval"]),
    ],
    build,
};

/// Units of time from packet to packet in a second.
const SCALE: u64 = 1_000_000;
/// Bytes are counted in chunks of 16.
const CHUNK_SHIFT: u32 = 4;
const BURST: u64 = 5;
const MAX_BURST: u64 = 1_000_000;
const GC_INTERVAL: u32 = 1000;
/// For how many seconds an entry is kept under a rate of bytes, and if there is a burst.
const BYTES_EXPIRE: u32 = 15;
const BYTES_BURST_EXPIRE: u32 = 60;

/// Units, the longest first: name in full, name that is printed, seconds.
const UNITS: [(&str, &str, u32); 4] =
    [("day", "day", 86_400), ("hour", "hour", 3600), ("minute", "min", 60), ("second", "sec", 1)];

const MODES: [(&str, u8); 4] = [
    ("srcip", hashlimit_mode::SRC_IP),
    ("srcport", hashlimit_mode::SRC_PORT),
    ("dstip", hashlimit_mode::DST_IP),
    ("dstport", hashlimit_mode::DST_PORT),
];

/// A rate as it is written.
struct Rate {
    avg: u64,
    bytes: bool,
    /// Seconds of its unit.
    unit: u32,
}

/// Digits, and what follows.
fn digits(text: &str) -> (Option<u64>, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (digits.parse().ok(), rest)
}

fn factor(unit: &str) -> Option<u64> {
    match unit {
        "" => Some(1),
        "k" => Some(1024),
        "m" => Some(1024 * 1024),
        _ => None,
    }
}

fn rate(word: &Word<'_>) -> Result<Rate, Fault> {
    let (count, rest) = digits(word.as_str());
    let bad = || {
        word.bad(
            "a rate: packets per second, minute, hour or day such as 3/minute, at most 1000000/sec, or bytes such as 512kb/s",
        )
    };
    let count = count.ok_or_else(bad)?;
    if let Some(unit) = rest.strip_suffix("b/s") {
        let bytes = factor(unit).and_then(|f| count.checked_mul(f)).ok_or_else(bad)?;
        // Less than a chunk is printed as `0b/s`.
        let avg = cost(bytes);
        return if avg == 0 { Err(bad()) } else { Ok(Rate { avg, bytes: true, unit: BYTES_EXPIRE }) };
    }
    let unit = match rest {
        "" => "second",
        rest => rest.strip_prefix('/').filter(|u| !u.is_empty()).ok_or_else(bad)?,
    };
    let begins = |full: &str| full.get(..unit.len()).is_some_and(|start| start.eq_ignore_ascii_case(unit));
    let seconds = UNITS.iter().find(|u| begins(u.0)).map(|u| u.2).ok_or_else(bad)?;
    let avg = (SCALE * u64::from(seconds)).checked_div(count).filter(|avg| *avg > 0).ok_or_else(bad)?;
    Ok(Rate { avg, bytes: false, unit: seconds })
}

/// What a chunk costs under a rate of so many bytes per second; in 32 bits, as there.
const fn cost(bytes: u64) -> u64 {
    u32::MAX as u64 / ((bytes >> CHUNK_SHIFT) as u32 as u64 + 1)
}

/// Bytes per second of a rate.
const fn bytes_per_second(avg: u64) -> u64 {
    let chunks = match (u32::MAX as u64).checked_div(avg) {
        Some(chunks) => chunks,
        None => u32::MAX as u64,
    };
    chunks.saturating_sub(1) << CHUNK_SHIFT
}

fn burst(word: &Word<'_>) -> Result<u64, Fault> {
    let bad = || word.bad(format!("a number from 1 to {MAX_BURST}, or bytes such as 100kb"));
    let (number, rest) = digits(word.as_str());
    let number = number.filter(|n| *n > 0).ok_or_else(bad)?;
    match rest {
        "" if number > MAX_BURST => Err(bad()),
        "" => Ok(number),
        rest => {
            let unit = rest.strip_suffix('b').unwrap_or(rest);
            factor(unit).and_then(|f| number.checked_mul(f)).ok_or_else(bad)
        }
    }
}

fn mode(word: &Word<'_>) -> Result<u8, Fault> {
    let one = |name: &str| if name.is_empty() { Some(0) } else { MODES.iter().find(|m| m.0 == name).map(|m| m.1) };
    let all = word.as_str().split(',').try_fold(0, |all, name| Some(all | one(name)?));
    all.ok_or_else(|| word.bad("srcip, srcport, dstip, dstport, or a list of them with commas"))
}

fn build(scope: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    given.at_most_one(&["hashlimit-upto", "hashlimit-above"])?;
    let (used, above) = match (given.get("hashlimit-upto"), given.get("hashlimit-above")) {
        (Some(u), _) => (u, u.not),
        (_, Some(u)) => (u, !u.not),
        _ => return Err(given.missing("--hashlimit-upto or --hashlimit-above")),
    };
    let name = given.require("hashlimit-name")?.value();
    if name.as_str().len() > HashlimitMatch::MAX_NAME {
        return Err(name.bad("a name of at most 254 bytes"));
    }
    let number = |option: &str| given.read(option, read::number32);
    let rate = rate(used.value())?;
    let mut avg = rate.avg;
    let mut expire = number("hashlimit-htable-expire")?.unwrap_or(rate.unit * 1000);
    let given_burst = given.read("hashlimit-burst", |w| Ok((burst(w)?, w.clone())))?;
    let burst = match given_burst {
        Some((bytes, word)) if rate.bytes => {
            let second = bytes_per_second(rate.avg);
            if second == 0 || bytes < second {
                return Err(word.fault(ErrorKind::Combination(format!("the burst cannot be smaller than the rate, {second}b"))));
            }
            if !given.has("hashlimit-htable-expire") {
                expire = BYTES_BURST_EXPIRE * 1000;
            }
            // 32 bits, as there.
            canonical_burst(u64::from(bytes.div_ceil(second) as u32), second)
        }
        None if rate.bytes => 0,
        Some((packets, word)) if packets > MAX_BURST => {
            return Err(word.bad(format!("a number from 1 to {MAX_BURST}")));
        }
        Some((packets, _)) => packets,
        None => BURST,
    };
    let mut interval = None;
    let given_interval = number("hashlimit-rate-interval")?;
    if given.has("hashlimit-rate-match") {
        let unit = if rate.bytes { 1 } else { rate.unit };
        if !rate.bytes {
            avg /= u64::from(unit);
        }
        interval = Some(given_interval.filter(|n| *n > 0).unwrap_or(unit));
    }
    if !rate.bytes {
        avg = canonical(avg);
    }
    let prefix = |option: &str| given.read(option, |w| read::number_in(w, 0, 255).map(|n| n as u8));
    let whole = read::bits_of(scope.family);
    Ok(Match::Hashlimit(Box::new(HashlimitMatch {
        above,
        bytes: rate.bytes,
        avg,
        burst,
        mode: given.read("hashlimit-mode", mode)?.unwrap_or(0),
        name: name.as_str().to_owned(),
        src_prefix: prefix("hashlimit-srcmask")?.unwrap_or(whole),
        dst_prefix: prefix("hashlimit-dstmask")?.unwrap_or(whole),
        size: number("hashlimit-htable-size")?.unwrap_or(0).min(HashlimitMatch::MAX_SIZE),
        max: number("hashlimit-htable-max")?.unwrap_or(0),
        expire,
        gc_interval: number("hashlimit-htable-gcinterval")?.unwrap_or(GC_INTERVAL),
        interval,
    })))
}

/// Bytes in the largest unit that `fits`: how many of it, its name, its bytes.
fn in_unit(bytes: u64, fits: impl Fn(u64) -> bool) -> (u64, &'static str, u64) {
    let units = [("m", 1024 * 1024), ("k", 1024)];
    let (unit, of) = units.into_iter().find(|(_, of)| bytes >= *of && fits(*of)).unwrap_or(("", 1));
    (bytes / of, unit, of)
}

/// The rate of packets in the smallest unit in which it is a whole number, or nearly: how many, name and seconds of the unit.
fn per_unit(period: u64) -> (u64, &'static str, u32) {
    let mut best = UNITS[0];
    for unit in UNITS.into_iter().skip(1) {
        let ticks = u64::from(unit.2) * SCALE;
        if period > ticks || ticks / period < ticks % period {
            break;
        }
        best = unit;
    }
    (u64::from(best.2) * SCALE / period, best.1, best.2)
}

/// What is read of a rate when it was printed: not quite the same, now and then. That is what is kept, so that it stays.
fn canonical(period: u64) -> u64 {
    let (rate, _, seconds) = per_unit(period.max(1));
    (u64::from(seconds) * SCALE).checked_div(rate).unwrap_or(period)
}

/// A burst of so many seconds' worth of bytes. Where the whole number of a unit is less than the rate, which cannot be read, it is a smaller unit's; there
/// the real tool prints what it does not read.
fn burst_in_unit(burst: u64, second: u64) -> (u64, &'static str, u64) {
    let bytes = second.saturating_mul(burst);
    in_unit(bytes, |of| bytes / of * of >= second)
}

/// The same of a burst of bytes, in seconds' worth.
fn canonical_burst(burst: u64, second: u64) -> u64 {
    let (n, _, of) = burst_in_unit(burst, second);
    (n * of).checked_div(second).map_or(burst, |whole| whole + u64::from((n * of) % second != 0))
}

pub(super) fn print(m: &HashlimitMatch, family: Family, out: &mut String) {
    out.push_str(" -m hashlimit");
    option(out, false, if m.above { "hashlimit-above" } else { "hashlimit-upto" });
    out.push(' ');
    let expire = if m.bytes {
        let second = bytes_per_second(m.avg);
        // The unit's whole number must mean the same. (32 bits of it, as there.)
        let same = |of: u64| cost(u64::from(second as u32) & !(of - 1)) == m.avg;
        let (n, unit, _) = in_unit(second, same);
        push(out, format_args!("{n}{unit}b/s"));
        if m.burst == 0 {
            BYTES_EXPIRE
        } else {
            option(out, false, "hashlimit-burst");
            let (n, unit, _) = burst_in_unit(m.burst, second);
            push(out, format_args!(" {n}{unit}b"));
            BYTES_BURST_EXPIRE
        }
    } else {
        let (n, unit, seconds) = per_unit(m.avg.max(1));
        push(out, format_args!("{n}/{unit}"));
        option_value(out, false, "hashlimit-burst", m.burst);
        seconds
    };
    if m.mode != 0 {
        option(out, false, "hashlimit-mode");
        let mut separator = ' ';
        for (name, _) in MODES.iter().filter(|(_, bit)| m.mode & bit != 0) {
            push(out, format_args!("{separator}{name}"));
            separator = ',';
        }
    }
    option(out, false, "hashlimit-name");
    table_name(out, &m.name);
    let numbers = [
        ("hashlimit-htable-size", m.size, 0),
        ("hashlimit-htable-max", m.max, 0),
        ("hashlimit-htable-gcinterval", m.gc_interval, GC_INTERVAL),
        ("hashlimit-htable-expire", m.expire, expire * 1000),
    ];
    for (name, n, usual) in numbers {
        if n != usual {
            option_value(out, false, name, n);
        }
    }
    for (name, prefix) in [("hashlimit-srcmask", m.src_prefix), ("hashlimit-dstmask", m.dst_prefix)] {
        if prefix != read::bits_of(family) {
            option_value(out, false, name, prefix);
        }
    }
    if let Some(interval) = m.interval {
        option(out, false, "hashlimit-rate-match");
        if interval != 1 {
            option_value(out, false, "hashlimit-rate-interval", interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_printed_is_read_as_it_was() {
        for (_, _, seconds) in UNITS {
            let ticks = u64::from(seconds) * SCALE;
            for count in (1..=40_000).chain([ticks / 3, ticks / 2, ticks]) {
                let Some(period) = ticks.checked_div(count).filter(|p| *p > 0) else { continue };
                let kept = canonical(period);
                assert_eq!((canonical(kept), per_unit(kept)), (kept, per_unit(period)), "{count} in {seconds} s");
            }
        }
        for bytes in (0..20_000).map(|n| n * 16).chain([123_456, 1 << 20, 5 << 20, 4095 << 20, 1100 << 10]) {
            let avg = cost(bytes);
            let second = bytes_per_second(avg);
            assert_eq!(cost(second), avg, "{bytes}");
            for burst in [1, 2, 7, 11, 1000, 65_537, 1_000_003] {
                let Some(kept) = (second > 0).then(|| canonical_burst(burst, second)) else { continue };
                let (n, _, of) = burst_in_unit(kept, second);
                assert!(kept <= burst && canonical_burst(kept, second) == kept, "{burst} times {second}");
                assert!(n * of >= second && (n * of).div_ceil(second) == kept, "{burst} times {second}: {n} times {of}");
            }
        }
    }
}
