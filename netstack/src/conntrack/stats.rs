//! Counters of the table of connections.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the table counted since it was made; the names are those of `conntrack -S`, where that has them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct CtCounters { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64,)* }

        impl Counters {
            pub(super) fn read(&self) -> CtCounters {
                CtCounters { $($name: self.$name.load(Relaxed),)* }
            }

            /// Goes on where others stood.
            pub(super) fn restore(&self, from: &CtCounters) {
                $(self.$name.store(from.$name, Relaxed);)*
            }
        }
    };
}

counters! {
    /// Connections that were confirmed.
    insert,
    /// First packets that were dropped because another connection has one of their tuples.
    insert_failed,
    /// First packets that joined a connection which another packet of the same kind had made meanwhile.
    clash_resolve,
    /// First packets that were dropped because the table was full and nothing could go.
    drop,
    /// Connections that were dropped early to make room.
    early_drop,
    /// Packets that tracking found INVALID.
    invalid,
    /// First packets that were dropped because too many connections share a bucket.
    chaintoolong,
    /// Connections that timed out.
    expired,
    /// Connections that were removed otherwise.
    delete,
}

/// Counts one.
pub(super) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
