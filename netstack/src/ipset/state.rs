//! Sets as they are saved.

use super::body::{Body, Elem, Key};
use super::head::Head;
use super::set::{Contents, Member, Set};
use super::{MAX_SETS, Sets};
use crate::rng;
use crate::state::{Invalid, invalid};
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// All sets. Ends of elements are stack time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetsState {
    sets: Vec<SetState>,
}

/// One set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetState {
    head: Head,
    /// In the order of their keys.
    elems: Vec<(Key, Elem)>,
    /// Of lists: the places of their members among all sets.
    members: Vec<(u32, Elem)>,
}

impl SetsState {
    /// Whether there are no sets.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }
}

impl Sets {
    /// The state now.
    pub fn save(&self, now: Time) -> SetsState {
        let one = |set: &std::sync::Arc<Set>| {
            let (mut elems, mut members) = (Vec::new(), Vec::new());
            match &*set.lock() {
                Contents::Elems(body) => elems = body.sorted(now),
                Contents::Members(list) => {
                    for m in list.iter().filter(|m| !m.elem.is_over(now)) {
                        let place = self.list.iter().position(|s| std::sync::Arc::ptr_eq(s, &m.set));
                        members.extend(place.map(|p| (p as u32, m.elem.clone())));
                    }
                }
            }
            SetState { head: set.head().clone(), elems, members }
        };
        SetsState { sets: self.list.iter().map(one).collect() }
    }

    /// Sets as they were saved.
    pub(crate) fn load(state: SetsState, key: rng::Key) -> Result<Sets, Invalid> {
        if state.sets.len() > MAX_SETS {
            return Err(invalid("more sets than there may be"));
        }
        let mut sets = Sets::new(key);
        let mut lists = Vec::new();
        for one in state.sets {
            let SetState { head, elems, members } = one;
            if !head.is_valid() || sets.get(&head.name).is_some() {
                return Err(invalid("a set that cannot be"));
            }
            if (head.is_list() && !elems.is_empty()) || (!head.is_list() && !members.is_empty()) {
                return Err(invalid("elements of another kind than their set"));
            }
            if head.kind.is_hash() && elems.len() > head.maxelem as usize {
                return Err(invalid("more elements than a set can have"));
            }
            if elems.iter().map(|e| &e.1).chain(members.iter().map(|m| &m.1)).any(|e| !goes_with(e, &head)) {
                return Err(invalid("an element that its set cannot have"));
            }
            let set = Set::new(head, key);
            if let Contents::Elems(body) = &mut *set.lock() {
                fill(body, set.head(), elems)?;
            }
            lists.push(members);
            sets.push(set);
        }
        for (set, members) in sets.list.iter().zip(lists) {
            let Contents::Members(list) = &mut *set.lock() else { continue };
            for (place, elem) in members {
                let member = sets.list.get(place as usize).filter(|m| !m.head().is_list());
                let member = member.ok_or(invalid("a member of a list that is no set"))?;
                if list.iter().any(|m| m.set.name() == member.name()) {
                    return Err(invalid("a set that is twice in a list"));
                }
                list.push(Member { set: member.clone(), elem });
            }
        }
        Ok(sets)
    }
}

fn fill(body: &mut Body, head: &Head, elems: Vec<(Key, Elem)>) -> Result<(), Invalid> {
    for (key, elem) in elems {
        if !key.fits(head) {
            return Err(invalid("an element that its set cannot have"));
        }
        body.add(head, key, elem, false, Time::ZERO).map_err(|_| invalid("an element that is there twice"))?;
    }
    Ok(())
}

/// Whether an element has only what its set's elements can have.
fn goes_with(e: &Elem, head: &Head) -> bool {
    let comment = e.comment.as_ref().is_none_or(|c| head.comment && super::text::is_comment(c));
    comment && (!e.nomatch || head.kind.is_net()) && (head.timeout.is_some() || e.expires == Time::NEVER)
}
