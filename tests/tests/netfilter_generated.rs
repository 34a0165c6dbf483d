//! Random rules and packets, through the kernel's netfilter and through ours.
//!
//! `HIBERNET_NETFILTER_PACKETS` says how many packets (20,000), `HIBERNET_NETFILTER_FIRST` from which seed on (0),
//! `HIBERNET_NETFILTER_SEED` plays one case only.

use hibernet_tests::netfilter::{Kernel, Ours, Summary, generate};

/// Packets of a case.
const CASE: u64 = 40;
/// Cases that differ, after which no further ones are played.
const ENOUGH: usize = 12;
/// Plays that are spent on making a case smaller.
const TRIES: usize = 120;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What the comparison lets pass is what the kernel does by chance, and nothing else differs between two runs of it.
#[test]
fn the_kernel_agrees_with_itself() {
    let (Some(mut one), Some(mut other)) = (Kernel::new(0), Kernel::new(0)) else { return };
    let mut seen = 0;
    for seed in 1_000_000..1_000_050 {
        match generate::case(seed, CASE, &mut one, Some(&mut other)) {
            Ok(done) => seen += done.seen,
            Err(d) => panic!("{}", generate::minimise(d, 200, &mut one, &mut other)),
        }
    }
    assert!(seen > 1000, "hardly anything came out: {seen} packets");
}

#[test]
fn generated() {
    let Some(mut kernel) = Kernel::new(0) else { return };
    let packets = number("HIBERNET_NETFILTER_PACKETS").unwrap_or(20_000);
    let seeds = match number("HIBERNET_NETFILTER_SEED") {
        Some(one) => one..one + 1,
        None => {
            let first = number("HIBERNET_NETFILTER_FIRST").unwrap_or(0);
            first..first + packets.div_ceil(CASE)
        }
    };
    let mut ours = Ours::default();
    let mut total = Summary::default();
    let (mut wrong, mut chance) = (Vec::new(), 0);
    for seed in seeds {
        match generate::case(seed, CASE, &mut kernel, Some(&mut ours)) {
            Ok(done) => {
                total.sent += done.sent;
                total.seen += done.seen;
                total.wrong_zeros += done.wrong_zeros;
            }
            Err(d) if generate::is_chance(&d, &mut kernel, &mut ours) => chance += 1,
            Err(d) => {
                let d = generate::minimise(d, TRIES, &mut kernel, &mut ours);
                wrong.push(format!("HIBERNET_NETFILTER_SEED={seed} plays it again; made smaller:\n{d}"));
            }
        }
        if wrong.len() >= ENOUGH {
            break;
        }
    }
    let (sent, seen, zeros, differ) = (total.sent, total.seen, total.wrong_zeros, wrong.len());
    eprintln!(
        "{sent} packets sent, {seen} came out of the kernel, {differ} cases differ, {chance} by chance; {zeros} times the kernel's checksum is 0, not 0xffff"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(chance * 1000 <= total.sent, "too much is chance: {chance} cases");
    assert!(total.seen * 2 > total.sent, "too little came out: {total:?}");
}
