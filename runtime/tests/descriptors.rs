//! Running out of descriptors: refusals, no panic, no spinning. A program of its own, because the limit is the process's;
//! one test, because tests of one program run at once.

mod common;

use common::{Host, PATIENCE, token};
use event_manager::{EventManager, SubscriberOps};
use hibernet::link::channel::channel;
use hibernet::sys::rlimit;
use hibernet::worker::{Worker, WorkerSetup};
use hibernet_netstack::Config;
use hibernet_netstack::config::Publish;
use hibernet_netstack::edge::{Close, HostSockets, LinkInfo, SockError, Source, Tso};
use hibernet_netstack::tuple::{Endpoint, proto};
use std::fs::File;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

#[test]
fn descriptors_run_out() {
    opens_are_refused();
    listeners_pause_and_go_on();
}

/// Takes all descriptors that are left.
fn exhaust() -> Vec<File> {
    rlimit::set_open_files(256).unwrap();
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

fn opens_are_refused() {
    let mut host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = Endpoint::from(listener.local_addr().unwrap());
    let mut all = exhaust();
    assert_eq!(host.edge.tcp_connect(token(1), to, Source::ANY), Err(SockError::NoResources));
    assert_eq!(host.edge.udp_open(token(2), to, Source::wish(5000)), Err(SockError::NoResources));
    assert_eq!(host.edge.sockets.stats().no_resources, 2);
    assert!(host.edge.sockets.is_empty());
    all.pop();
    let sock = host.edge.tcp_connect(token(1), to, Source::ANY).unwrap();
    host.wait(token(1), |r| r.writable);
    host.edge.close(sock, Close::Reset);
}

fn listeners_pause_and_go_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let publish = vec![Publish { proto: proto::TCP, addr: Some(at.ip()), host_ports: (at.port(), at.port()), guest_port: 80 }];
    let config = Config { publish, ..Config::default() };
    let info = LinkInfo { mtu: 1500, checksum: false, tso: Tso::None, uso: false, guest_mac: None, in_flight: u32::MAX };
    let (link, _guest) = channel(info, 64).unwrap();
    let setup = WorkerSetup {
        tcp_listeners: vec![(0, listener.into())],
        ..WorkerSetup::new(config, vec![Box::new(link)], slog::Logger::root(slog::Discard, slog::o!()))
    };
    let mut manager = EventManager::new().unwrap();
    let id = manager.add_subscriber(Worker::new(setup).unwrap());
    while manager.run_with_timeout(50).unwrap() > 0 {}

    let mut client = TcpStream::connect(at).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut all = exhaust();
    // The connection waits in the listener's queue, which stays ready; the loop is not kept busy by it.
    let begin = Instant::now();
    let mut turns = 0;
    while begin.elapsed() < Duration::from_millis(2500) {
        turns += usize::from(manager.run_with_timeout(100).unwrap() > 0);
    }
    assert!((1..20).contains(&turns), "{turns} wake-ups in two and a half seconds");
    assert_eq!(manager.subscriber_mut(id).unwrap().stack().stats().tcp_in, 0);
    // With a descriptor free again, the client is served: there is no guest to answer, so in the end it is reset.
    all.truncate(all.len() / 2);
    let begin = Instant::now();
    while manager.subscriber_mut(id).unwrap().report()["sockets"]["opened"] != 1 {
        assert!(begin.elapsed() < PATIENCE);
        manager.run_with_timeout(100).unwrap();
    }
    manager.remove_subscriber(id).unwrap();
    assert!(client.read(&mut [0]).is_err() || client.read(&mut [0]).is_ok_and(|n| n == 0));
}
