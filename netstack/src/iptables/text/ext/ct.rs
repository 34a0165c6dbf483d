//! `CT` and its other name for `--notrack`, `NOTRACK`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Scope, flag, option, option_value, value};
use crate::iptables::{CtTarget, Target, ZoneDir};

const NO_HELPERS: &str = "there are no helpers here; a rule for the port says the same of most protocols";
const NO_EVENTS: &str = "there are no tracking events here";

pub(super) static CT: Extension<Target> = Extension {
    names: &["CT"],
    family: None,
    options: &[
        flag(&["notrack"]),
        value(&["zone"]),
        value(&["zone-orig"]),
        value(&["zone-reply"]),
        value(&["helper"]).refuse(NO_HELPERS),
        value(&["timeout"]).refuse("there are no named time-out policies here; the time-outs of tracking are set for all"),
        value(&["ctevents"]).refuse(NO_EVENTS),
        value(&["expevents"]).refuse(NO_EVENTS),
    ],
    build,
};

pub(super) static NOTRACK: Extension<Target> = Extension {
    names: &["NOTRACK"],
    family: None,
    options: &[],
    build: |_, _| Ok(Target::Ct(CtTarget { notrack: true, alias: true, zone: None })),
};

fn zone(word: &Word<'_>) -> Result<u16, Fault> {
    if word.as_str() == "mark" {
        let (what, reason) = ("--zone mark".to_owned(), "give the zone as a number, in a rule per mark".to_owned());
        return Err(word.fault(ErrorKind::Unsupported { what, reason }));
    }
    read::number_in(word, 0, u64::from(u16::MAX)).map(|n| n as u16)
}

fn build(_: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    given.at_most_one(&["zone", "zone-orig", "zone-reply"])?;
    let dirs = [("zone", ZoneDir::Both), ("zone-orig", ZoneDir::Original), ("zone-reply", ZoneDir::Reply)];
    let found = dirs.into_iter().find_map(|(name, dir)| given.get(name).map(|u| (u, dir)));
    let zone = found.map(|(used, dir)| zone(used.value()).map(|zone| (zone, dir))).transpose()?;
    Ok(Target::Ct(CtTarget { notrack: given.has("notrack"), alias: false, zone: zone.filter(|z| z.0 != 0) }))
}

pub(super) fn print(ct: &CtTarget, out: &mut String) {
    if ct.alias {
        out.push_str(" -j NOTRACK");
        return;
    }
    out.push_str(" -j CT");
    if ct.notrack {
        option(out, false, "notrack");
    }
    if let Some((zone, dir)) = ct.zone {
        let name = match dir {
            ZoneDir::Both => "zone",
            ZoneDir::Original => "zone-orig",
            ZoneDir::Reply => "zone-reply",
        };
        option_value(out, false, name, zone);
    }
}
