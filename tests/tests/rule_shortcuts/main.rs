//! Rules with the cache of verdicts and look-ups, and asking rule by rule: nothing may differ.
//!
//! `HIBERNET_SHORTCUT_PACKETS` says how many random packets (20,000), `HIBERNET_SHORTCUT_FIRST` from which seed on (0).

mod look_ups;
mod random;
mod replaced;
mod verdicts;

fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
}
