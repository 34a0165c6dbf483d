//! `statistic`: some packets of many.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, option, option_value, push, value};
use crate::iptables::{Inv, Match, Statistic};

pub(super) static STATISTIC: Extension<Match> = Extension {
    names: &["statistic"],
    family: None,
    options: &[value(&["mode"]), value(&["probability"]).not(), value(&["every"]).not(), value(&["packet"])],
    build,
};

/// The unit of probabilities is 2^-31.
const ONE: f64 = 2_147_483_648.0;

fn probability(word: &Word<'_>) -> Result<u32, Fault> {
    let text = word.as_str();
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    let value = text.parse::<f64>().ok().filter(|p| plain && (0.0..=1.0).contains(p));
    value.map(|p| (p * ONE).round() as u32).ok_or_else(|| word.bad("a probability from 0 to 1"))
}

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let mode = given.require("mode")?.value();
    let not_with = |names: &[&str]| match names.iter().find_map(|n| given.get(n)) {
        Some(used) => Err(used.word.fault(ErrorKind::Combination(format!("this option does not go with --mode {}", mode.text)))),
        None => Ok(()),
    };
    let statistic = match mode.as_str() {
        "random" => {
            not_with(&["every", "packet"])?;
            let used = given.require("probability")?;
            Statistic::Random(Inv { not: used.not, value: probability(used.value())? })
        }
        "nth" => {
            not_with(&["probability"])?;
            let every = given.require("every")?;
            let packet = given.require("packet")?.value();
            let n = read::number_in(every.value(), 1, u64::from(u32::MAX))? as u32;
            let packet = read::number_in(packet, 0, u64::from(n) - 1)? as u32;
            Statistic::Nth { every: n, packet, not: every.not }
        }
        _ => return Err(mode.bad("random or nth")),
    };
    Ok(Match::Statistic(statistic))
}

pub(super) fn print(statistic: &Statistic, out: &mut String) {
    out.push_str(" -m statistic --mode ");
    match *statistic {
        Statistic::Random(Inv { not, value }) => {
            out.push_str("random");
            option(out, not, "probability");
            push(out, format_args!(" {:.11}", f64::from(value) / ONE));
        }
        Statistic::Nth { every, packet, not } => {
            out.push_str("nth");
            option_value(out, not, "every", every);
            option_value(out, false, "packet", packet);
        }
    }
}
