//! `iprange`: addresses from one to another.

use super::super::error::Fault;
use super::super::value as read;
use super::{Extension, Given, Scope, option_value, value};
use crate::iptables::{Inv, Match};
use core::net::IpAddr;

pub(super) static IPRANGE: Extension<Match> =
    Extension { names: &["iprange"], family: None, options: &[value(&["src-range"]).not(), value(&["dst-range"]).not()], build };

fn build(scope: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let range = |name| given.inv(name, |w| read::address_range(scope.family, w, w.as_str()));
    let (src, dst) = (range("src-range")?, range("dst-range")?);
    if src.is_none() && dst.is_none() {
        return Err(given.missing("--src-range or --dst-range"));
    }
    Ok(Match::Iprange { src, dst })
}

pub(super) fn print(src: &Option<Inv<(IpAddr, IpAddr)>>, dst: &Option<Inv<(IpAddr, IpAddr)>>, out: &mut String) {
    out.push_str(" -m iprange");
    for (name, range) in [("src-range", src), ("dst-range", dst)] {
        if let Some(Inv { not, value: (first, last) }) = *range {
            option_value(out, not, name, format_args!("{}-{}", read::Shown(first), read::Shown(last)));
        }
    }
}
