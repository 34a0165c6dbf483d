//! Frames into the kernel and out of it.

use super::{ROUTER_MAC, Side};
use crate::lab::{Lab, Place, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

/// EtherType of marker frames: local experimental, IEEE 802.
const MARKER: u16 = 0x88b5;
/// A marker that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// Raw sockets on the far ends of the router's interfaces, and one in the router that sees markers only.
#[derive(Debug)]
pub(super) struct Sockets {
    nodes: [OwnedFd; 2],
    router: OwnedFd,
    count: u32,
    buffer: Box<[u8; 1 << 16]>,
}

impl Sockets {
    /// Opens them in the namespaces `c` and `s` of the lab, and where it is itself.
    pub(super) fn open(lab: &Lab) -> Sockets {
        let path = lab.path("sockets");
        let listener = UnixListener::bind(&path).expect("a socket to be handed sockets over");
        let marker = format!(":tap0:{MARKER:04x}");
        let argv = lab.peer("packet_sockets.py", &[&path, &marker, "/run/netns/c:c0:0003", "/run/netns/s:s0:0003"]);
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        let mut opener = lab.spawn(Place::Host, &argv);
        listener.set_nonblocking(true).expect("a listener");
        let mut stream = None;
        wait_until("packet sockets are handed over", Duration::from_secs(20), || {
            assert!(opener.running() || stream.is_some(), "no packet sockets:\n{}", opener.output());
            stream = listener.accept().ok();
            stream.is_some()
        });
        let (stream, _) = stream.expect("accepted");
        stream.set_nonblocking(false).expect("a stream");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC).expect("sockets arrive");
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        let [router, c, s]: [OwnedFd; 3] = fds.try_into().expect("three sockets");
        for fd in [&c, &s] {
            rustix::net::sockopt::set_socket_recv_buffer_size(fd, 4 << 20).expect("a larger buffer");
        }
        let mut sockets = Sockets { nodes: [c, s], router, count: 0, buffer: Box::new([0; 1 << 16]) };
        sockets.settle();
        sockets.drain();
        sockets
    }

    /// Sends a frame to the router and returns all that comes of it.
    pub(super) fn exchange(&mut self, side: Side, frame: &[u8]) -> Vec<(Side, Vec<u8>)> {
        let sent = send(&self.nodes[side.index()], frame, SendFlags::empty());
        assert_eq!(sent.expect("a frame is sent"), frame.len());
        self.settle();
        self.drain()
    }

    /// Returns when everything has arrived that was on its way. A packet waits in the queue of its CPU before the router sees
    /// it, and what the router makes of it once more: two markers in turn, through the same queue, come behind both. (So the
    /// thread must stay on one CPU.)
    pub(super) fn settle(&mut self) {
        for _ in 0..2 {
            self.count += 1;
            let mut frame = [&ROUTER_MAC[..], &Side::Client.mac(), &MARKER.to_be_bytes(), &self.count.to_be_bytes()].concat();
            frame.resize(60, 0);
            send(&self.nodes[0], &frame, SendFlags::empty()).expect("a marker is sent");
            loop {
                match recv(&self.router, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                    Ok((n, _)) if self.buffer[..n].get(14..18) == Some(&self.count.to_be_bytes()) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => {
                        let limit = Timespec::try_from(PATIENCE).expect("a time");
                        let ready = poll(&mut [PollFd::new(&self.router, PollFlags::IN)], Some(&limit));
                        assert!(!matches!(ready, Ok(0)), "a marker was lost");
                    }
                    Err(e) => panic!("markers: {e}"),
                }
            }
        }
    }

    fn drain(&mut self) -> Vec<(Side, Vec<u8>)> {
        let mut all = Vec::new();
        for side in Side::BOTH {
            loop {
                match recv(&self.nodes[side.index()], &mut self.buffer[..], RecvFlags::DONTWAIT) {
                    Ok((n, _)) => all.push((side, self.buffer[..n].to_vec())),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(e) => panic!("frames of {side:?}: {e}"),
                }
            }
        }
        all
    }
}
