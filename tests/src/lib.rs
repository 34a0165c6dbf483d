//! Testkit of hibernet: everything around a [`Stack`](hibernet_netstack::Stack), made up and under control.
//!
//! - [`World`]: a stack on a [`FakeEdge`], in virtual time. Frames go in, sockets do what a test says, time jumps to
//!   the next deadline. Every call into the stack is followed by a check that it gave back what it borrowed.
//! - [`FakeHost`]: host sockets with the semantics of Linux (peek offsets, short writes, edge-triggered
//!   events, resets that cut into queued data), whose peers are puppets of the test.
//! - [`wire`]: frames built and taken apart by code that shares nothing with the stack's own, so that a mistake in either shows.
//! - [`Pair`]: a client and a server with a stack between them that routes and filters.
//! - [`TcpGuest`]: a guest's TCP, segment by segment, for packet-trace tests.
//! - [`image`]: a stack into an image, and out of one.
//! - [`lab`]: network namespaces for suites with real programs and the kernel, through the `hibernet` command.
//! - [`lively`]: a world in which there is something of everything that an image can have.
//! - [`netfilter`]: the kernel's netfilter beside ours, the same frames through both.
//! - [`stream`]: streams of which every byte tells where it belongs.
//! - [`vmm`]: a virtual machine's monitor and the driver in its guest, as links meet them.
//! - [`wild`]: a host that answers anything, for stacks of whose sockets nothing is known.
//!
//! A misuse of the edge by the stack (a closed socket used, a payload leaked, a capability used that the link has not)
//! is a panic in the kit, so every test checks for it.

mod edge;
pub mod host;
pub mod image;
pub mod lab;
mod link;
mod lively;
pub mod netfilter;
mod pair;
mod payload;
mod rand;
pub mod stream;
mod tcp_guest;
pub mod vmm;
pub mod wild;
pub mod wire;
mod world;

pub use edge::FakeEdge;
pub use host::{ConnectPlan, Drain, Ended, FakeHost};
pub use link::{Captured, FakeLink};
pub use lively::{HOST, lively};
pub use pair::{Out, Pair, Probe};
pub use payload::{PayloadPool, SlotKind};
pub use rand::SplitMix;
pub use tcp_guest::TcpGuest;
pub use world::{Boundary, World};
