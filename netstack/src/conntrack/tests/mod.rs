//! Tests of the table.

mod basics;
mod gvisor_rows;
pub(super) mod kit;
