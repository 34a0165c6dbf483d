//! The edge of the stack: payload memory, and what stands behind the traits of `hibernet_netstack::edge`.

mod slots;

pub use slots::{SLOT_SIZE, Slots};
