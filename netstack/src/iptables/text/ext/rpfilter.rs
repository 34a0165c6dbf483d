//! `rpfilter`.

use super::super::error::Fault;
use super::{Extension, Given, Scope, flag, option};
use crate::iptables::{Match, RpFilter};

pub(super) static RPFILTER: Extension<Match> = Extension {
    names: &["rpfilter"],
    family: None,
    options: &[flag(&["loose"]), flag(&["validmark"]), flag(&["accept-local"]), flag(&["invert"])],
    build,
};

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    Ok(Match::Rpfilter(RpFilter {
        loose: given.has("loose"),
        valid_mark: given.has("validmark"),
        accept_local: given.has("accept-local"),
        invert: given.has("invert"),
    }))
}

pub(super) fn print(m: &RpFilter, out: &mut String) {
    out.push_str(" -m rpfilter");
    for (name, given) in [("loose", m.loose), ("validmark", m.valid_mark), ("accept-local", m.accept_local), ("invert", m.invert)]
    {
        if given {
            option(out, false, name);
        }
    }
}
