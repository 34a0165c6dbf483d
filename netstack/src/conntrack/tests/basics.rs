//! What every caller relies on.

use super::kit::*;
use crate::conntrack::{CtInfo, Dir, Status, Track};
use crate::verdict::DropReason;

#[test]
fn a_connection_lives_by_value_until_it_is_confirmed() {
    let ct = table(16);
    let mut first = datagram(client(1), server());
    ct.track(secs(0), &mut first).unwrap();
    assert!(matches!(first.track, Track::Fresh { .. }));
    assert_eq!((ct.len(), conn_of(&ct, secs(0), &first)), (0, None));
    ct.confirm(secs(0), &mut first).unwrap();
    assert_eq!(first.track.info(), Some(CtInfo::New));
    assert_eq!(ct.len(), 1);
    let (conn, dir) = conn_of(&ct, secs(0), &first).unwrap();
    assert_eq!(dir, Dir::Original);
    assert!(conn.status.has(Status::CONFIRMED));
    let answer = datagram(server(), client(1));
    assert_eq!(conn_of(&ct, secs(0), &answer).map(|c| c.1), Some(Dir::Reply));
    assert_eq!(known(&ct, secs(0), answer).1, CtInfo::EstablishedReply);
    assert_eq!(known(&ct, secs(0), datagram(client(1), server())).1, CtInfo::Established);
}

#[test]
fn handles_of_removed_connections_are_stale() {
    let ct = table(16);
    let (id, _) = known(&ct, secs(0), datagram(client(1), server()));
    assert!(ct.remove(id).is_some());
    assert!(ct.remove(id).is_none() && ct.get(id).is_none() && ct.modify(id, |_| ()).is_none());
    // The slot is used again, under another generation.
    let again = (0..1000).map(|n| known(&ct, secs(0), datagram(client(n), server())).0).find(|new| {
        let same = new.index == id.index;
        assert!(same || ct.remove(*new).is_some());
        same
    });
    let new = again.expect("a free slot is used again");
    assert_ne!(new.generation, id.generation);
    assert!(ct.get(id).is_none() && ct.get(new).is_some());
}

#[test]
fn a_full_table_of_assured_connections_takes_no_more() {
    let ct = table(4);
    let ids: Vec<_> = (0..4).map(|n| establish(&ct, secs(0), client(n), server())).collect();
    assert_eq!(pass(&ct, secs(1), datagram(client(9), server())), Err(DropReason::ConntrackFull));
    assert!(ids.iter().all(|&id| ct.get(id).is_some()));
    assert_eq!((ct.len(), ct.counters().drop), (4, 1));
}
