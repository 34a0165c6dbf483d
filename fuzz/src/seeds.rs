//! Seeds: stories of ordinary use, from which a fuzzer starts.

use crate::script::{Op, Writer};
use hibernet_tests::wire::{self, Ip};
use std::path::Path;

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;

/// A TCP segment of flow `which` where the flow stands: to destination 2 (accepts), 3 (refuses) or 4 (hangs).
fn tcp(w: &mut Writer, to: u8, which: u8, flags: u8, data: &[u8]) {
    w.op(Op::Tcp, &[to, which, flags, 0]).0.extend(60_000u16.to_le_bytes());
    w.string(data);
}

/// A deed of the peer of a TCP socket.
fn peer(w: &mut Writer, which: u8, deed: u8, n: u16) {
    w.op(Op::Peer, &[0, which, deed]).0.extend(n.to_le_bytes());
}

fn stories() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut story = |setup: u8, tell: &dyn Fn(&mut Writer)| {
        let mut w = Writer(vec![setup]);
        tell(&mut w);
        all.push(w.0);
    };
    for family in [0, 0x80] {
        for setup in [0, 1, 2, 4, 8] {
            story(setup, &|w| {
                tcp(w, family | 2, 0, SYN, b"");
                tcp(w, family | 2, 0, ACK, b"");
                tcp(w, family | 2, 0, ACK, &[9; 700]);
                peer(w, 0, 0, 3000);
                tcp(w, family | 2, 0, ACK, b"");
                peer(w, 0, 1, 0);
                w.op(Op::Time, &[50, 0]);
                tcp(w, family | 2, 0, ACK | FIN, b"");
                tcp(w, family | 2, 0, ACK, b"");
            });
        }
        // A peer that never acknowledges what the guest sent.
        story(8, &|w| {
            tcp(w, family | 2, 0, SYN, b"");
            tcp(w, family | 2, 0, ACK, b"");
            tcp(w, family | 2, 0, ACK, b"x");
        });
        for to in [3, 4] {
            story(0, &|w| {
                tcp(w, family | to, 1, SYN, b"");
                w.op(Op::Time, &[0, 8]);
                tcp(w, family | to, 1, SYN, b"");
            });
        }
        story(0, &|w| {
            w.op(Op::Accept, &[u8::from(family != 0), 1]);
            tcp(w, family | 6, 0x81, SYN | ACK, b"");
            tcp(w, family | 6, 0x81, ACK, b"hello");
            peer(w, 0, 0, 100);
            peer(w, 0, 2, 0);
        });
        story(0, &|w| {
            w.op(Op::Udp, &[family | 2, 7, 5]).string(b"datagram");
            w.op(Op::Peer, &[1, 1, 2]).string(b"answer");
            w.op(Op::Peer, &[1, 1, 0]).string(b"datagram").0.extend([3, 3, 0, 0, 0, 0]);
            w.op(Op::Peer, &[1, 0, 2]).string(b"to a published port");
        });
        story(0, &|w| {
            // A question for A of a.example.
            let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01";
            w.op(Op::Udp, &[family | 1, 7, 0]).string(query);
            let mut answer = query.to_vec();
            answer[2] = 0x81;
            answer[3] = 0x80;
            w.op(Op::Peer, &[1, 1, 2]).string(&answer);
        });
        let (src, dst) = if family == 0 { ("10.0.2.15", "203.0.113.1") } else { ("fd68:6962:6e65:7400::15", "2001:db8::1") };
        let (src, dst) = (src.parse().expect("address"), dst.parse().expect("address"));
        let echo = wire::echo(src, dst, 7, 1, &[3; 40]);
        let number = if family == 0 { 1 } else { 58 };
        story(0, &|w| {
            w.op(Op::Packet, &[family | 2, number, 64]).string(b"").string(&echo);
            w.op(Op::Peer, &[2, 0, 0, 1, 0]).string(&[3; 40]);
            w.op(Op::Packet, &[family, number, 64]).string(b"").string(&echo);
        });
        let datagram = wire::udp(src, dst, 2000, 80, &[5; 1000]);
        story(0, &|w| {
            w.op(Op::Fragment, &[family | 2, 17, 0, 0, 1, 1]).string(&datagram[..512]);
            w.op(Op::Fragment, &[family | 2, 17, 64, 0, 0, 1]).string(&datagram[512..]);
        });
        let plain = Ip::new(src, dst).frame([0; 6], [0; 6], 17, &datagram);
        story(1, &|w| {
            w.op(Op::Raw, &[0]).string(&plain).0.push(0);
            // As one frame to be cut into datagrams of 100 bytes.
            w.op(Op::Raw, &[1 | 3 << 1, 100, 0]).string(&plain).0.push(0);
        });
    }
    let arp = wire::arp(wire::Arp { op: 1, sender: (wire::GUEST_MAC, [10, 0, 2, 15]), target: ([0; 6], [10, 0, 2, 2]) });
    story(0, &|w| {
        w.op(Op::Raw, &[0]).string(&wire::ethernet([0xff; 6], wire::GUEST_MAC, 0x0806, &arp)).0.push(1);
    });
    let mut discover = vec![1, 1, 6, 0, 1, 2, 3, 4];
    discover.resize(236, 0);
    discover[28..34].copy_from_slice(&wire::GUEST_MAC);
    discover.extend([99, 130, 83, 99, 53, 1, 1, 55, 7, 1, 3, 6, 12, 15, 26, 119, 255]);
    story(0, &|w| {
        w.op(Op::Udp, &[5 | 7 << 3, 2, 1]).string(&discover);
    });
    let solicit = [
        1, 0xaa, 0xbb, 0xcc, 0, 1, 0, 10, 0, 3, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
        0, 0,
    ];
    story(0, &|w| {
        w.op(Op::Udp, &[0x80 | 4 | 7 << 3, 3, 4]).string(&solicit);
    });
    // Router solicitation.
    story(0, &|w| {
        w.op(Op::Packet, &[0x80 | 5 | 7 << 3, 58, 255]).string(b"").string(&[133, 0, 0, 0, 0, 0, 0, 0]);
    });
    all
}

/// If HIBERNET_FUZZ_SEEDS names a directory, writes the seeds there and ends the process.
pub fn write_if_asked() {
    let Some(dir) = std::env::var_os("HIBERNET_FUZZ_SEEDS") else { return };
    for (n, story) in stories().iter().enumerate() {
        std::fs::write(Path::new(&dir).join(format!("seed-{n:02}")), story).expect("seed is written");
    }
    std::process::exit(0);
}
