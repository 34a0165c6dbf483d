//! Frames of a hostile guest, peers that do anything, at any time.
#![no_main]

libfuzzer_sys::fuzz_target!(init: hibernet_fuzz::seeds::write_if_asked(), |story: &[u8]| hibernet_fuzz::play(story));
