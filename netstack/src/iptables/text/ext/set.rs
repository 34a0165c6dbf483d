//! `set` and `SET`.

use super::super::error::{ErrorKind, Fault};
use super::super::lexer::Word;
use super::super::value as read;
use super::{Extension, Given, Opt, Scope, Use, flag, option, option_value, push, value};
use crate::ipset::{CounterTest, MAX_NAME};
use crate::iptables::{Match, SetDirs, SetMatch, SetRef, SetTarget, Target};

/// An option with a name of a set and directions.
const fn set(names: &'static [&'static str]) -> Opt {
    Opt { names, values: 2, invert: false, refused: None }
}

pub(super) static SET_MATCH: Extension<Match> = Extension {
    names: &["set"],
    family: None,
    options: &[
        // `--set` is the name that it had.
        set(&["match-set", "set"]).not(),
        flag(&["return-nomatch"]),
        flag(&["update-counters"]).not(),
        flag(&["update-subcounters"]).not(),
        value(&["packets-eq"]).not(),
        value(&["packets-lt"]),
        value(&["packets-gt"]),
        value(&["bytes-eq"]).not(),
        value(&["bytes-lt"]),
        value(&["bytes-gt"]),
    ],
    build,
};

const NO_SKBINFO: &str = "sets have no marks, priorities and queues here; use MARK";

pub(super) static SET: Extension<Target> = Extension {
    names: &["SET"],
    family: None,
    options: &[
        set(&["add-set"]),
        set(&["del-set"]),
        set(&["map-set"]).refuse(NO_SKBINFO),
        flag(&["exist"]),
        value(&["timeout"]),
        flag(&["map-mark"]).refuse(NO_SKBINFO),
        flag(&["map-prio"]).refuse(NO_SKBINFO),
        flag(&["map-queue"]).refuse(NO_SKBINFO),
    ],
    build: build_target,
};

fn set_ref(used: &Use<'_>) -> Result<SetRef, Fault> {
    let [name, dirs] = used.values.as_slice() else { return Err(used.word.fault(ErrorKind::NeedsValue)) };
    if name.as_str().is_empty() || name.as_str().len() > MAX_NAME {
        return Err(name.bad("the name of a set, at most 31 bytes"));
    }
    Ok(SetRef { name: name.as_str().to_owned(), dirs: directions(dirs)? })
}

fn directions(word: &Word<'_>) -> Result<SetDirs, Fault> {
    let mut dirs = SetDirs { count: 0, src: 0 };
    for part in word.as_str().split(',') {
        if dirs.count == SetDirs::MOST {
            return Err(word.bad("at most 6 of src and dst"));
        }
        match part {
            "src" => dirs.src |= 1 << dirs.count,
            "dst" => {}
            _ => return Err(word.bad("src, dst, or a list of them with commas")),
        }
        dirs.count += 1;
    }
    Ok(dirs)
}

/// `--NAME-eq`, `-lt`, `-gt`.
fn counter(given: &Given<'_>, names: [&str; 3]) -> Result<Option<CounterTest>, Fault> {
    given.at_most_one(&names)?;
    let number = |u: &Use<'_>| read::number_in(u.value(), 0, u64::MAX);
    let [eq, lt, gt] = names.map(|n| given.get(n));
    Ok(match (eq, lt, gt) {
        (Some(u), _, _) if u.not => Some(CounterTest::Other(number(u)?)),
        (Some(u), _, _) => Some(CounterTest::Equal(number(u)?)),
        (_, Some(u), _) => Some(CounterTest::Less(number(u)?)),
        (_, _, Some(u)) => Some(CounterTest::Greater(number(u)?)),
        _ => None,
    })
}

fn build(_: &Scope, given: &Given<'_>) -> Result<Match, Fault> {
    let used = given.require("match-set")?;
    let skips = |name| given.get(name).is_some_and(|u| u.not);
    Ok(Match::Set(Box::new(SetMatch {
        not: used.not,
        set: set_ref(used)?,
        return_nomatch: given.has("return-nomatch"),
        no_counters: skips("update-counters"),
        no_subcounters: skips("update-subcounters"),
        packets: counter(given, ["packets-eq", "packets-lt", "packets-gt"])?,
        bytes: counter(given, ["bytes-eq", "bytes-lt", "bytes-gt"])?,
    })))
}

fn build_target(_: &Scope, given: &Given<'_>) -> Result<Target, Fault> {
    let named = |name| given.get(name).map(set_ref).transpose();
    let (add, del) = (named("add-set")?, named("del-set")?);
    if add.is_none() && del.is_none() {
        return Err(given.missing("--add-set or --del-set"));
    }
    if let (None, Some(u)) = (&add, given.get("exist").or(given.get("timeout"))) {
        return Err(u.word.fault(ErrorKind::Combination("goes with --add-set only".to_owned())));
    }
    let timeout = given.read("timeout", |w| read::number_in(w, 0, u32::MAX.into()))?;
    // As there: all ones is none.
    let timeout = timeout.filter(|t| *t != u64::from(u32::MAX)).map(|t| t as u32);
    Ok(Target::Set(Box::new(SetTarget { add, exist: given.has("exist"), timeout, del })))
}

fn print_set(out: &mut String, not: bool, name: &str, set: &SetRef) {
    option_value(out, not, name, &set.name);
    for n in 0..set.dirs.count {
        let dir = if set.dirs.is_src(n) { "src" } else { "dst" };
        push(out, format_args!("{}{dir}", if n == 0 { " " } else { "," }));
    }
}

fn print_counter(out: &mut String, name: &str, test: Option<CounterTest>) {
    let Some(test) = test else { return };
    let (not, op, n) = match test {
        CounterTest::Equal(n) => (false, "eq", n),
        CounterTest::Other(n) => (true, "eq", n),
        CounterTest::Less(n) => (false, "lt", n),
        CounterTest::Greater(n) => (false, "gt", n),
    };
    option(out, not, name);
    push(out, format_args!("-{op} {n}"));
}

pub(super) fn print_match(m: &SetMatch, out: &mut String) {
    out.push_str(" -m set");
    print_set(out, m.not, "match-set", &m.set);
    if m.return_nomatch {
        option(out, false, "return-nomatch");
    }
    if m.no_counters {
        option(out, true, "update-counters");
    }
    if m.no_subcounters {
        option(out, true, "update-subcounters");
    }
    print_counter(out, "packets", m.packets);
    print_counter(out, "bytes", m.bytes);
}

pub(super) fn print_target(t: &SetTarget, out: &mut String) {
    out.push_str(" -j SET");
    if let Some(add) = &t.add {
        print_set(out, false, "add-set", add);
    }
    if t.exist {
        option(out, false, "exist");
    }
    if let Some(timeout) = t.timeout {
        option_value(out, false, "timeout", timeout);
    }
    if let Some(del) = &t.del {
        print_set(out, false, "del-set", del);
    }
}
