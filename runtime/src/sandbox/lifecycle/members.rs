//! Sandboxes that joined the network: each is a client that stays, and leaves by leaving.

use super::addresses;
use super::server::ClientId;
use super::{Network, Task};
use crate::control::lifecycle::{Event, Join, State};
use crate::control::protocol::ProblemKind;
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::{LinkEnd, LinkKind};
use crate::sandbox::worker_process::{self, FromWorker, JoinedLink, ToWorker};
use crate::sys::{socket, tun};
use crate::worker::MAX_LINKS;
use hibernet_netstack::config::GuestNet;
use std::os::fd::{AsFd, OwnedFd};

/// A sandbox that joined, or is about to.
#[derive(Debug)]
pub(super) struct Member {
    client: ClientId,
    name: String,
    net: GuestNet,
    /// Number of its link, once that is served.
    number: Option<u8>,
}

/// A link that the worker is to serve.
#[derive(Debug)]
pub(super) struct Joining {
    client: ClientId,
    end: LinkEnd,
    /// What will be kept of it for other workers.
    fd: OwnedFd,
}

impl Network {
    /// Whether others have joined, so that the network lives on when the first sandbox leaves.
    pub(crate) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// The first sandbox has left; the others are served on.
    pub(crate) fn first_left(&mut self) -> Result<(), Failure> {
        self.kit.let_first_go();
        self.leave(0);
        self.tell_departures()
    }

    /// Somebody wants to join.
    pub(super) fn join(&mut self, client: ClientId, how: &Join) {
        if self.state != State::Running {
            return self.refuse(
                client,
                ProblemKind::State,
                "its network is paused; let it go on with `hibernet resume` first".into(),
            );
        }
        if self.members.len() + 1 >= MAX_LINKS {
            let why = format!("its network has {MAX_LINKS} sandboxes, which is the most there can be");
            return self.refuse(client, ProblemKind::State, why);
        }
        if how.name.is_empty()
            || self.kit.name == how.name
            || self.members.iter().any(|m| m.name == how.name || m.client == client)
        {
            let why = format!("a sandbox named '{}' is in its network already", how.name);
            return self.refuse(client, ProblemKind::Request, why);
        }
        let nets: Vec<GuestNet> = self.members.iter().map(|m| m.net).collect();
        match addresses::grant(&self.kit.plan.config, &nets, &addresses::routed(), how) {
            Ok(net) => {
                self.members.push(Member { client, name: how.name.clone(), net, number: None });
                self.event(client, &Event::Granted(Box::new(net)));
            }
            Err(why) => self.refuse(client, ProblemKind::State, why),
        }
    }

    /// One that joins has its link.
    pub(super) fn link(&mut self, client: ClientId, end: LinkEnd, fd: OwnedFd) -> Result<(), Failure> {
        let Some(member) = self.members.iter().find(|m| m.client == client && m.number.is_none()) else {
            self.refuse(client, ProblemKind::Request, "no sandbox waits for a link".into());
            return Ok(());
        };
        let (name, net) = (member.name.clone(), member.net);
        match prepare(end, fd) {
            Ok((end, fd, offloads)) => {
                let message = ToWorker::Join(Box::new(worker_process::Join { name, net, end: end.clone(), offloads }));
                self.tell(&message, &[fd.as_fd()])?;
                self.task = Task::Join(Box::new(Joining { client, end, fd }));
            }
            Err(e) => self.refuse(client, ProblemKind::Request, e.message),
        }
        Ok(())
    }

    /// What the worker says to a new link.
    pub(super) fn joining(&mut self, j: Joining, message: FromWorker) -> Result<(), Failure> {
        match message {
            FromWorker::Joined(number) => match self.members.iter_mut().find(|m| m.client == j.client) {
                Some(m) => {
                    m.number = Some(number);
                    self.kit.add_link(JoinedLink { number, end: j.end, fd: j.fd });
                    self.event(j.client, &Event::Served(number));
                }
                // It left meanwhile.
                None => self.leave(number),
            },
            FromWorker::NotJoined(why) => self.refuse(j.client, ProblemKind::Internal, why),
            m => {
                return Err(Failure::new(Status::WorkerDied, format!("the network worker says what it was not asked: {m:?}")));
            }
        }
        Ok(())
    }

    /// A client is gone; if it was a member it has left.
    pub(super) fn member_left(&mut self, client: ClientId) {
        let Some(i) = self.members.iter().position(|m| m.client == client) else { return };
        if let Some(number) = self.members.swap_remove(i).number {
            self.kit.remove_link(number);
            self.leave(number);
        }
    }

    fn leave(&mut self, number: u8) {
        self.departures.push(number);
    }

    /// Has the worker hear who left. Not in the middle of something: what was frozen is not to change.
    pub(super) fn tell_departures(&mut self) -> Result<(), Failure> {
        if !matches!(self.task, Task::None) || self.worker.is_none() || self.has_lost_its_worker() {
            return Ok(());
        }
        for number in std::mem::take(&mut self.departures) {
            self.tell(&ToWorker::Leave(number), &[])?;
        }
        Ok(())
    }

    /// Has members hear that the network sleeps, or is awake: their kernels are to be as patient as the first one's.
    pub(super) fn tell_members(&mut self, event: &Event) {
        let clients: Vec<ClientId> = self.members.iter().filter(|m| m.number.is_some()).map(|m| m.client).collect();
        for client in clients {
            self.event(client, event);
        }
    }
}

/// Makes sure that a descriptor is the link that it is said to be, and asks what a confined worker cannot ask.
fn prepare(mut end: LinkEnd, fd: OwnedFd) -> Result<(LinkEnd, OwnedFd, tun::Offloads), Failure> {
    let bad = |why: &dyn std::fmt::Display| Failure::new(Status::Link, format!("the link cannot be served: {why}"));
    if !(1280..=65_535).contains(&end.mtu) {
        return Err(bad(&"its MTU is not possible"));
    }
    match end.kind {
        LinkKind::Tap => {
            let tun = tun::adopt(fd, end.mtu).map_err(|e| bad(&e))?;
            end.guest_mac = Some(tun.mac);
            Ok((end, tun.fd, tun.offloads))
        }
        LinkKind::Packet { .. } => {
            let domain = socket::get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN);
            if !domain.is_ok_and(|d| d == libc::AF_PACKET) {
                return Err(bad(&"it is no packet socket"));
            }
            socket::set_nonblocking(&fd).map_err(|e| bad(&e))?;
            Ok((end, fd, tun::Offloads::default()))
        }
        LinkKind::Messages
        | LinkKind::Datagrams
        | LinkKind::Streams { .. }
        | LinkKind::Stream
        | LinkKind::VhostUser { .. }
        | LinkKind::VhostUserHanded { .. } => Err(bad(&"only TAPs and packet sockets join")),
    }
}
