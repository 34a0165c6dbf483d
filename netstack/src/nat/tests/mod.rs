//! Tests of address translation. Packets are built and checked by code of their own.

mod addresses;
mod build;
mod bytes;
mod conflicts;
mod errors;
mod flows;
mod search;
mod targets;
mod world;

use build::{Build, skb_of};
