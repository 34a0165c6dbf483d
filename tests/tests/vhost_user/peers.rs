//! Front ends that listen: their connections are handed to the link.

use super::{Served, frame};
use hibernet::link::vhost_user::VhostUserLink;
use hibernet::link::{Link, LinkError, LinkNews};
use hibernet::slots::Slots;
use hibernet::sys::vanished;
use hibernet_tests::vmm::{FrontEnd, Options};
use rustix::fs::ftruncate;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, sendmsg,
    socketpair,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A link, and the other end of what connections are handed over.
fn handed() -> (Served, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let link = VhostUserLink::handed(theirs, 65_520, None).unwrap();
    (Served { link, slots: Slots::new(1024).unwrap(), frames: Vec::new() }, ours)
}

fn hand(bell: &OwnedFd, connection: Option<&UnixStream>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = connection.iter().map(|c| c.as_fd()).collect();
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(bell, &[IoSlice::new(&[1])], &mut control, SendFlags::empty()).unwrap();
}

/// Hands a connection over, whose front end then sets the link up.
fn next_front_end(served: &mut Served, bell: &OwnedFd) -> FrontEnd {
    let (ours, theirs) = UnixStream::pair().unwrap();
    hand(bell, Some(&ours));
    drop(ours);
    let mut front = FrontEnd::new(theirs, Options::default());
    served.while_does(|| front.set_up().unwrap()).unwrap();
    assert_eq!(served.link.take_news(), Some(LinkNews::Connected));
    front
}

/// How often the link has asked for a connection.
fn asked(bell: &OwnedFd) -> usize {
    std::iter::from_fn(|| recv(bell, &mut [0; 8], RecvFlags::DONTWAIT).ok()).count()
}

#[test]
fn a_link_asks_for_a_connection_when_it_has_none() {
    let (mut served, bell) = handed();
    assert_eq!(asked(&bell), 0, "it is not served yet");
    served.turn().unwrap();
    assert_eq!(asked(&bell), 1);
    hand(&bell, None);
    served.turn().unwrap();
    assert_eq!(asked(&bell), 1, "that was none");
    for _ in 0..2 {
        let mut front = next_front_end(&mut served, &bell);
        assert_eq!(asked(&bell), 0);
        served.link.send(&mut served.slots, frame(&[7; 60])).unwrap();
        served.turn().unwrap();
        assert_eq!(front.receive().unwrap().1, [7; 60]);
        drop(front);
        served.turn().unwrap();
        assert!(matches!(served.link.take_news(), Some(LinkNews::Disconnected(_))));
        assert_eq!(asked(&bell), 1);
    }
}

#[test]
fn a_connection_that_waits_already_is_not_asked_for() {
    let (mut served, bell) = handed();
    let (ours, theirs) = UnixStream::pair().unwrap();
    hand(&bell, Some(&ours));
    let mut front = FrontEnd::new(theirs, Options::default());
    served.while_does(|| front.set_up().unwrap()).unwrap();
    assert_eq!(asked(&bell), 0);
}

#[test]
fn the_link_is_gone_when_nobody_hands_connections_over() {
    let (mut served, bell) = handed();
    served.turn().unwrap();
    drop(bell);
    assert!(matches!(served.turn(), Err(LinkError::Closed)));
}

/// A front end that shortens the file behind its memory loses the connection; the next one is served.
#[test]
fn memory_that_is_taken_away_ends_the_session() {
    vanished::survive().unwrap();
    let (mut served, bell) = handed();
    served.turn().unwrap();
    // Rings and buffers, or the buffers alone; found when something is sent, or received.
    for (left, to_guest) in [(0, false), (0, true), (1 << 20, false), (1 << 20, true)] {
        assert_eq!(asked(&bell), 1);
        let mut front = next_front_end(&mut served, &bell);
        assert!(front.transmit(&[5; 60]));
        served.until_frames(1);
        served.frames.clear();
        assert!(to_guest || front.transmit(&[6; 60]));
        ftruncate(front.file(), left).unwrap();
        if to_guest {
            // It is sent to memory of ours, which nobody reads.
            let _ = served.link.send(&mut served.slots, frame(&[7; 60]));
            served.link.flush(&mut served.slots).unwrap();
        } else {
            served.turn().unwrap();
        }
        let mut news: Vec<_> = std::iter::from_fn(|| served.link.take_news()).collect();
        if !matches!(news.last(), Some(LinkNews::Disconnected(_))) {
            assert!(served.wait(Duration::ZERO), "nobody would look for it");
            served.turn().unwrap();
            news.extend(std::iter::from_fn(|| served.link.take_news()));
        }
        assert!(matches!(news.last(), Some(LinkNews::Disconnected(why)) if why.contains("shorter")), "{left} left: {news:?}");
        assert!(served.frames.iter().flatten().all(|b| *b == 0), "nothing else was there");
        served.frames.clear();
    }
}
