//! The sections of a worker's image that are not the stack's: what any version wrote is still read, and no format changes without its version.
//!
//! For each section and each of its versions there are `golden/NAME.vVERSION.bin`, the bytes of one canonical value, and `NAME.vVERSION.json`, what these
//! are read as today. Files are never changed; with HIBERNET_GOLDEN=write those that are missing are written. See docs/snapshot-format.md.

use hibernet::checkpoint::carried::Carried;
use hibernet::checkpoint::contents::Origin;
use hibernet::checkpoint::datagram::{DatagramImage, ListenerImage};
use hibernet::checkpoint::image::{AgreedImage, HostAddr, TcpOptions, TcpSocketImage};
use hibernet::sock::{
    Bytes, Fingerprint, HeaderState, Notice, PathMtu, PingState, QueuedDatagram, RawPingState, Scope, SlotState, SocketKind,
    SocketState, SocketStats, SocketsState, TcpState, UdpState,
};
use hibernet_netstack::edge::SockId;
use hibernet_netstack::tuple::Endpoint;
use hibernet_snapshot::{SectionState, decode_version, encode, encode_version};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn host(addr: &str, port: u16, scope: u32) -> HostAddr {
    HostAddr { ip: ip(addr), port, scope }
}

fn origin() -> Origin {
    Origin { version: "0.1.0".into(), name: "web".into(), went_on: true }
}

fn sockets() -> SocketsState {
    let header = |hop_limit, path_mtu| HeaderState { hop_limit, tos: 0x2e, path_mtu };
    let fingerprint = Fingerprint { state: 1, written: 1 << 40, consumed: 12_345 };
    let datagram = |to, hop_limit, segment| QueuedDatagram {
        bytes: Bytes(vec![1, 2, 3]),
        from: Endpoint { addr: ip("fe80::1"), port: 53 },
        scope: 2,
        to,
        hop_limit,
        segment,
    };
    let kinds = [
        SocketKind::Tcp(TcpState { v6: false, at_mark: true, urgent: true, ended: false, fingerprint }),
        SocketKind::Udp(UdpState {
            v6: true,
            peer: None,
            header: header(None, PathMtu::Want),
            scopes: vec![Scope { addr: "fe80::1".parse().expect("an address"), interface: 2 }],
            segments: true,
            pending: Some(90),
            waiting: vec![datagram(Some(ip("fe80::2")), Some(64), Some(1200)), datagram(None, None, None)],
        }),
        SocketKind::Udp(UdpState {
            v6: false,
            peer: Some(Endpoint { addr: ip("192.0.2.1"), port: 123 }),
            header: header(Some(3), PathMtu::Dont),
            scopes: vec![],
            segments: false,
            pending: None,
            waiting: vec![],
        }),
        SocketKind::Ping(PingState { to: ip("192.0.2.1"), ident: 77, header: header(Some(64), PathMtu::Do) }),
        SocketKind::RawPing(RawPingState { to: ip("2001:db8::1"), from: Some(ip("2001:db8::2")), ident: 78 }),
    ];
    let mut slots: Vec<_> = (0..)
        .zip(kinds)
        .map(|(i, kind)| SlotState {
            generation: 3,
            socket: Some(SocketState { token: (i != 1).then_some(1 << 33 | i), reports: i == 2, cookie: 1000 + i, kind }),
        })
        .collect();
    slots.push(SlotState { generation: 9, socket: None });
    SocketsState {
        slots,
        free: vec![5],
        notices: vec![Notice { id: 3 << 20, readable: true, peer_closed: false, error: true }],
        stats: SocketStats { opened: 6, closed: 1, ..SocketStats::default() },
    }
}

fn carried() -> Carried {
    let tcp = TcpSocketImage {
        local: host("192.0.2.2", 40_000, 0),
        peer: host("192.0.2.1", 443, 0),
        state: 1,
        send_seq: 0xffff_fff0,
        receive_seq: 7,
        send: Bytes(b"not acknowledged".to_vec()),
        unsent: 4,
        receive: Bytes(b"not consumed".to_vec()),
        agreed: AgreedImage { mss: 1460, window_scale: Some((7, 8)), sack: true, timestamp: Some(99) },
        window: [1, 2, 3, 4, 5],
        options: TcpOptions {
            nodelay: true,
            oob_inline: true,
            reuse_address: true,
            keep_alive: Some((60, 10, 5)),
            send_buffer: Some(1 << 20),
            receive_buffer: None,
        },
    };
    let plain = TcpSocketImage {
        local: host("fe80::2", 40_001, 3),
        peer: host("fe80::1", 443, 3),
        agreed: AgreedImage { window_scale: None, timestamp: None, ..tcp.agreed },
        options: TcpOptions { keep_alive: None, send_buffer: None, receive_buffer: Some(4096), ..tcp.options },
        ..tcp.clone()
    };
    let datagram = |protocol, peer| DatagramImage {
        protocol,
        local: host("0.0.0.0", 9000, 0),
        peer,
        options: vec![Some(1), None],
        buffers: (212_992, 425_984),
    };
    Carried {
        tcp: vec![(SockId(1), tcp), (SockId(2), plain)],
        datagram: vec![(SockId(3), datagram(17, None)), (SockId(4), datagram(1, Some(host("192.0.2.1", 0, 0))))],
        listeners: vec![(0, ListenerImage { local: host("::", 8080, 0), only_v6: true, backlog: 4096 })],
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A golden file; made, if it is to be.
fn golden(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = directory().join(name);
    fs::read(&path).unwrap_or_else(|e| {
        let writes = std::env::var_os("HIBERNET_GOLDEN").is_some_and(|v| v == "write");
        assert!(writes, "{name}: {e}; if its version is new, HIBERNET_GOLDEN=write makes it");
        let bytes = make();
        fs::write(&path, &bytes).expect("written");
        bytes
    })
}

/// `now` is the canonical value of the current version.
fn check<T: SectionState + Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, now: &T) {
    let oldest = T::UPGRADES.first().map_or(T::VERSION, |u| u.from);
    for version in oldest..=T::VERSION {
        let bytes = golden(&format!("{name}.v{version}.bin"), || encode(now).expect("encoded"));
        let text = golden(&format!("{name}.v{version}.json"), || serde_json::to_vec_pretty(now).expect("a value"));
        let expected: T = serde_json::from_slice(&text).expect("a value");
        let read: T = decode_version(version, &bytes).unwrap_or_else(|e| panic!("{name} of version {version}: {e}"));
        assert_eq!(read, expected, "{name} of version {version}");
        let again = encode_version(version, &expected).unwrap_or_else(|e| panic!("{name} for readers of version {version}: {e}"));
        assert_eq!(
            again, bytes,
            "the format of {name} changed and its version did not, or version {version} is not written as it was"
        );
    }
}

#[test]
fn every_version_is_read_and_no_format_changed_without_its_version() {
    check("origin", &origin());
    check("sockets", &sockets());
    check("carried", &carried());
    let known = ["origin", "sockets", "carried"];
    for entry in fs::read_dir(directory()).expect("golden files") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(known.iter().any(|k| name.starts_with(&format!("{k}.v"))), "{name} belongs to no section");
    }
}
