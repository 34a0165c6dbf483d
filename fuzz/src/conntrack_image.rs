//! Images of tracked connections.

use hibernet_netstack::Time;
use hibernet_netstack::conntrack::image::{Family, Head, Reaping, record_size};
use hibernet_netstack::conntrack::tcp::TcpTrack;
use hibernet_netstack::conntrack::{Conn, Conntrack, CtConfig, CtTuple, Proto, Status, tuple};
use hibernet_netstack::edge::{Token, TokenKind};
use hibernet_netstack::rng::Key;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

const NOW: Time = Time::from_millis(1_000_000);

fn config() -> CtConfig {
    CtConfig { max: 64, ..CtConfig::default() }
}

/// What comes before the records: how many there are of each family, slots, generation, and where the reaper stands.
const PREFIX: usize = 16;

fn head(p: &[u8; PREFIX]) -> Head {
    let reaper = Reaping {
        due: (p[8] & 1 == 0).then(|| NOW + Duration::from_millis(u64::from(p[9]) * 40)),
        cursor: p[10].into(),
        left: p[11].into(),
        passed: p[12].into(),
        expired: p[13].into(),
        interval: Duration::from_millis(u64::from(p[14]) * 2),
        pressure: p[15].into(),
        pressed: p[8] & 2 != 0,
        search: 0,
    };
    Head {
        v4: p[0].into(),
        v6: p[1].into(),
        slots: u16::from_le_bytes([p[2], p[3]]).into(),
        generation: u32::from_le_bytes([p[4], p[5], p[6], p[7]]),
        numbered: 7,
        reaper,
        condemned: if p[8] & 4 != 0 { vec![(p[10].into(), 1)] } else { Vec::new() },
        ..Head::default()
    }
}

/// Loads an image. If that is not refused the table must be whole: it saves as it was loaded, finds what it has, and everything goes in the end.
pub fn load(bytes: &[u8]) {
    let Some((prefix, records)) = bytes.split_first_chunk::<PREFIX>() else { return };
    let head = head(prefix);
    let v4 = (head.v4 as usize * record_size(Family::V4)).min(records.len());
    let (v4, v6) = records.split_at(v4);
    let Ok(table) = Conntrack::load(config(), Key(1, 2), NOW, head.clone(), v4, v6) else { return };
    let image = table.save();
    assert_eq!((image.records(Family::V4).to_vec().as_slice(), image.records(Family::V6).to_vec().as_slice()), (v4, v6));
    assert_eq!((image.head().reaper, table.len() as u64), (head.reaper, head.conns()));
    let mut shown = Vec::new();
    table.dump(NOW, 0, u32::MAX, |id, conn| shown.push((id, *conn)));
    for (id, conn) in shown {
        assert_eq!(table.get(id), Some(conn));
        assert_eq!(table.find(NOW, &conn.tuples[1]).map(|f| f.0), Some(id));
        table.unpin(NOW, id);
    }
    for n in 0..64 {
        let _ = table.adopt(NOW, conn(40_000 + n, 1, false));
    }
    let mut ids = Vec::new();
    table.dump(NOW, 0, u32::MAX, |id, _| ids.push(id));
    for id in ids {
        table.modify(id, |c| c.expires = NOW);
    }
    let mut steps = 0;
    while let Some(due) = table.reap_due().filter(|_| !table.is_empty()) {
        table.reap(due);
        steps += 1;
        // What nobody can see may live for as long as it says.
        if steps > 1000 {
            table.flush();
        }
    }
}

/// A connection of one of five kinds.
fn conn(n: u16, kind: u16, translated: bool) -> Conn {
    let v6 = kind >= 5;
    let addr = |n: u16| -> IpAddr {
        match v6 {
            false => [10, 0, (n >> 8) as u8, n as u8].into(),
            true => [0xfd00, 0, 0, 0, 0, 0, 0, n].into(),
        }
    };
    let (proto, state, (sport, dport)) = match (kind % 5, v6) {
        (0, _) => (6, Proto::Tcp(TcpTrack::picked_up()), (n, 80)),
        (1, _) => (17, Proto::Udp { stream_after: NOW }, (n, 53)),
        (2, false) => (1, Proto::Icmp, (n, 8 << 8)),
        (2, true) => (58, Proto::Icmp, (n, 128 << 8)),
        (3, _) => (47, Proto::Generic, (0, n)),
        _ => (50, Proto::Generic, (0, 0)),
    };
    let original = CtTuple { src: addr(n).into(), dst: addr(60_000).into(), sport, dport, zone: 0, proto, v6 };
    let mut reply = tuple::invert(&original).expect("a question");
    let mut status = Status::default();
    status.set(Status::SRC_NAT_DONE);
    if translated {
        reply.dst = addr(50_000 + n).into();
        status.set(Status::SRC_NAT);
    }
    let token = (kind % 5 == 0).then(|| Token::new(TokenKind::Tcp, n.into(), 1));
    Conn { tuples: [original, reply], status, mark: n.into(), expires: NOW + Duration::from_secs(30), proto: state, flow: token }
}

/// If HIBERNET_FUZZ_SEEDS names a directory, writes images there and ends the process.
pub fn write_seeds_if_asked() {
    let Some(dir) = std::env::var_os("HIBERNET_FUZZ_SEEDS") else { return };
    for kind in 0..12 {
        let table = Conntrack::new(config(), Key(3, 4));
        // The last two have several kinds.
        for n in 0..4 {
            let kind = if kind < 10 { kind } else { n * 3 };
            table.adopt(NOW, conn(n, kind, kind % 2 == n % 2)).expect("room");
        }
        let image = table.save();
        let mut seed = vec![0; PREFIX];
        (seed[0], seed[1]) = (image.head().v4 as u8, image.head().v6 as u8);
        seed[2..4].copy_from_slice(&(image.head().slots as u16).to_le_bytes());
        (seed[9], seed[14]) = (100, 200);
        seed.extend(image.records(Family::V4).to_vec());
        seed.extend(image.records(Family::V6).to_vec());
        load(&seed);
        std::fs::write(Path::new(&dir).join(format!("seed-{kind:03}")), seed).expect("seed is written");
    }
    std::process::exit(0);
}
