//! Scenarios written by hand, through the kernel's netfilter and through ours.

mod first;

use hibernet_tests::netfilter::{Kernel, run_alone};

#[test]
fn scenarios() {
    let Some(mut kernel) = Kernel::new(0) else { return };
    for s in &first::all() {
        let summary = run_alone(s, &mut kernel);
        assert!(summary.seen > 0, "{}: nothing came out", s.name);
    }
}
