//! `connbytes`: what a connection carried so far.

use crate::conntrack::{Conntrack, Counts, Track};
use crate::iptables::{ConnbytesMatch, CountDir, CountOf};
use crate::skb::Skb;

/// Whether the packet's connection carried so much. Of packets without a connection, or one that began before anybody counted, nobody knows.
pub(super) fn connbytes(m: &ConnbytesMatch, skb: &Skb<'_>, ct: &Conntrack) -> bool {
    let counts = match &skb.track {
        Track::Known { id, .. } => ct.counts(*id),
        Track::Fresh { len, .. } => ct.first_counts(*len),
        Track::None | Track::Untracked => None,
    };
    let Some([original, reply]) = counts else { return false };
    let Counts { packets, bytes } = match m.dir {
        CountDir::Original => original,
        CountDir::Reply => reply,
        CountDir::Both => original + reply,
    };
    let what = match m.what {
        CountOf::Packets => packets,
        CountOf::Bytes => bytes,
        CountOf::Average => bytes.checked_div(packets).unwrap_or(0),
    };
    (m.from..=m.to).contains(&what) != m.not
}
