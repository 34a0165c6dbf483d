//! `hibernet inspect`: what an image contains.

use super::restore::{open, read};
use super::{print, print_json};
use crate::checkpoint::contents::{Origin, load_connections, section_name};
use crate::checkpoint::known;
use crate::checkpoint::report::{Flow, generation_text};
use crate::entropy;
use crate::sandbox::failure::{Failure, Status};
use clap::Args;
use hibernet_netstack::conntrack::image::Head;
use hibernet_netstack::conntrack::{Conntrack, Line};
use hibernet_netstack::image::LEVEL;
use hibernet_netstack::rng::Rng;
use hibernet_netstack::state::{Randomness, StackState};
use hibernet_netstack::{Stack, Time};
use hibernet_snapshot::{Image, Inventory};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The image; `-` for standard input
    file: PathBuf,
    /// Also the rules, as `iptables-save -c` prints them
    #[arg(long)]
    rules: bool,
    /// Also the tracked connections, as `conntrack -L` prints them
    #[arg(long)]
    conntrack: bool,
    /// Also every flow
    #[arg(long)]
    flows: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn inspect(args: &InspectArgs) -> Result<u8, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(Status::Image, format!("{}: {e}", args.file.display()));
    let mut file = open(&args.file)?;
    let image = match read(&args.file, &mut file) {
        Ok(image) => image,
        // An image of another version still has an inventory.
        Err(e) => match other_version(args, &mut file)? {
            Some(status) => return Ok(status),
            None => return Err(e),
        },
    };
    image.check().map_err(|e| fail(&e))?;
    let state = StackState::from_image(&image).map_err(|e| fail(&e))?;
    let head: Head = image.state().map_err(|e| fail(&e))?;
    let origin: Origin = image.state().unwrap_or_default();
    let now = Time::from_nanos(image.inventory().header.stack_time);
    let connections = if args.conntrack { Some(lines(&image, &state, now).map_err(|e| fail(&e))?) } else { None };
    let rules: Vec<String> = state.rules.families.iter().filter_map(|f| f.text.clone()).collect();
    let flows: Vec<Flow> = flows_of(now, state).map_err(|e| fail(&e))?;
    if args.json {
        let mut all = inventory(image.inventory());
        all["name"] = json!(origin.name);
        all["version"] = json!(origin.version);
        all["went_on"] = json!(origin.went_on);
        all["connections"] = json!({ "v4": head.v4, "v6": head.v6 });
        all["flows"] = if args.flows { json!(flows) } else { json!(flows.len()) };
        if args.rules {
            all["rules"] = json!(rules);
        }
        if let Some(lines) = connections {
            all["conntrack"] = json!(lines);
        }
        return print_json(&all);
    }
    let mut text = inventory_text(image.inventory());
    let of = if origin.name.is_empty() { String::new() } else { format!(" of '{}'", origin.name) };
    let went_on = if origin.went_on { ", which went on" } else { "" };
    text.push_str(&format!("written by hibernet {}{of}{went_on}\n", origin.version));
    text.push_str(&format!("{} flows, {} IPv4 and {} IPv6 connections tracked\n", flows.len(), head.v4, head.v6));
    if args.flows {
        flows.iter().for_each(|f| text.push_str(&format!("{f}\n")));
    }
    if args.rules {
        rules.iter().for_each(|r| text.push_str(r));
    }
    for line in connections.into_iter().flatten() {
        text.push_str(&line);
        text.push('\n');
    }
    print(&text)
}

/// Only what can be said of any version.
fn other_version(args: &InspectArgs, file: &mut std::fs::File) -> Result<Option<u8>, Failure> {
    use std::io::Seek;
    if file.rewind().is_err() {
        return Ok(None);
    }
    let Ok(inventory) = Inventory::read(file) else { return Ok(None) };
    if !inventory.header.is_newer() && inventory.check_known(&known()).is_ok() {
        return Ok(None);
    }
    let done = if args.json { print_json(&self::inventory(&inventory)) } else { print(&inventory_text(&inventory)) };
    done?;
    Err(Failure::new(
        Status::Image,
        format!("{}: parts of it are of a version that is not known; this is its inventory", args.file.display()),
    ))
}

fn inventory(i: &Inventory) -> Value {
    let h = &i.header;
    let sections: Vec<_> = i
        .sections
        .iter()
        .map(|s| json!({ "kind": s.kind.0, "name": section_name(s.kind), "version": s.version, "bytes": s.len, "records": s.records }))
        .collect();
    json!({
        "generation": generation_text(&h.generation),
        "bytes": h.total_len,
        "stack_time_ns": h.stack_time,
        "created_ns": h.created,
        "level": i.level(&known()),
        "sections": sections,
    })
}

fn inventory_text(i: &Inventory) -> String {
    let h = &i.header;
    let level = i.level(&known()).map_or(format!("above {LEVEL}"), |level| level.to_string());
    let (generation, bytes, seconds) = (generation_text(&h.generation), h.total_len, h.stack_time / 1_000_000_000);
    let mut text = format!("generation {generation}, {bytes} bytes, level {level}, stack time {seconds} s\n");
    for s in &i.sections {
        text.push_str(&format!(
            "  {:<16} version {}  {:>10} bytes  {} records\n",
            section_name(s.kind),
            s.version,
            s.len,
            s.records
        ));
    }
    text
}

/// The connections, as they would be loaded.
fn lines(image: &Image<'_>, state: &StackState, now: Time) -> Result<Vec<String>, String> {
    let seed = entropy::seed().map_err(|e| e.to_string())?;
    let table = load_connections(image, state.config.conntrack.clone(), Rng::new(seed).key(), now)?;
    let (mut all, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        from = table.dump(now, at, u32::MAX, |id, conn| all.push(Line::new(conn, now).counting(table.counts(id)).to_string()));
    }
    Ok(all)
}

fn flows_of(now: Time, state: StackState) -> Result<Vec<Flow>, String> {
    let seed = entropy::seed().map_err(|e| e.to_string())?;
    let stack = Stack::restore(now, state, Randomness::Fresh(seed), |cfg, key| Ok(Conntrack::new(cfg, key)));
    Ok(stack.map_err(|e| e.to_string())?.flows().map(|f| Flow::from(&f)).collect())
}
