//! `limit`: a rate.

use super::super::error::Fault;
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, option_value, value};
use crate::iptables::{Match, RateUnit};

pub(super) static LIMIT: Extension<Match> =
    Extension { names: &["limit"], family: None, options: &[value(&["limit"]), value(&["limit-burst"])], build };

/// Ticks of a second in which the kernel keeps the time between two packets.
const SCALE: u32 = 10_000;
const BURST: u32 = 5;

/// Units, the longest first: name in full, name that is printed, ticks.
const UNITS: [(&str, &str, RateUnit, u32); 4] = [
    ("day", "day", RateUnit::Day, 24 * 3600 * SCALE),
    ("hour", "hour", RateUnit::Hour, 3600 * SCALE),
    ("minute", "min", RateUnit::Minute, 60 * SCALE),
    ("second", "sec", RateUnit::Second, SCALE),
];

/// Ticks between two packets, and the rate in the unit that shows it best, as the kernel's tool chooses it.
fn rate(word: &Word<'_>) -> Result<(u32, RateUnit), Fault> {
    let bad = || word.bad("a rate of at least 1 per day and at most 10000 per second, such as 3/minute");
    let (count, unit) = word.as_str().split_once('/').map_or((word.as_str(), "second"), |parts| parts);
    let begins = |full: &str| full.get(..unit.len()).is_some_and(|start| start.eq_ignore_ascii_case(unit));
    let ticks = UNITS.iter().find(|u| !unit.is_empty() && begins(u.0)).map(|u| u.3).ok_or_else(bad)?;
    let count = count.bytes().all(|b| b.is_ascii_digit()).then(|| count.parse::<u32>().ok()).flatten();
    let period = count.and_then(|n| ticks.checked_div(n)).filter(|period| *period > 0).ok_or_else(bad)?;
    Ok(canonical(period))
}

/// The smallest unit in which a period is a whole rate, or nearly.
fn canonical(period: u32) -> (u32, RateUnit) {
    let mut best = (UNITS[0].3 / period, UNITS[0].2);
    for (_, _, unit, ticks) in UNITS.into_iter().skip(1) {
        if period > ticks || ticks / period < ticks % period {
            break;
        }
        best = (ticks / period, unit);
    }
    best
}

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let (rate, unit) = given.read("limit", rate)?.unwrap_or((3, RateUnit::Hour));
    let burst = given.read("limit-burst", |w| read::number_in(w, 1, 10_000).map(|n| n as u32))?.unwrap_or(BURST);
    Ok(Match::Limit { rate, unit, burst })
}

pub(super) fn print(rate: u32, unit: RateUnit, burst: u32, out: &mut String) {
    out.push_str(" -m limit");
    let name = UNITS.iter().find(|u| u.2 == unit).map_or("sec", |u| u.1);
    option_value(out, false, "limit", format_args!("{rate}/{name}"));
    if burst != BURST {
        option_value(out, false, "limit-burst", burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canonical_rate_stays_what_it_is() {
        for (_, _, _, ticks) in UNITS {
            for count in (1..=20_000).chain([ticks / 3, ticks / 2, ticks]) {
                let Some(period) = ticks.checked_div(count).filter(|p| *p > 0) else { continue };
                let (rate, unit) = canonical(period);
                let again = UNITS.iter().find(|u| u.2 == unit).expect("unit").3 / rate;
                assert_eq!(canonical(again), (rate, unit), "{count} in {ticks}");
            }
        }
    }
}
