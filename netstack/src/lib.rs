//! The network stack of hibernet, without input and output.
//!
//! A [`Stack`] is a Linux-shaped router between guest links and an uplink `host0`, behind which the host's
//! sockets are. It decides what becomes of every packet; an [`edge::Edge`], which the caller hands in with
//! each call, owns descriptors, frames and payload and does what was decided. Time is an argument, randomness
//! a seed. So everything that happens can be repeated, and saved between any two calls.
//!
//! Calls into a stack are of three kinds: [`Stack::receive`] (a frame from a guest), [`Stack::socket_ready`],
//! [`Stack::accepted`] (something happened at a host socket), [`Stack::tick`] (a deadline passed). After a batch
//! of them the caller calls [`Stack::flush`] and asks [`Stack::next_deadline`].
#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
pub mod conntrack;
pub mod edge;
pub mod flow;
pub mod gateway;
pub mod image;
pub mod ipset;
pub mod iptables;
pub mod nat;
pub mod packet;
pub mod reach;
pub mod rng;
pub mod router;
pub mod skb;
pub mod stack;
pub mod state;
pub mod stats;
pub mod time;
pub mod timers;
mod token;
pub mod trace;
pub mod translate;
pub mod tuple;
pub mod verdict;
pub mod wire;
pub mod workers;

pub use config::Config;
pub use stack::Stack;
pub use time::Time;
pub use verdict::{DropReason, Verdict};
