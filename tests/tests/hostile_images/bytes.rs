//! Bytes of sections changed, and all checksums made right.

use crate::{Saved, forgeries, saved};
use hibernet_snapshot::Image;
use hibernet_tests::{SplitMix, image};

fn change(body: &mut Vec<u8>, unit: usize, rng: &mut SplitMix) {
    if body.is_empty() {
        return;
    }
    let at = rng.below(body.len() as u64) as usize;
    match rng.below(6) {
        0 => body[at] ^= 1 << rng.below(8),
        1 => body[at] = rng.u64() as u8,
        2 => {
            let end = (at + 8).min(body.len());
            body[at..end].fill([0, 0xff][rng.below(2) as usize]);
        }
        3 => {
            let from = rng.below((body.len() - at) as u64) as usize;
            let n = (body.len() - at).min(16);
            let from = from.min(body.len() - n);
            body.copy_within(from..from + n, at);
        }
        4 => body.truncate(at / unit * unit),
        _ => body.extend_from_within(at / unit * unit..),
    }
}

#[test]
fn no_bytes_do_harm() {
    let Saved { now, state, connections } = saved();
    let sane = image::write(now, &state, &connections);
    assert!(image::rewritten(&sane, &mut |_, _| {}) == sane);
    let sections = Image::parse(&sane, &image::known()).expect("an image").sections().count() as u64;
    let accepted = forgeries("no_bytes", 6000, |seed| {
        let mut rng = SplitMix::new(seed);
        let (victim, mut n) = (rng.below(sections), 0);
        Some(image::rewritten(&sane, &mut |body, unit| {
            if n == victim {
                (0..rng.range(1, 3)).for_each(|_| change(body, unit, &mut rng));
            }
            n += 1;
        }))
    });
    assert!(accepted > 100, "{accepted} forgeries were accepted: hardly anything was tested");
}
