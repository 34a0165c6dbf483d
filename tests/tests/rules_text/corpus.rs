//! Rule texts of others: the cases that iptables tests itself with (`*.t`), and dumps of real firewalls. They are not part of the project:
//! `HIBERNET_CORPUS` names a directory with `iptables-t` and `dumps` in it.

use crate::{V4, V6, plain};
use hibernet_netstack::iptables::text::{ErrorKind, parse};
use hibernet_netstack::iptables::{Family, Program, RuleFault};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder of the corpus; says so if there is none.
fn corpus(folder: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("HIBERNET_CORPUS").map(|dir| PathBuf::from(dir).join(folder)).filter(|dir| dir.is_dir());
    if dir.is_none() {
        eprintln!("SKIPPED: HIBERNET_CORPUS names no directory with {folder}");
    }
    dir
}

fn files(dir: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut all: Vec<(String, String)> = entries
        .filter_map(|e| {
            let e = e.ok()?;
            Some((e.file_name().into_string().ok()?, std::fs::read_to_string(e.path()).ok()?))
        })
        .collect();
    all.sort();
    all
}

/// What became of the cases of a file.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    right: usize,
    by_name: usize,
    wrong: usize,
}

/// One case in one chain of one table: `Ok` if it is as expected, else what came.
fn case(family: Family, table: &str, chain: &str, rule: &str, want: Option<&str>) -> Result<Option<String>, String> {
    let text = format!("*{table}\n-A {chain} {rule}\nCOMMIT\n");
    let read = match parse(family, &text) {
        Err(e) if matches!(e.kind, ErrorKind::Unsupported { .. }) => return Ok(Some(e.to_string())),
        Err(e) => Err(e.to_string()),
        Ok(rules) => Program::compile(&rules).map(|_| rules).map_err(|e| e.to_string()),
    };
    match (read, want) {
        (Err(_), None) => Ok(None),
        (Err(e), Some(_)) => Err(format!("refused: {e}")),
        (Ok(rules), None) => Err(format!("accepted: {}", plain(&rules))),
        (Ok(rules), Some(want)) => {
            let text = plain(&rules);
            assert_eq!(parse(family, &text).as_ref().map(plain), Ok(text.clone()), "{rule}");
            let printed: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix(&format!("-A {chain}"))).map(str::trim).collect();
            // Other versions of the tool quote otherwise.
            let bare = |text: &str| text.replace(['"', '\''], "");
            let same = printed.len() == 1 && bare(printed[0]) == bare(want.trim());
            if same { Ok(None) } else { Err(format!("printed: {}", printed.join("; "))) }
        }
    }
}

/// Runs the cases of a file; returns what became of them, and what was wrong.
fn run(name: &str, text: &str) -> (Count, Vec<String>) {
    let families: &[Family] = match name {
        n if n.starts_with("libip6t_") => &[V6],
        n if n.starts_with("libipt_") => &[V4],
        _ => &[V4, V6],
    };
    let (mut chains, mut tables) = (vec!["INPUT".to_owned()], vec!["filter".to_owned()]);
    let (mut count, mut wrong) = (Count::default(), Vec::new());
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', '@', '%'])) {
        let list = |l: &str| l.split(',').map(str::to_owned).collect::<Vec<_>>();
        if let Some(l) = line.strip_prefix(':') {
            chains = list(l);
            continue;
        }
        if let Some(l) = line.strip_prefix('*') {
            tables = list(l);
            continue;
        }
        let fields: Vec<&str> = line.split(';').collect();
        let [rule, want, verdict, ..] = fields[..] else { panic!("{name}: {line}") };
        // What is known to fail with the tables that we follow.
        let want = match verdict {
            "OK" if fields.get(3) == Some(&"LEGACY") && fields.get(4) == Some(&"NOMATCH") => Some(rule),
            "OK" => Some(if want == "=" { rule } else { want }),
            "FAIL" => None,
            other => panic!("{name}: {other}: {line}"),
        };
        let mut refused = None;
        let mut faults = Vec::new();
        for family in families {
            for (table, chain) in tables.iter().flat_map(|t| chains.iter().map(move |c| (t, c))) {
                match case(*family, table, chain, rule, want) {
                    Ok(None) => {}
                    Ok(Some(reason)) => refused = Some(reason),
                    Err(why) => faults.push(format!("{name}: {family:?} {table} {chain} {line}\n    {why}")),
                }
            }
        }
        match (faults.is_empty(), refused) {
            (false, _) => count.wrong += 1,
            (true, Some(_)) => count.by_name += 1,
            (true, None) => count.right += 1,
        }
        wrong.extend(faults.into_iter().take(1));
    }
    (count, wrong)
}

#[test]
fn the_cases_of_iptables_itself_are_as_it_says() {
    let Some(dir) = corpus("iptables-t") else { return };
    let (mut all, mut wrong) = (Count::default(), Vec::new());
    println!("{:28} {:>9} {:>15} {:>6}", "file", "supported", "refused by name", "wrong");
    for (name, text) in files(&dir).into_iter().filter(|(name, _)| name.ends_with(".t")) {
        let (c, faults) = run(&name, &text);
        println!("{name:28} {:>9} {:>15} {:>6}", c.right, c.by_name, c.wrong);
        all = Count { right: all.right + c.right, by_name: all.by_name + c.by_name, wrong: all.wrong + c.wrong };
        wrong.extend(faults);
    }
    println!("{:28} {:>9} {:>15} {:>6}", "all", all.right, all.by_name, all.wrong);
    assert!(wrong.is_empty(), "{} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The rules in a dump: those of the file itself, or, where it shows commands, those that it begins with a table.
fn rules_of(text: &str) -> String {
    text.lines().skip_while(|l| !l.starts_with('*') && !l.starts_with('#')).map(|l| format!("{l}\n")).collect()
}

/// Whether the real tool takes a text, where it is there; in a network namespace of its own.
fn real_tool_takes(family: Family, text: &str) -> Option<Result<(), String>> {
    let tool = if family == V4 { "iptables-legacy-restore" } else { "ip6tables-legacy-restore" };
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", tool, "--test"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    // A tool that is not there closes the pipe.
    let _ = std::io::Write::write_all(&mut stdin, text.as_bytes());
    drop(stdin);
    let out = child.wait_with_output().ok()?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    match out.status.code() {
        Some(0) => Some(Ok(())),
        Some(1 | 2) if !said.starts_with("unshare") => Some(Err(said)),
        _ => None,
    }
}

#[test]
fn dumps_of_real_firewalls_load_or_are_refused_by_name_and_come_out_as_they_went_in() {
    let Some(dir) = corpus("dumps") else { return };
    let (mut loaded, mut refused, mut tested) = (0, BTreeMap::<String, Vec<String>>::new(), 0);
    let mut wrong = Vec::new();
    for (name, text) in files(&dir).into_iter().filter(|(n, _)| !n.contains("LICENSE") && !n.contains("nftables")) {
        let text = rules_of(&text);
        if !text.lines().any(|l| l.starts_with('*')) {
            refused.entry("no rules in it".to_owned()).or_default().push(name);
            continue;
        }
        let family = if name.contains("ip6tables") || name.contains("ipv6") || name.contains("6.rules") { V6 } else { V4 };
        let read = parse(family, &text);
        let rules = match read {
            Ok(rules) => rules,
            Err(e) => {
                let why = match &e.kind {
                    ErrorKind::Unsupported { what, reason } => format!("{what}: {reason}"),
                    _ => {
                        // What is no text of rules is none to the real tool either.
                        if real_tool_takes(family, &text) == Some(Ok(())) {
                            wrong.push(format!("{name}: {e}, but the real tool takes it"));
                        }
                        e.to_string()
                    }
                };
                refused.entry(why).or_default().push(name);
                continue;
            }
        };
        match Program::compile(&rules) {
            Ok(_) => {}
            // Sets come in a file of their own, which the dumps do not have.
            Err(e) if matches!(e.fault, RuleFault::NoSet(_)) => {
                refused.entry(e.fault.to_string()).or_default().push(name);
                continue;
            }
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        }
        loaded += 1;
        let printed = plain(&rules);
        match parse(family, &printed).map(|again| plain(&again) == printed) {
            Ok(true) => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
        match real_tool_takes(family, &printed) {
            Some(Ok(())) => tested += 1,
            Some(Err(said)) => wrong.push(format!("{name}: the real tool says: {said}")),
            None => {}
        }
    }
    println!("{loaded} load, and {tested} of them in the real tool");
    refused.iter().for_each(|(why, names)| println!("{} refused: {why}: {}", names.len(), names.join(" ")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
