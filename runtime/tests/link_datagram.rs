//! Links over a datagram socket whose peer comes and goes.

use hibernet::link::datagram::DatagramLink;
use hibernet::link::{Link, LinkError, LinkNews, RxBatch};
use hibernet::slots::Slots;
use hibernet_netstack::edge::{Payload, TxError, TxFrame};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A link, and what its host has: the same socket, and the other end of the bell.
struct World {
    link: DatagramLink,
    slots: Slots,
    socket: UnixDatagram,
    bell: UnixDatagram,
    name: String,
    epoll: Epoll,
}

fn address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).unwrap()
}

impl World {
    fn new(test: &str) -> World {
        let name = format!("hibernet-{test}-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&address(&name)).unwrap();
        let (bell, theirs) = UnixDatagram::pair().unwrap();
        bell.set_nonblocking(true).unwrap();
        let link = DatagramLink::new(OwnedFd::from(socket.try_clone().unwrap()), theirs.into(), 1500, None).unwrap();
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, link.fd().as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        World { link, slots: Slots::new(64).unwrap(), socket, bell, name, epoll }
    }

    fn is_readable(&self) -> bool {
        self.epoll.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
    }

    /// A monitor's socket, connected to ours or not.
    fn monitor(&self, n: u32, connected: bool) -> UnixDatagram {
        let monitor = UnixDatagram::bind_addr(&address(&format!("{}-peer-{n}", self.name))).unwrap();
        if connected {
            monitor.connect_addr(&address(&self.name)).unwrap();
        }
        monitor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        monitor
    }

    /// As the host does it.
    fn connect(&self, n: u32) {
        self.socket.connect_addr(&address(&format!("{}-peer-{n}", self.name))).unwrap();
        self.bell.send(&[1]).unwrap();
    }

    /// Lengths of the frames that come.
    fn receive(&mut self) -> Vec<usize> {
        let mut batch = RxBatch::default();
        self.link.recv_batch(&mut self.slots, &mut batch).unwrap();
        batch
            .drain()
            .map(|r| {
                self.slots.give(r.slot);
                r.frame.len()
            })
            .collect()
    }

    fn send(&mut self, len: usize) -> Result<(), TxError> {
        let head = vec![7; len];
        let frame = TxFrame { head: &head, body: Payload::EMPTY, keep_body: false, checksum: None, gso: None };
        self.link.send(&mut self.slots, frame)?;
        self.link.flush(&mut self.slots).unwrap();
        Ok(())
    }

    fn has_rung(&self) -> bool {
        self.bell.recv(&mut [0; 8]).is_ok()
    }
}

#[test]
fn the_socket_is_the_hosts_until_it_rings() {
    let mut w = World::new("first");
    let monitor = w.monitor(1, true);
    monitor.send(b"VFKT").unwrap();
    monitor.send(&[1; 60]).unwrap();
    assert!(!w.is_readable() && w.receive().is_empty(), "what waits is for the host to see");
    assert_eq!((w.send(60), w.link.stats().tx_down, w.link.has_room()), (Err(TxError::Down), 1, false));
    assert_eq!(w.link.take_news(), None);
    w.connect(1);
    assert!(w.is_readable());
    assert_eq!(w.receive(), [60], "a greeting is no frame");
    assert_eq!((w.link.take_news(), w.link.take_news()), (Some(LinkNews::Connected), None));
    assert!(!w.is_readable());
    assert_eq!(w.send(100), Ok(()));
    let mut buf = [0; 200];
    assert_eq!(monitor.recv(&mut buf).unwrap(), 100);
    let s = w.link.stats();
    assert_eq!((s.rx_frames, s.rx_too_short, s.tx_frames, s.rx_down), (1, 0, 1, 0));
}

#[test]
fn a_peer_that_is_there_already_is_no_news() {
    let mut w = World::new("already");
    let monitor = w.monitor(1, true);
    w.connect(1);
    w.receive();
    // Another link over the same socket, as a successor has it.
    let (_bell, theirs) = UnixDatagram::pair().unwrap();
    let mut next = DatagramLink::new(w.socket.try_clone().unwrap().into(), theirs.into(), 1500, None).unwrap();
    assert_eq!(next.take_news(), None);
    monitor.send(&[1; 80]).unwrap();
    let mut batch = RxBatch::default();
    next.recv_batch(&mut w.slots, &mut batch).unwrap();
    assert_eq!(batch.len(), 1);
}

#[test]
fn a_frame_that_finds_nobody_is_counted_and_rings() {
    let mut w = World::new("refused");
    let monitor = w.monitor(1, false);
    w.connect(1);
    w.receive();
    w.link.take_news();
    drop(monitor);
    assert_eq!(w.send(60), Ok(()));
    assert_eq!((w.link.stats().tx_down, w.link.stats().rx_down, w.link.stats().tx_frames), (1, 1, 0));
    assert!(w.has_rung() && matches!(w.link.take_news(), Some(LinkNews::Disconnected(_))));
    assert_eq!((w.send(60), w.link.stats().tx_down), (Err(TxError::Down), 2));
    assert!(!w.has_rung(), "it rings once");
    // The next one.
    let monitor = w.monitor(2, true);
    monitor.send(&[2; 60]).unwrap();
    assert!(!w.is_readable());
    w.connect(2);
    assert_eq!(w.receive(), [60]);
    assert_eq!(w.send(70), Ok(()));
    assert_eq!(monitor.recv(&mut [0; 100]).unwrap(), 70);
}

#[test]
fn the_host_may_let_a_peer_go() {
    let mut w = World::new("let-go");
    let _monitor = w.monitor(1, true);
    w.connect(1);
    w.receive();
    w.link.take_news();
    rustix::net::connect_unspec(&w.socket).unwrap();
    w.bell.send(&[1]).unwrap();
    assert!(w.is_readable() && w.receive().is_empty());
    assert!(matches!(w.link.take_news(), Some(LinkNews::Disconnected(_))));
    assert!(!w.has_rung(), "the host knows");
    // It may ring for nothing.
    w.bell.send(&[1]).unwrap();
    assert!(w.receive().is_empty() && w.link.take_news().is_none());
}

#[test]
fn what_a_full_peer_does_not_take_waits_for_room() {
    let mut w = World::new("full");
    let monitor = w.monitor(1, true);
    w.connect(1);
    w.receive();
    let mut sent = 0u64;
    while w.link.stats().tx_frames == sent {
        w.send(60).unwrap();
        sent += 1;
    }
    assert!(w.link.stats().tx_frames < sent && !w.is_readable() && !w.link.has_room());
    // What is taken makes room, which makes the descriptor readable; then the rest goes.
    let mut buf = [0; 100];
    let mut came = 0;
    while came < sent {
        match monitor.recv(&mut buf) {
            Ok(n) => {
                assert_eq!(n, 60);
                came += 1;
            }
            Err(e) => panic!("{came} of {sent} came: {e}"),
        }
        if w.is_readable() {
            w.receive();
            w.link.flush(&mut w.slots).unwrap();
        }
    }
    assert_eq!((w.link.stats().tx_frames, w.link.stats().tx_full), (sent, 0));
    assert!(!w.is_readable() && w.link.has_room());
}

#[test]
fn a_link_that_is_stopped_is_closed() {
    let mut w = World::new("stopped");
    let _monitor = w.monitor(1, true);
    w.connect(1);
    w.receive();
    w.link.stop(&mut w.slots);
    assert!(matches!(w.link.recv_batch(&mut w.slots, &mut RxBatch::default()), Err(LinkError::Closed)));
    assert!(w.send(60).is_err());
    // Another one goes on.
    let (_bell, theirs) = UnixDatagram::pair().unwrap();
    let again = DatagramLink::new(w.socket.try_clone().unwrap().into(), theirs.into(), 1500, None);
    assert!(again.unwrap().has_room());
    let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let (_bell, theirs) = UnixDatagram::pair().unwrap();
    assert!(DatagramLink::new(stream.into(), theirs.into(), 1500, None).is_err());
}
