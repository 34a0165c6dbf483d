//! The network's state when the guest moves: who asks for it, and what is answered.

use super::{LONG, Served, connected, running};
use hibernet::link::{Direction, Link, LinkNews};
use hibernet_tests::vmm::{FrontEnd, Options, code};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

const SAVE: u32 = 0;
const LOAD: u32 = 1;

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader.into(), writer.into())
}

fn asks(served: &mut Served, front: &FrontEnd, way: u32, phase: u32) -> bool {
    let (_reader, writer) = pipe();
    served.while_does(|| front.transfer(way, phase, writer.as_fd()).unwrap()).unwrap()
}

fn news(served: &mut Served) -> Vec<LinkNews> {
    std::iter::from_fn(|| served.link.take_news()).filter(|n| !matches!(n, LinkNews::Trouble(_))).collect()
}

fn stopped() -> (Served, FrontEnd) {
    let (mut served, front) = running(Options::default());
    served.while_does(|| front.stop_rings().unwrap()).unwrap();
    news(&mut served);
    (served, front)
}

#[test]
fn it_is_asked_for_when_the_guest_stands_still() {
    let (mut served, front) = running(Options::default());
    assert!(!asks(&mut served, &front, SAVE, 0), "the rings run");
    assert!(served.link.take_transfer().is_none());
    served.while_does(|| front.stop_rings().unwrap()).unwrap();
    assert!(!asks(&mut served, &front, 2, 0), "no such way");
    assert!(!asks(&mut served, &front, SAVE, 1), "no such phase");
    let event = front.call_fd(0);
    assert!(!served.while_does(|| front.transfer(SAVE, 0, event).unwrap()).unwrap(), "an eventfd is no pipe");
    assert!(!served.while_does(|| front.check_state().unwrap()).unwrap(), "nothing was done");
    news(&mut served);
    assert!(asks(&mut served, &front, SAVE, 0));
    assert_eq!(news(&mut served), [LinkNews::Transfer]);
    assert!(!asks(&mut served, &front, SAVE, 0), "it is being done");
    assert_eq!(served.link.take_transfer().map(|t| t.direction), Some(Direction::Save));
    assert!(served.link.take_transfer().is_none(), "once");
}

#[test]
fn a_front_end_without_that_feature_is_refused() {
    let (mut served, mut front) = connected(Options { protocol: !(1 << 19), ..Options::default() });
    served.while_does(|| front.negotiate().unwrap()).unwrap();
    assert!(!asks(&mut served, &front, LOAD, 0));
}

/// Nothing is said before it is known, and what the front end says meanwhile waits.
#[test]
fn whether_it_was_done_is_told_when_that_is_known() {
    for done in [true, false] {
        let (mut served, front) = stopped();
        let (reader, writer) = pipe();
        assert!(served.while_does(|| front.transfer(SAVE, 0, writer.as_fd()).unwrap()).unwrap());
        drop(writer);
        let pipe = served.link.take_transfer().unwrap().pipe;
        std::fs::File::from(pipe).write_all(b"state").unwrap();
        let mut state = String::new();
        std::fs::File::from(reader).read_to_string(&mut state).unwrap();
        assert_eq!(state, "state");
        front.send(code::CHECK_DEVICE_STATE, 0, &[], &[]).unwrap();
        front.send(code::GET_FEATURES, 0, &[], &[]).unwrap();
        assert!(served.wait(LONG));
        served.turn().unwrap();
        assert!(!served.wait(std::time::Duration::from_millis(20)), "what waits keeps nobody busy");
        front.socket().set_nonblocking(true).unwrap();
        assert!(front.answer().is_err(), "it was answered before it was known");
        front.socket().set_nonblocking(false).unwrap();
        served.link.end_transfer(&mut served.slots, done);
        assert_eq!(front.answer().unwrap(), (code::CHECK_DEVICE_STATE, u64::from(!done)));
        assert_eq!(served.while_does(|| front.answer().unwrap().0).unwrap(), code::GET_FEATURES);
        assert_eq!(served.while_does(|| front.check_state().unwrap()).unwrap(), done, "and again");
        // The guest runs here all the same: another move is another one.
        served.while_does(|| front.start_rings().unwrap()).unwrap();
        assert_eq!(news(&mut served), [LinkNews::Transfer, LinkNews::Connected]);
        assert!(!served.while_does(|| front.check_state().unwrap()).unwrap());
    }
}

#[test]
fn a_front_end_that_leaves_with_its_guest_is_told_apart() {
    let (mut served, front) = stopped();
    assert!(asks(&mut served, &front, SAVE, 0));
    let transfer = served.link.take_transfer();
    served.link.end_transfer(&mut served.slots, true);
    drop(front);
    assert!(served.wait(LONG));
    assert!(served.turn().is_err());
    let last = news(&mut served).pop();
    assert!(matches!(last, Some(LinkNews::Left(_))), "{last:?}");
    drop(transfer);

    let (mut served, front) = stopped();
    drop(front);
    assert!(served.wait(LONG));
    assert!(served.turn().is_err());
    assert_eq!(news(&mut served), [], "it moved nothing");
}
