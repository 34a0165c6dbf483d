//! A vhost-user front end and a guest's driver that say and write anything.
#![no_main]

libfuzzer_sys::fuzz_target!(init: hibernet_fuzz::vhost_user::write_seeds_if_asked(), |bytes: &[u8]| {
    hibernet_fuzz::vhost_user::play(bytes)
});
