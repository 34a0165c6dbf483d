//! Tests of address translation. Packets are built and checked by code of their own.

mod addresses;
mod build;
mod bytes;

use build::{Build, skb_of};
