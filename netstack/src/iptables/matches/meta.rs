//! Tests of what is not in the packet: marks, and who made it.

use crate::iptables::Inv;
use crate::skb::Owner;

/// `mark`, `connmark`: value and mask.
pub(super) const fn mark(m: &Inv<(u32, u32)>, mark: u32) -> bool {
    (mark & m.value.1 == m.value.0) != m.not
}

type Ids = Option<Inv<(u32, u32)>>;

/// `owner`. A packet without a socket fits if every option is inverted (xt_owner.c).
pub(super) fn owner(uid: &Ids, gid: &Ids, socket: Option<bool>, owner: Option<Owner>) -> bool {
    let Some(owner) = owner else {
        return uid.is_none_or(|u| u.not) && gid.is_none_or(|g| g.not) && socket != Some(true);
    };
    let fits = |ids: &Ids, id: u32| ids.is_none_or(|i| (i.value.0 <= id && id <= i.value.1) != i.not);
    socket != Some(false) && fits(uid, owner.uid) && fits(gid, owner.gid)
}
