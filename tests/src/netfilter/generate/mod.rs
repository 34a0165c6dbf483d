//! Random rules and random packets, from a seed.
//!
//! Packets follow what the kernel did with those before: the other end answers what reached it, errors quote what came out.

mod changes;
mod memory;
mod packets;
mod rules;

use super::compare::Renames;
use super::run::{Play, play};
use super::{Change, Difference, Router, Scenario, Step, Summary, elsewhere};
use crate::SplitMix;
use std::time::Duration;

/// Source ports of conversations; a few of each of the kernel's classes.
const SPORTS: [u16; 6] = [40_000, 40_001, 40_002, 2000, 700, 300];
/// Destination ports.
const DPORTS: [u16; 6] = [80, 443, 53, 22, 8080, 1000];

/// The rule without which there are no packets of SCTP: the kernel tracks those by ports and states, and we do not.
const UNTRACKED: &str = "-A PREROUTING -p sctp -j CT --notrack";

/// Family (is it IPv6?) and rules of a seed.
pub fn ruleset(seed: u64) -> (bool, String) {
    start(seed).1
}

/// Randomness that goes on behind the rules, and those.
fn start(seed: u64) -> (SplitMix, (bool, String)) {
    // Neighbouring seeds give streams that have nothing in common.
    let mut r = SplitMix::new(seed).fork();
    let v6 = r.chance(35);
    let text = rules::rules(&mut r, v6);
    (r, (v6, text))
}

/// Plays the case of a seed on both routers.
pub fn case<K: Router, O: Router>(
    seed: u64,
    packets: u64,
    kernel: &mut K,
    ours: Option<&mut O>,
) -> Result<Summary, Box<Difference>> {
    let (mut r, (v6, text)) = start(seed);
    let scenario = Scenario::new(&format!("seed {seed}"), v6, &text);
    let mut play = Play::new(kernel, ours, &scenario);
    let mut guests = packets::Guests::new(r.fork(), v6, &text);
    // The kernel looks for connections that are gone once in a tick of its clock.
    let waits = text.contains("connlimit");
    for _ in 0..packets {
        if waits {
            play.step(Step::Wait(Duration::from_millis(9)))?;
        }
        let packet = guests.next(&play.past);
        play.step(Step::Send(packet))?;
        guests.sent(&play.past);
    }
    play.finish()
}

/// As [`case`] for two routers of ours, with changes under way.
pub fn changing<R: Router>(seed: u64, packets: u64, one: &mut R, other: &mut R) -> Result<Summary, Box<Difference>> {
    let (mut r, (v6, text)) = start(seed);
    let scenario = Scenario::new(&format!("changing, seed {seed}"), v6, &text);
    let mut play = Play::new(one, Some(other), &scenario);
    let mut guests = packets::Guests::new(r.fork(), v6, "");
    for _ in 0..packets {
        if let Some(change) = change(&mut r, v6) {
            play.step(Step::Change(change))?;
        }
        let packet = guests.next(&play.past);
        play.step(Step::Send(packet))?;
        guests.sent(&play.past);
    }
    play.finish()
}

/// What changes before a packet, seldom anything.
fn change(r: &mut SplitMix, v6: bool) -> Option<Change> {
    Some(match r.below(200) {
        0 => Change::Rules(rules::rules(r, v6)),
        1 | 2 => Change::Mark(r.below(50) as usize, r.below(4) as u32),
        3 => Change::Addresses((0..r.below(3)).map(|_| elsewhere(r.range(1, 4) as u8, v6)).collect()),
        4 => Change::Restore,
        _ => return None,
    })
}

/// Whether a difference may be chance: a port that was chosen anywhere in a wide range can be one that a rule asks for, or that
/// another connection has. Then it is gone when the same case is played again.
pub fn is_chance<K: Router, O: Router>(found: &Difference, kernel: &mut K, ours: &mut O) -> bool {
    let scenario = Scenario { silent: true, ..found.scenario.clone() };
    Renames::new(&scenario.rules).by_chance() && (0..3).any(|_| play(&scenario, kernel, Some(&mut *ours), false).is_ok())
}

/// Makes a failing case smaller: leaves out what it fails without. At most `tries` plays.
pub fn minimise<K: Router, O: Router>(found: Box<Difference>, tries: usize, kernel: &mut K, ours: &mut O) -> Box<Difference> {
    let mut left = tries;
    let mut best = found;
    let mut fails = |s: &Scenario| {
        if left == 0 {
            return None;
        }
        left -= 1;
        play(&Scenario { silent: true, ..s.clone() }, kernel, Some(&mut *ours), true).err()
    };
    // After every packet, so that the first difference shows.
    if let Some(d) = fails(&best.scenario) {
        best = d;
    }
    let mut size = best.scenario.steps.len().next_power_of_two() / 2;
    while size > 0 {
        let mut at = 0;
        while at < best.scenario.steps.len() {
            let mut smaller = best.scenario.clone();
            let end = (at + size).min(smaller.steps.len());
            let before = smaller.steps[at..end].iter().filter(|s| !matches!(s, Step::Gone)).count();
            smaller.steps[at..end].fill(Step::Gone);
            if before > 0
                && let Some(d) = fails(&smaller)
            {
                best = d;
            }
            at += size;
        }
        size /= 2;
    }
    let mut line = 0;
    while line < best.scenario.rules.lines().count() {
        let mut lines: Vec<&str> = best.scenario.rules.lines().collect();
        let text = lines.remove(line);
        let smaller = Scenario { rules: lines.iter().map(|l| format!("{l}\n")).collect(), ..best.scenario.clone() };
        if text.contains("-A ")
            && let Some(d) = fails(&smaller)
        {
            best = d;
        } else {
            line += 1;
        }
    }
    best
}
