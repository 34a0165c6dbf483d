//! `recent`.

use super::super::error::{ErrorKind, Fault};
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, option_value, table_name, value};
use crate::iptables::{Family, Match, RecentAction, RecentMatch};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) static RECENT: Extension<Match> = Extension {
    names: &["recent"],
    family: None,
    options: &[
        flag(&["set"]).not(),
        flag(&["rcheck"]).not(),
        flag(&["update"]).not(),
        flag(&["remove"]).not(),
        value(&["seconds"]),
        flag(&["reap"]),
        value(&["hitcount"]),
        flag(&["rttl"]),
        value(&["name"]),
        value(&["mask"]),
        flag(&["rsource"]),
        flag(&["rdest"]),
    ],
    build,
};

const ACTIONS: [(&str, RecentAction); 4] = [
    ("set", RecentAction::Set),
    ("rcheck", RecentAction::Check),
    ("update", RecentAction::Update),
    ("remove", RecentAction::Remove),
];

fn full_mask(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::BROADCAST.into(),
        Family::V6 => Ipv6Addr::from_bits(u128::MAX).into(),
    }
}

fn build(scope: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    given.at_most_one(&ACTIONS.map(|a| a.0))?;
    let Some((used, action)) = ACTIONS.iter().find_map(|(name, action)| Some((given.get(name)?, *action))) else {
        return Err(given.missing("--set, --rcheck, --update or --remove"));
    };
    let seconds = given.read("seconds", |w| read::number_in(w, 1, u32::MAX.into()))?.unwrap_or(0) as u32;
    let hitcount = given.read("hitcount", read::number32)?.unwrap_or(0);
    let combination = |name: &str, why: &str| match given.get(name) {
        Some(u) => Err(u.word.fault(ErrorKind::Combination(why.to_owned()))),
        None => Ok(()),
    };
    // Of the others, which the kernel refuses, the rules' check knows.
    if matches!(action, RecentAction::Set | RecentAction::Remove) {
        combination("rttl", "goes with --rcheck and --update only")?;
    }
    if seconds == 0 {
        combination("reap", "needs --seconds")?;
    }
    let name = given.read("name", |w| {
        if RecentMatch::is_name(w.as_str()) { Ok(w.as_str().to_owned()) } else { Err(w.bad("1 to 199 bytes without `/`")) }
    })?;
    let mask =
        given.read("mask", |w| read::full_address(scope.family, w.as_str()).ok_or_else(|| w.bad("a mask, as an address")))?;
    // The last one of these two has it.
    let sides = given.uses.iter().rev().filter_map(|u| given.options.get(u.opt)?.names.first());
    let side = sides.copied().find(|name| matches!(*name, "rsource" | "rdest"));
    Ok(Match::Recent(Box::new(RecentMatch {
        not: used.not,
        action,
        seconds,
        reap: given.has("reap"),
        hitcount,
        rttl: given.has("rttl"),
        name: name.unwrap_or_else(|| "DEFAULT".to_owned()),
        mask: mask.unwrap_or_else(|| full_mask(scope.family)),
        dest: side == Some("rdest"),
    })))
}

pub(super) fn print(m: &RecentMatch, out: &mut String) {
    out.push_str(" -m recent");
    let action = ACTIONS.iter().find(|a| a.1 == m.action).map_or("set", |a| a.0);
    option(out, m.not, action);
    if m.seconds != 0 {
        option_value(out, false, "seconds", m.seconds);
    }
    if m.reap {
        option(out, false, "reap");
    }
    if m.hitcount != 0 {
        option_value(out, false, "hitcount", m.hitcount);
    }
    if m.rttl {
        option(out, false, "rttl");
    }
    option(out, false, "name");
    table_name(out, &m.name);
    option_value(out, false, "mask", read::Shown(m.mask));
    option(out, false, if m.dest { "rdest" } else { "rsource" });
}
