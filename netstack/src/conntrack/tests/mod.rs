//! Tests of the table.

mod basics;
mod floods;
mod gvisor_rows;
mod gvisor_rows_restored;
pub(super) mod kit;
mod properties;
