//! `sctp`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::fields::print_span;
use super::{Extension, Given, Opt, Scope, option, push, value};
use crate::iptables::{ChunkRule, Inv, Match, SctpChunks, SctpMatch};

pub(super) static SCTP: Extension<Match> = Extension {
    names: &["sctp"],
    family: None,
    options: &[
        value(&["sport", "source-port"]).not(),
        value(&["dport", "destination-port"]).not(),
        Opt { names: &["chunk-types"], values: 2, invert: true, refused: None },
    ],
    build,
};

/// Name, type, and names of the flags from the highest bit on.
#[rustfmt::skip]
const CHUNKS: [(&str, u8, &str); 22] = [
    ("DATA", 0, "----IUBE"), ("INIT", 1, ""), ("INIT_ACK", 2, ""), ("SACK", 3, ""), ("HEARTBEAT", 4, ""), ("HEARTBEAT_ACK", 5, ""),
    ("ABORT", 6, "-------T"), ("SHUTDOWN", 7, ""), ("SHUTDOWN_ACK", 8, ""), ("ERROR", 9, ""), ("COOKIE_ECHO", 10, ""),
    ("COOKIE_ACK", 11, ""), ("ECN_ECNE", 12, ""), ("ECN_CWR", 13, ""), ("SHUTDOWN_COMPLETE", 14, "-------T"),
    ("I_DATA", 64, "----IUBE"), ("ASCONF_ACK", 128, ""), ("RE_CONFIG", 130, ""), ("PAD", 132, ""), ("FORWARD_TSN", 192, ""),
    ("ASCONF", 193, ""), ("I_FORWARD_TSN", 194, ""),
];

const HOW: [(&str, ChunkRule); 3] = [("any", ChunkRule::Any), ("all", ChunkRule::All), ("only", ChunkRule::Only)];

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let chunks = |used: &super::Use<'_>| match used.values.as_slice() {
        [how, list] => Ok(Inv { not: used.not, value: chunks(how, list)? }),
        _ => Err(used.word.fault(ErrorKind::NeedsValue)),
    };
    Ok(Match::Sctp(Box::new(SctpMatch {
        sport: given.inv("sport", read::ports)?,
        dport: given.inv("dport", read::ports)?,
        chunks: given.get("chunk-types").map(chunks).transpose()?,
    })))
}

fn chunks(how: &Word<'_>, list: &Word<'_>) -> Result<SctpChunks, Fault> {
    let rule = HOW.iter().find(|h| h.0.eq_ignore_ascii_case(how.as_str())).map(|h| h.1);
    let how = rule.ok_or_else(|| how.bad("any, all or only"))?;
    let mut found = SctpChunks { how, types: [0; 4], flags: Vec::new() };
    match list.as_str() {
        text if text.eq_ignore_ascii_case("ALL") => found.types = [u64::MAX; 4],
        text if text.eq_ignore_ascii_case("NONE") => {}
        text => {
            for part in text.split(',') {
                chunk(part, &mut found).ok_or_else(|| {
                    list.bad("ALL, NONE, or chunks such as DATA:Be,INIT with the flags that must be set or clear")
                })?;
            }
        }
    }
    Ok(found)
}

fn chunk(text: &str, found: &mut SctpChunks) -> Option<()> {
    let (name, flags) = text.split_once(':').map_or((text, ""), |(name, flags)| (name, flags));
    let (_, ty, names) = *CHUNKS.iter().find(|c| c.0.eq_ignore_ascii_case(name))?;
    found.add(ty);
    if flags.is_empty() {
        return Some(());
    }
    let (mut mask, mut set) = (0, 0);
    for c in flags.chars() {
        let place = names.find(c.to_ascii_uppercase()).filter(|_| c.is_ascii_alphabetic())?;
        let bit = 0x80u8 >> place;
        mask |= bit;
        set |= if c.is_ascii_uppercase() { bit } else { 0 };
    }
    match found.flags.iter_mut().find(|f| f.0 == ty) {
        Some(f) => *f = (ty, f.1 | mask, f.2 | set),
        None => found.flags.push((ty, mask, set)),
    }
    found.flags.sort_unstable();
    Some(())
}

pub(super) fn print(m: &SctpMatch, out: &mut String) {
    out.push_str(" -m sctp");
    for (name, ports) in [("sport", &m.sport), ("dport", &m.dport)] {
        if let Some(ports) = ports {
            print_span(name, ports, out);
        }
    }
    let Some(chunks) = &m.chunks else { return };
    option(out, chunks.not, "chunk-types");
    let how = HOW.iter().find(|h| h.1 == chunks.value.how).map_or("", |h| h.0);
    push(out, format_args!(" {how} "));
    match chunks.value.types {
        [u64::MAX, u64::MAX, u64::MAX, u64::MAX] => out.push_str("ALL"),
        [0, 0, 0, 0] => out.push_str("NONE"),
        _ => print_chunks(&chunks.value, out),
    }
}

fn print_chunks(chunks: &SctpChunks, out: &mut String) {
    let mut separator = "";
    for (name, ty, names) in CHUNKS.iter().filter(|c| chunks.has(c.1)) {
        push(out, format_args!("{separator}{name}"));
        separator = ",";
        let Some((_, mask, set)) = chunks.flags.iter().find(|f| f.0 == *ty) else { continue };
        out.push(':');
        for (place, c) in names.chars().enumerate() {
            let bit = 0x80u8 >> place;
            if mask & bit != 0 {
                out.push(if set & bit != 0 { c } else { c.to_ascii_lowercase() });
            }
        }
    }
}
