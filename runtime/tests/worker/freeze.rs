//! Freezing and thawing a worker under traffic.

use crate::flows::{SIZE, connect, loopback_of, stream, stream_peer};
use crate::guest::{Pair, loopback_config, setup};
use event_manager::{EventManager, SubscriberOps};
use hibernet::checkpoint::report::{Outcome, ThawReport};
use hibernet::checkpoint::{CheckpointError, Held, RestoreError, known};
use hibernet::worker::{FlowPolicy, Mode, Prepare, Prepared, RestorePolicy, Worker};
use hibernet_snapshot::{GenerationId, Image};
use smoltcp::socket::tcp;
use std::net::TcpListener;
use std::ops::ControlFlow;

fn image_of(prepared: &Prepared) -> Vec<u8> {
    let mut bytes = Vec::new();
    prepared.contents.write_to(&mut bytes, &mut |_, _| ControlFlow::Continue(())).unwrap();
    bytes
}

fn freeze(p: &mut Pair) -> (Vec<u8>, Held) {
    let prepared = p.worker().prepare(&Prepare::default(), None).unwrap();
    let bytes = image_of(&prepared);
    let worker = p.manager.remove_subscriber(p.id).unwrap();
    (bytes, worker.commit(prepared.token).unwrap())
}

fn thaw(p: &mut Pair, bytes: &[u8], held: Held, policy: &RestorePolicy) -> Result<ThawReport, RestoreError> {
    let image = Image::parse(bytes, &known())?;
    let mut setup = setup(hibernet::checkpoint::config_of(&image)?);
    setup.links.push(p.plug());
    let (worker, report) = Worker::restore(setup, &image, held, policy, None)?;
    p.manager = EventManager::new().unwrap();
    p.id = p.manager.add_subscriber(worker);
    Ok(report)
}

/// Streams both ways, with something done to the worker whenever a part of them has arrived.
fn stream_while(mut what: impl FnMut(&mut Pair)) {
    let mut p = Pair::new(setup(loopback_config()));
    let gateway = p.gateways()[0];
    let listener = TcpListener::bind(loopback_of(gateway)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = stream_peer(listener);
    let h = connect(&mut p, gateway, port, 40_000);
    let (mut sent, mut got) = (0, Vec::new());
    let parts = 5;
    for part in 1..=parts {
        p.until("a part of the streams", |_, sockets| {
            let s = sockets.get_mut::<tcp::Socket<'_>>(h);
            while s.can_send() && sent < SIZE {
                sent += s.send_slice(&stream(sent, (SIZE - sent).min(8192))).unwrap();
            }
            if sent == SIZE && s.may_send() {
                s.close();
            }
            while s.can_recv() {
                s.recv(|b| (b.len(), got.extend_from_slice(b))).unwrap();
            }
            let done = got.len() == SIZE && matches!(s.state(), tcp::State::TimeWait | tcp::State::Closed);
            if part < parts { got.len() >= SIZE * part / parts } else { done }
        });
        if part < parts {
            what(&mut p);
        }
    }
    assert!(got == stream(7, SIZE), "what the guest got differs");
    assert!(peer.join().unwrap() == stream(0, SIZE), "what the peer got differs");
}

#[test]
fn streams_go_on_in_a_new_worker_with_the_sockets_handed_over() {
    stream_while(|p| {
        let (bytes, held) = freeze(p);
        let report = thaw(p, &bytes, held, &RestorePolicy::default()).unwrap();
        assert_eq!(report.count(Outcome::Resumed), 1, "{report:?}");
    });
}

#[test]
fn a_freeze_that_is_given_up_changes_nothing() {
    stream_while(|p| {
        let prepared = p.worker().prepare(&Prepare::default(), None).unwrap();
        assert!(p.worker().is_paused());
        assert!(matches!(p.worker().prepare(&Prepare::default(), None), Err(CheckpointError::InProgress)));
        assert!(matches!(p.worker().abort(Some(GenerationId([9; 16]))), Err(CheckpointError::WrongToken)));
        p.worker().abort(Some(prepared.token)).unwrap();
        assert!(!p.worker().is_paused());
    });
}

#[test]
fn a_living_network_is_saved_again_and_again() {
    stream_while(|p| {
        for _ in 0..3 {
            p.worker().begin_copy();
            p.until_worker("copied", Worker::is_copied);
            let prepared = p.worker().prepare(&Prepare { mode: Mode::GoOn, ..Prepare::default() }, None).unwrap();
            assert!(!p.worker().is_paused());
            assert_eq!(prepared.report.flows.len(), 1);
            Image::parse(&image_of(&prepared), &known()).unwrap().check().unwrap();
        }
    });
}

#[test]
fn pauses_lose_nothing() {
    stream_while(|p| {
        p.worker().pause();
        p.worker().pause();
        assert!(p.quiet(std::time::Duration::from_millis(20)), "a paused worker is woken again and again");
        p.worker().resume();
        p.worker().resume();
    });
}

/// A connection on which the guest has sent something that was echoed.
fn established(p: &mut Pair) -> (smoltcp::iface::SocketHandle, std::thread::JoinHandle<std::io::Result<u64>>) {
    let gateway = p.gateways()[0];
    let listener = TcpListener::bind(loopback_of(gateway)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = std::thread::spawn(move || {
        let (s, _) = listener.accept()?;
        std::io::copy(&mut &s, &mut &s)
    });
    let h = connect(p, gateway, port, 40_001);
    echo(p, h);
    (h, peer)
}

fn echo(p: &mut Pair, h: smoltcp::iface::SocketHandle) {
    let mut sent = false;
    p.until("an echo", |_, sockets| {
        let s = sockets.get_mut::<tcp::Socket<'_>>(h);
        if !sent && s.can_send() {
            sent = s.send_slice(b"hello").unwrap() == 5;
        }
        s.can_recv() && s.recv(|b| (b.len(), b == b"hello")).unwrap()
    });
}

fn is_reset(p: &mut Pair, h: smoltcp::iface::SocketHandle) {
    p.until("a reset", |_, sockets| sockets.get::<tcp::Socket<'_>>(h).state() == tcp::State::Closed);
}

#[test]
fn another_token_is_refused_and_the_right_one_taken() {
    let mut p = Pair::new(setup(loopback_config()));
    let (h, _peer) = established(&mut p);
    let (bytes, held) = freeze(&mut p);
    let wrong = RestorePolicy { expected: Some(GenerationId([1; 16])), ..RestorePolicy::default() };
    assert!(matches!(thaw(&mut p, &bytes, Held::default(), &wrong), Err(RestoreError::WrongToken { .. })));
    let right = RestorePolicy { expected: held.generation, ..RestorePolicy::default() };
    thaw(&mut p, &bytes, held, &right).unwrap();
    echo(&mut p, h);
}

#[test]
fn an_older_image_resets_its_flows_as_stale() {
    let mut p = Pair::new(setup(loopback_config()));
    let (h, _peer) = established(&mut p);
    let older = image_of(&p.worker().prepare(&Prepare { mode: Mode::GoOn, ..Prepare::default() }, None).unwrap());
    echo(&mut p, h);
    let (_, held) = freeze(&mut p);
    let report = thaw(&mut p, &older, held, &RestorePolicy::default()).unwrap();
    assert_eq!(report.count(Outcome::Reset), 1);
    assert!(report.flows[0].why.as_ref().unwrap().contains("stale generation"), "{report:?}");
    // smoltcp says nothing to old segments, so it hears of it when it sends next.
    p.sockets.get_mut::<tcp::Socket<'_>>(h).send_slice(b"anybody there?").unwrap();
    is_reset(&mut p, h);
}

#[test]
fn without_its_sockets_an_image_gives_rules_and_resets() {
    for flows in [FlowPolicy::Resume, FlowPolicy::Reset, FlowPolicy::Clone] {
        let mut p = Pair::new(setup(loopback_config()));
        let (h, _peer) = established(&mut p);
        let (bytes, held) = freeze(&mut p);
        let held = if flows == FlowPolicy::Resume { Held::default() } else { held };
        let report = thaw(&mut p, &bytes, held, &RestorePolicy { flows, ..RestorePolicy::default() }).unwrap();
        assert_eq!(report.count(Outcome::Reset), 1, "{report:?}");
        is_reset(&mut p, h);
        // The network works.
        established(&mut p);
    }
}
