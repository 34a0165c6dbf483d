//! Texts of rules: none panics or takes long, and what is read is printed so that it is read again.
#![no_main]

libfuzzer_sys::fuzz_target!(init: hibernet_fuzz::rules::write_seeds_if_asked(), |text: &[u8]| hibernet_fuzz::rules::read(text));
