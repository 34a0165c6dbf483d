//! Tests of the table.

mod basics;
mod floods;
mod gvisor_rows;
pub(super) mod kit;
mod properties;
