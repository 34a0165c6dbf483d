//! Values of fields that no stack would have saved.

use crate::{Saved, forgeries, saved};
use hibernet_tests::{SplitMix, image};
use serde_json::{Number, Value};

/// Changes something in a value, somewhere.
fn forge(value: &mut Value, rng: &mut SplitMix) {
    let leaves = count(value);
    let mut at = rng.below(leaves);
    change(value, &mut at, rng);
}

/// Places at which a value can be changed.
fn count(value: &Value) -> u64 {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn change(value: &mut Value, at: &mut u64, rng: &mut SplitMix) -> bool {
    if *at == 0 {
        change_here(value, rng);
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|v| change(v, at, rng)),
        Value::Object(fields) => fields.values_mut().any(|v| change(v, at, rng)),
        _ => false,
    }
}

fn change_here(value: &mut Value, rng: &mut SplitMix) {
    match value {
        Value::Bool(b) => *b = !*b,
        Value::Number(n) => *n = number(n.as_u64().unwrap_or(0), rng),
        Value::String(s) => *s = text(s, rng),
        Value::Null => *value = [Value::from(rng.u64() as u32), Value::from([1, 2])][rng.below(2) as usize].clone(),
        Value::Array(items) if items.is_empty() => items.push(Value::from(rng.below(4))),
        Value::Array(items) => {
            let (a, b) = (rng.below(items.len() as u64) as usize, rng.below(items.len() as u64) as usize);
            match rng.below(5) {
                0 => items.swap(a, b),
                1 => drop(items.remove(a)),
                2 => items.push(items[a].clone()),
                3 => items[b] = items[a].clone(),
                _ => items.clear(),
            }
        }
        Value::Object(_) => *value = Value::Null,
    }
}

fn number(n: u64, rng: &mut SplitMix) -> Number {
    let edges = [0, 1, 2, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
    match rng.below(4) {
        0 => edges[rng.below(edges.len() as u64) as usize],
        1 => n.wrapping_add(rng.below(5)).wrapping_sub(2),
        2 => n ^ 1 << rng.below(64),
        _ => rng.u64() >> rng.below(64),
    }
    .into()
}

fn text(s: &str, rng: &mut SplitMix) -> String {
    let others = [
        "",
        "0.0.0.0",
        "255.255.255.255",
        "127.0.0.1",
        "10.0.2.2",
        "10.0.2.15",
        "224.0.0.1",
        "::",
        "::1",
        "ff02::1",
        "::ffff:1.2.3.4",
    ];
    if s.len() < 64 {
        return others[rng.below(others.len() as u64) as usize].into();
    }
    // Rules: a line goes, or comes twice.
    let mut lines: Vec<&str> = s.lines().collect();
    let n = rng.below(lines.len() as u64) as usize;
    let line = lines.remove(n);
    if rng.chance(50) {
        let to = rng.below(lines.len() as u64 + 1) as usize;
        lines.splice(to..to, [line, line]);
    }
    lines.join("\n") + "\n"
}

#[test]
fn no_value_of_a_field_does_harm() {
    let Saved { now, state, connections } = saved();
    let sane = serde_json::to_value(&state).expect("a value");
    let accepted = forgeries("no_value", 6000, |seed| {
        let mut rng = SplitMix::new(seed);
        let mut value = sane.clone();
        // Most changes in the parts that have most to check.
        let parts = ["config", "links", "rules", "gateway", "tcp", "tcp", "tcp", "udp", "udp", "icmp", "stats"];
        for _ in 0..rng.range(1, 3) {
            let part = parts[rng.below(parts.len() as u64) as usize];
            forge(&mut value[part], &mut rng);
        }
        Some(image::write(now, &serde_json::from_value(value).ok()?, &connections))
    });
    assert!(accepted > 100, "{accepted} forgeries were accepted: hardly anything was tested");
}
