//! Freezing and thawing with real programs and kernels, through the `hibernet` command.
//!
//! Tier of every case here, unless it names another: *hold*, the supervisor keeps the host sockets while the network sleeps.

mod failures;
mod generations;
mod joined;
mod kit;
mod load;
mod policy;
mod states;
mod transfers;
