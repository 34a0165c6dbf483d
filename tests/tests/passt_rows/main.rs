//! The defects of the first version of the best-known relative (rows 1 to 34 of the project's list), each as a test
//! that fails on the described behaviour. The row's number is in the test's name.
//!
//! Rows 2, 32 and 33 are about descriptors, memory and system calls as well; what of them needs a kernel is covered by the
//! host-level suites (`tests/host`): descriptor numbers beyond 2^18, resident memory, system calls per MiB.

mod closing;
mod guest_input;
mod handshake;
mod resources;
mod stream;
mod window;

use core::time::Duration;
use hibernet_netstack::Config;
use hibernet_netstack::config::Publish;
use hibernet_netstack::tuple::{Endpoint, proto};
use hibernet_tests::{TcpGuest, World};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn at(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), port)
}

/// A host that the guest talks to.
pub(crate) fn remote() -> Endpoint {
    at("198.51.100.9", 80)
}

/// Both families' hosts.
pub(crate) fn remotes() -> [Endpoint; 2] {
    [remote(), at("2001:db8::9", 80)]
}

/// Host ports 8080 to 8089 lead to the guest's 80 and on.
pub(crate) fn published() -> Config {
    let publish = Publish { proto: proto::TCP, addr: None, host_ports: (8080, 8089), guest_port: 80 };
    Config { publish: vec![publish], ..Config::default() }
}

/// A client's connection to published port 8080, complete on the guest's side.
pub(crate) fn inbound(w: &mut World, client: Endpoint) -> (TcpGuest, hibernet_netstack::edge::SockId) {
    let sock = w.accept(client, at("192.0.2.1", 8080));
    let mut g = TcpGuest::expect_syn(w, 80, client);
    g.complete(w);
    (g, sock)
}
