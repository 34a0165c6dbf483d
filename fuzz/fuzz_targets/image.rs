//! Images: whatever the bytes are, reading ends with a typed error or with what writing gives again.
#![no_main]

libfuzzer_sys::fuzz_target!(init: hibernet_fuzz::image::write_seeds_if_asked(), |bytes: &[u8]| hibernet_fuzz::image::read(bytes));
