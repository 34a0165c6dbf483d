//! Links against the kernel's own network stack as the guest, in network namespaces of their own.

mod exercise;
mod fan_out;
mod frames;
mod ns;
mod packet;
mod ring;
#[path = "../support/mod.rs"]
mod support;
mod tap;
mod vmm;
