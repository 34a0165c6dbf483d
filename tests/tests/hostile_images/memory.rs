//! What is allocated while an image is read, whatever it announces.

use crate::saved;
use hibernet_netstack::Config;
use hibernet_netstack::state::Randomness;
use hibernet_tests::image;
use serde_json::Value;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Notes the largest allocation of a thread.
struct Largest;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // At the end of a thread there is nothing to note it in.
    let _ = LARGEST.try_with(|l| l.set(l.get().max(size)));
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

// SAFETY: everything is the system allocator's doing; noting a number allocates nothing.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// What a table of so many connections takes at most for the places of its parts: an image's configuration is put in force as it is, and is
/// what whoever restores it has to judge.
const MOST: usize = 4 << 20;

/// Numbers in the parts but the configuration cannot make a reader allocate: each set to the most there is.
#[test]
fn no_number_allocates_what_the_image_does_not_have() {
    let s = saved();
    let sane = serde_json::to_value(&s.state).expect("a value");
    let mut places = Vec::new();
    numbers(&sane, &mut String::new(), &mut places);
    let places: Vec<_> = places.into_iter().filter(|p| !p.starts_with("/config")).collect();
    assert!(places.len() > 500, "{}", places.len());
    for place in places {
        for most in [u64::MAX, u64::from(u32::MAX), u64::from(u16::MAX), 255] {
            let mut value = sane.clone();
            *value.pointer_mut(&place).expect("it was found there") = most.into();
            let Ok(state) = serde_json::from_value(value) else { continue };
            let bytes = image::write(s.now, &state, &s.connections);
            LARGEST.set(0);
            let _ = image::restore(&bytes, Randomness::Fresh([1; 16]), &[]);
            assert!(LARGEST.get() < MOST, "{place} = {most}: {} bytes were allocated", LARGEST.get());
        }
    }
}

fn numbers(value: &Value, path: &mut String, found: &mut Vec<String>) {
    let len = path.len();
    let mut visit = |key: &str, v: &Value| {
        *path += "/";
        *path += key;
        numbers(v, path, found);
        path.truncate(len);
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| visit(&i.to_string(), v)),
        Value::Object(fields) => fields.iter().for_each(|(k, v)| visit(k, v)),
        Value::Number(_) => found.push(path.clone()),
        _ => {}
    }
}

/// A configuration's limits are bounds, not orders.
#[test]
fn limits_without_bound_allocate_nothing() {
    let s = saved();
    let sane = serde_json::to_value(&s.state.config).expect("a value");
    let limits = sane["limits"].as_object().expect("fields").keys().cloned().collect::<Vec<_>>();
    for name in limits {
        let mut value = sane.clone();
        value["limits"][&name] = u32::MAX.into();
        let config: Config = serde_json::from_value(value).expect("a configuration");
        let state = hibernet_netstack::state::StackState { config, ..s.state.clone() };
        let bytes = image::write(s.now, &state, &s.connections);
        LARGEST.set(0);
        let _ = image::restore(&bytes, Randomness::Fresh([1; 16]), &[]);
        assert!(LARGEST.get() < MOST, "{name}: {} bytes were allocated", LARGEST.get());
    }
}
