//! Start, idling, what comes from the host, end.

use crate::guest::{PATIENCE, Pair, loopback_config, setup};
use event_manager::{EventManager, SubscriberOps};
use hibernet::worker::{Finished, Worker, WorkerError, resolver_update};
use hibernet_netstack::Config;
use std::io::Write;
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[test]
fn idle_means_no_wake_up() {
    let mut p = Pair::new(setup(loopback_config()));
    assert!(p.quiet(Duration::from_millis(100)), "the start does not end");
    let before = p.worker().report()["wakeups"].as_u64().unwrap();
    assert!(p.quiet(Duration::from_millis(1500)));
    assert_eq!(p.worker().report()["wakeups"].as_u64().unwrap(), before);
}

#[test]
fn without_links_left_it_finishes() {
    let mut p = Pair::new(setup(Config::default()));
    p.quiet(Duration::from_millis(10));
    let (mut manager, id) = p.unplug();
    let end = Instant::now() + PATIENCE;
    while manager.subscriber_mut(id).unwrap().finished().is_none() {
        assert!(Instant::now() < end);
        manager.run_with_timeout(100).unwrap();
    }
    assert_eq!(manager.subscriber_mut(id).unwrap().finished(), Some(Finished::LinksGone));
    // It watches nothing any more: the loop has nothing to do.
    assert_eq!(manager.run_with_timeout(50).unwrap(), 0);
    manager.remove_subscriber(id).unwrap();
}

#[test]
fn it_stops_when_told() {
    let (stop, mut teller) = UnixStream::pair().unwrap();
    let mut s = setup(Config::default());
    s.stop = Some(stop.into());
    let mut p = Pair::new(s);
    p.quiet(Duration::from_millis(10));
    assert_eq!(p.worker().finished(), None);
    teller.write_all(b"x").unwrap();
    assert_eq!(p.finish(), Finished::Stopped);

    let (stop, teller) = UnixStream::pair().unwrap();
    let mut s = setup(Config::default());
    s.stop = Some(stop.into());
    let mut p = Pair::new(s);
    drop(teller);
    assert_eq!(p.finish(), Finished::Stopped);
}

#[test]
fn resolvers_follow_the_hosts() {
    let (updates, mut host) = UnixStream::pair().unwrap();
    let mut s = setup(Config::default());
    s.resolver_updates = Some(updates.into());
    let mut p = Pair::new(s);
    let now: Vec<IpAddr> = ["192.0.2.53", "2001:db8::53"].map(|a| a.parse().unwrap()).to_vec();
    host.write_all(resolver_update(&now).as_bytes()).unwrap();
    let end = Instant::now() + PATIENCE;
    while p.worker().stack().config().resolvers != now {
        assert!(Instant::now() < end);
        p.manager.run_with_timeout(100).unwrap();
    }
    // The other end goes: the last word stays, and nothing spins.
    drop(host);
    assert!(p.quiet(Duration::from_millis(100)));
    assert_eq!(p.worker().stack().config().resolvers, now);
    assert_eq!(p.worker().finished(), None);
}

#[test]
fn setups_that_make_no_sense() {
    let mut s = setup(Config::default());
    s.tcp_listeners.push((3, TcpListener::bind("127.0.0.1:0").unwrap().into()));
    match Worker::new(s) {
        Err(WorkerError::NoSuchPublish { index: 3, count: 0 }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn embedders_may_move_it_between_threads() {
    fn is_send<T: Send>(t: T) -> T {
        t
    }
    let worker = is_send(Worker::new(setup(Config::default())).unwrap());
    let turns = std::thread::spawn(move || {
        let mut m = EventManager::new().unwrap();
        m.add_subscriber(worker);
        m.run_with_timeout(0).unwrap()
    });
    assert_eq!(turns.join().unwrap(), 0);
}
