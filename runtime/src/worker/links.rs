//! Links that come and go while a worker serves others.

use super::{Finished, LinkState, MAX_LINK_FAILURES, MAX_LINKS, Source, Worker, WorkerError, word};
use crate::edge::RuntimeEdge;
use crate::link::{Link, LinkError, LinkNews};
use event_manager::{EventOps, Events};
use hibernet_netstack::Time;
use hibernet_netstack::config::{Behind, GuestNet};
use hibernet_netstack::edge::LinkId;
use std::os::fd::AsRawFd;
use vmm_sys_util::epoll::EventSet;

/// A guest with addresses of its own, at a link of its own.
pub struct NewLink {
    /// Under which name others find it, over DNS; empty for none.
    pub name: String,
    /// Its addresses, and ours towards it.
    pub net: GuestNet,
    /// Its link.
    pub link: Box<dyn Link>,
}

/// What the event loop has not heard of a link yet: it can be told only when it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Comes,
    Goes,
}

impl Worker {
    /// Serves one more guest, under the first number that is free.
    ///
    /// # Errors
    /// If there are as many as can be.
    pub fn add_link(&mut self, new: NewLink) -> Result<LinkId, WorkerError> {
        if !self.crew.is_empty() {
            return Err(WorkerError::OneLink);
        }
        let there = self.edge.links.iter().flatten().count();
        if there >= MAX_LINKS {
            return Err(WorkerError::TooManyLinks(there + 1));
        }
        let id = self.stack.add_named_link(new.link.info(), Behind::Guest(new.net), new.name);
        let at = usize::from(id.0);
        self.edge.links.resize_with(self.edge.links.len().max(at + 1), || None);
        self.links.resize_with(self.links.len().max(at + 1), LinkState::default);
        self.edge.links[at] = Some(new.link);
        self.links[at] = LinkState { change: Some(Change::Comes), ..LinkState::default() };
        self.kick();
        Ok(id)
    }

    /// Serves a guest no longer: its flows are reset. The number becomes free. With the last one the worker has finished.
    pub fn remove_link(&mut self, link: LinkId) {
        if let Some(state) = self.links.get_mut(usize::from(link.0)).filter(|s| !s.gone) {
            state.change = Some(Change::Goes);
            self.kick();
        }
    }

    /// Has the event loop hear of links that came or went.
    pub(super) fn change_links(&mut self, ops: &mut EventOps<'_>) {
        for index in 0..self.links.len() {
            match self.links[index].change.take() {
                Some(Change::Comes) => self.let_link_come(index, ops),
                Some(Change::Goes) => {
                    slog::info!(self.log, "link was removed"; "link" => index);
                    self.let_link_go(index, ops);
                }
                None => {}
            }
        }
    }

    fn let_link_come(&mut self, index: usize, ops: &mut EventOps<'_>) {
        let Some(link) = &self.edge.links[index] else { return };
        let watched = Events::with_data_raw(link.fd().as_raw_fd(), word(Source::Link, index), EventSet::IN);
        if let Err(e) = ops.add(watched) {
            slog::error!(self.log, "the event loop refuses a link"; "link" => index, "error" => ?e);
            return self.let_link_go(index, ops);
        }
        let now = self.clock.now();
        self.stack.link_up(now, LinkId(index as u8), &mut self.edge);
        slog::info!(self.log, "link was added"; "link" => index);
    }

    /// Has flows try again whose frames a link had refused that takes them now. Whether there were any.
    pub(super) fn wake_waiting(&mut self, now: Time) -> bool {
        if !self.stack.waits_for_link() {
            return false;
        }
        let mut woken = false;
        for index in 0..self.links.len() {
            if !self.links[index].gone && self.edge.links[index].as_ref().is_some_and(|l| l.has_room()) {
                woken |= self.stack.link_has_room(now, LinkId(index as u8), &mut self.edge);
            }
        }
        woken
    }

    /// The peer of a link has something to say about all of its queues. Followers stand still from here on, until the leader has heard what came of it: they do
    /// nothing for a guest before the leader knows of it.
    pub(super) fn answer_peer(&mut self, index: usize) -> Result<(), LinkError> {
        self.together(|w, others| {
            others.iter_mut().for_each(|o| o.still = true);
            let RuntimeEdge { slots, links, .. } = &mut w.edge;
            links[index].as_mut().map_or(Ok(()), |l| l.answer_peer(slots))
        })
    }

    /// A link may be able to do other things than it could.
    fn hear_of_change(&mut self, index: usize) {
        if let Some(link) = &mut self.edge.links[index]
            && link.take_change()
        {
            self.stack.set_link_info(LinkId(index as u8), link.info());
            if !self.crew.is_empty() {
                self.lead();
            }
        }
    }

    /// The peer of a link may have come or gone. While there is none its guest is as one that is paused: flows live on, and try again when there is one.
    /// What time it is now: a guest may have come with its network.
    pub(super) fn hear_of_peer(&mut self, mut now: Time, index: usize, ops: &mut EventOps<'_>) -> Time {
        self.hear_of_change(index);
        while let Some(news) = self.edge.links[index].as_mut().and_then(Link::take_news) {
            let state = &mut self.links[index];
            match news {
                LinkNews::Disconnected(why) => {
                    state.alone = Some(now);
                    slog::warn!(self.log, "the link's peer has left, waiting for another"; "link" => index, "why" => why);
                }
                LinkNews::Connected => {
                    self.machine_runs(index, ops);
                    now = self.after_jump(now);
                    let state = &mut self.links[index];
                    let alone = state.alone.take();
                    slog::info!(self.log, "the link has a peer"; "link" => index);
                    let alone = alone.map(|t| now.since(t));
                    self.stack.link_back(now, LinkId(index as u8), alone, &mut self.edge);
                    if let Some(alone) = alone {
                        self.thaw_followers(now, alone);
                    }
                }
                LinkNews::Trouble(what) => slog::warn!(self.log, "trouble with the link's peer"; "link" => index, "what" => what),
                LinkNews::Transfer => self.transfer_asked(index, ops),
                LinkNews::Left(why) => self.machine_left(now, index, &why, ops),
            }
        }
        now
    }

    /// A link cannot be read or written. After many failures, or if it says so, it is gone.
    pub(super) fn link_failed(&mut self, index: usize, e: &LinkError, ops: &mut EventOps<'_>) {
        let state = &mut self.links[index];
        if state.gone {
            return;
        }
        state.failures += 1;
        if matches!(e, LinkError::Io(_)) && state.failures < MAX_LINK_FAILURES {
            if state.failures == 1 {
                slog::warn!(self.log, "link"; "link" => index, "error" => %e);
            }
            return;
        }
        slog::info!(self.log, "link is gone"; "link" => index, "error" => %e);
        self.let_link_go(index, ops);
    }

    /// A link is served no longer; with the last one all ends.
    pub(super) fn let_link_go(&mut self, index: usize, ops: &mut EventOps<'_>) {
        self.links[index] = LinkState { gone: true, ..LinkState::default() };
        self.unpark_link(index);
        let Some(mut link) = self.edge.links[index].take() else { return };
        // One that was never added is not there to be removed.
        let _ = ops.remove(Events::empty_raw(link.fd().as_raw_fd()));
        self.together(|w, _| link.stop(&mut w.edge.slots));
        if self.links.iter().all(|l| l.gone) {
            return self.finish(Finished::LinksGone, ops);
        }
        if self.stack.is_configured_guest_on(LinkId(index as u8)) {
            // Published ports are this guest's.
            for l in self.listeners.drain(..) {
                let _ = ops.remove(Events::empty_raw(l.raw()));
            }
        }
        let now = self.clock.now();
        self.stack.remove_link(now, LinkId(index as u8), &mut self.edge);
    }

    pub(super) fn flush_links(&mut self, ops: &mut EventOps<'_>) {
        for index in 0..self.links.len() {
            if self.links[index].gone {
                continue;
            }
            let RuntimeEdge { slots, links, .. } = &mut self.edge;
            let Some(link) = &mut links[index] else { continue };
            if let Err(e) = link.flush(slots) {
                self.link_failed(index, &e, ops);
            }
        }
    }

    /// Has those links that keep frames back flushed again when they take more.
    pub(super) fn watch_links(&mut self, ops: &mut EventOps<'_>) {
        for (index, (link, state)) in self.edge.links.iter().zip(&mut self.links).enumerate() {
            let Some(link) = link.as_ref().filter(|l| !state.gone && l.waits() != state.waits) else { continue };
            let set = if link.waits() { EventSet::IN | EventSet::OUT } else { EventSet::IN };
            match ops.modify(Events::with_data_raw(link.fd().as_raw_fd(), word(Source::Link, index), set)) {
                Ok(()) => state.waits = link.waits(),
                Err(e) => slog::error!(self.log, "cannot watch a link for room"; "link" => index, "error" => ?e),
            }
        }
    }
}
