//! The worker on an event loop, between a guest (smoltcp at the other end of a channel link) and real host sockets.

mod control;
mod flows;
mod freeze;
mod full;
mod guest;
mod life;
