//! Images of tracked connections that nobody saved: refused, or a table that works.
#![no_main]

libfuzzer_sys::fuzz_target!(init: hibernet_fuzz::conntrack_image::write_seeds_if_asked(), |bytes: &[u8]| {
    hibernet_fuzz::conntrack_image::load(bytes)
});
