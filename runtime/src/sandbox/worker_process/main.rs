//! The worker's own side: confines itself, serves the network, and does what the supervisor tells it.

use super::messages::{FromWorker, Handed, Parts, Thaw, ToWorker};
use super::writer::{Writer, Written};
use crate::checkpoint::helper::Helper;
use crate::checkpoint::{CheckpointError, known};
use crate::link::Link;
use crate::link::pcap::PcapLink;
use crate::link::socket::SocketLink;
use crate::link::tap::TapLink;
use crate::sandbox::channel::{Channel, Heard};
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::{LinkEnd, LinkKind};
use crate::sandbox::{confine, log, open_null};
use crate::sys::packet::PacketSocket;
use crate::sys::{process, tun};
use crate::worker::{ControlSocket, Finished, Prepare, Prepared, Worker, WorkerSetup};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use hibernet_snapshot::Image;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::cell::Cell;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use vmm_sys_util::epoll::EventSet;

/// Longest image that is read.
const MAX_IMAGE: u64 = 8 << 30;

/// Is a worker, over the channel with this number; its exit status. The calling process was executed for that and for nothing else.
///
/// # Errors
///
/// If no such descriptor was handed over. What goes wrong later is told over the channel.
pub(crate) fn main(channel: RawFd) -> Result<u8, Failure> {
    let channel: Channel = process::inherited_fd(channel)
        .map_err(|e| Failure::os(Status::Usage, "this command is for hibernet itself: no channel was handed over", e))?
        .into();
    let done = catch_unwind(AssertUnwindSafe(|| run(&channel)));
    Ok(match done {
        Ok(Ok(())) => 0,
        Ok(Err(e)) => {
            let _ = channel.send(&FromWorker::Failed(e), &[]);
            Status::Internal as u8
        }
        Err(_) => Status::WorkerDied as u8,
    })
}

fn run(channel: &Channel) -> Result<(), Failure> {
    let internal = |what: &'static str| move |e: rustix::io::Errno| Failure::os(Status::Internal, what, e);
    // An exec that gives capabilities has ended what was set before. Should the supervisor have ended meanwhile, so has the channel.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(internal("cannot bind the worker to its supervisor"))?;
    rustix::process::setsid().map_err(internal("cannot separate the worker from the terminal"))?;
    let null = open_null()?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .map_err(internal("cannot let go of the terminal"))?;
    drop(null);
    let Some((ToWorker::Start(start), fds)) = channel.recv()? else { return Ok(()) };
    let worker = make(Parts::from_message(*start, fds)?, channel)?;
    let writer = Writer::start().map_err(|e| Failure::os(Status::Resources, "cannot start the network worker's thread", e))?;
    let fail = |e: event_manager::Error| Failure::new(Status::Internal, format!("cannot start the network worker: {e}"));
    let mut events = EventManager::new().map_err(fail)?;
    let id = events.add_subscriber(Subscriber::Network(Box::new(worker)));
    let told = Rc::new(Cell::new(false));
    for fd in [channel.as_fd().as_raw_fd(), writer.fd()] {
        events.add_subscriber(Subscriber::Bell { fd, rung: told.clone() });
    }
    confine::restrict_system_calls()?;
    channel.send(&FromWorker::Ready, &[])?;
    Served { events, id, channel, told, writer, freeze: None, waiting: None }.serve()
}

/// Makes the worker, and gives up everything that it does not need.
fn make(parts: Parts, channel: &Channel) -> Result<Worker, Failure> {
    let Parts { config, rules, log, end, users, link, resolvers, stop, control, host, thaw } = parts;
    let link = make_link(&end, link)?;
    confine::drop_privileges()?;
    let log = log::root(&log, host.log);
    let link = match host.pcap {
        Some(file) => {
            // A new sandbox that goes on from an image begins a new file.
            let is_new = file.metadata().is_ok_and(|m| m.is_file() && m.len() == 0);
            let tee = match thaw {
                Some(_) if !is_new => Ok(PcapLink::going_on(link, Box::new(file), log.clone())),
                _ => PcapLink::new(link, Box::new(file), log.clone()),
            };
            Box::new(tee.map_err(|e| Failure::os(Status::File, "cannot write to the capture file", e))?)
        }
        None => link,
    };
    let setup = WorkerSetup {
        config,
        rules,
        links: vec![link],
        tcp_listeners: host.tcp,
        udp_listeners: host.udp,
        raw_icmp4: host.raw_icmp4,
        raw_icmp6: host.raw_icmp6,
        address_watch: host.address_watch,
        resolver_updates: Some(resolvers),
        control: control.map(|fd| ControlSocket { listener: fd.into(), users: Some(users) }),
        stop: Some(stop),
        log,
    };
    match thaw {
        Some(thaw) => go_on(setup, thaw, channel),
        None => Worker::new(setup).map_err(|e| Failure::new(Status::Internal, format!("cannot start the network worker: {e}"))),
    }
}

/// A worker that goes on where the one stood of which the image is.
fn go_on(setup: WorkerSetup, thaw: Thaw, channel: &Channel) -> Result<Worker, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure::new(Status::Image, format!("the image cannot be restored: {e}"));
    let mut file = File::from(thaw.image);
    file.rewind().map_err(|e| bad(&e))?;
    let image = Image::read(&mut file, MAX_IMAGE, &known()).map_err(|e| bad(&e))?;
    let (worker, report) =
        Worker::restore(setup, &image, thaw.held, &thaw.policy, thaw.helper.map(Helper::from_socket)).map_err(|e| bad(&e))?;
    channel.send(&FromWorker::Thawed(Box::new(report)), &[])?;
    Ok(worker)
}

/// What the process's loop serves.
enum Subscriber {
    Network(Box<Worker>),
    /// The channel, or the thread that writes images. It only notes that something came: that is read between two turns of the loop, when the worker
    /// can be had.
    Bell {
        fd: RawFd,
        rung: Rc<Cell<bool>>,
    },
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Network(w) => w.process(events, ops),
            Subscriber::Bell { rung, .. } => rung.set(true),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Network(w) => w.init(ops),
            Subscriber::Bell { fd, .. } => {
                // Refused only for want of memory; then the supervisor finds that it gets no answers.
                let _ = ops.add(Events::new_raw(*fd, EventSet::IN));
            }
        }
    }
}

type Loop = EventManager<Subscriber>;

fn loop_failed(why: impl std::fmt::Display) -> Failure {
    Failure::new(Status::Internal, format!("the network worker's event loop failed: {why}"))
}

/// A worker that serves and does what its supervisor says.
struct Served<'a> {
    events: Loop,
    id: SubscriberId,
    channel: &'a Channel,
    /// Somebody has said something.
    told: Rc<Cell<bool>>,
    writer: Writer,
    /// A freeze whose image is written, or about to be committed.
    freeze: Option<Arc<Prepared>>,
    /// A freeze that begins when so little is left to copy that it is short, and where its image goes.
    waiting: Option<(Prepare, File, Option<Helper>)>,
}

impl Served<'_> {
    fn worker(&mut self) -> Result<&mut Worker, Failure> {
        match self.events.subscriber_mut(self.id) {
            Ok(Subscriber::Network(w)) => Ok(w),
            _ => Err(loop_failed("the worker is not in it")),
        }
    }

    /// Serves until the worker has finished, or the supervisor is gone.
    fn serve(mut self) -> Result<(), Failure> {
        loop {
            match self.worker()?.finished() {
                None => {}
                Some(Finished::Stopped | Finished::LinksGone | Finished::Frozen) => return Ok(()),
                Some(Finished::LoopFailed) => return Err(loop_failed("it refused a descriptor")),
            }
            match self.events.run() {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(loop_failed(e)),
            }
            if self.waiting.is_some() && self.worker()?.is_copied() {
                self.freeze()?;
            }
            if self.told.take() && !self.listen()? {
                return Ok(());
            }
        }
    }

    /// Hears the writing thread and the supervisor; `false` at the end.
    fn listen(&mut self) -> Result<bool, Failure> {
        for news in self.writer.news() {
            let message = match news {
                Written::Part(done, total) => FromWorker::Progress(done, total),
                Written::Done(result) => {
                    // One that went on keeps nothing of it.
                    let went_on = self.freeze.as_ref().is_some_and(|p| p.contents.origin.went_on);
                    self.freeze.take_if(|_| went_on);
                    FromWorker::Written(result)
                }
            };
            self.channel.send(&message, &[])?;
        }
        loop {
            match self.channel.try_recv()? {
                Heard::Message(ToWorker::Commit, _) => return self.commit().map(|()| false),
                Heard::Message(message, fds) => self.obey(message, fds)?,
                Heard::Nothing => return Ok(true),
                Heard::Closed => return Ok(false),
            }
        }
    }

    /// Does what the supervisor says, between two turns of the loop.
    fn obey(&mut self, message: ToWorker, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let answer = match message {
            ToWorker::Pause => {
                self.worker()?.pause();
                FromWorker::Paused
            }
            ToWorker::Resume => {
                self.worker()?.resume();
                FromWorker::Resumed
            }
            ToWorker::Tiers(mode) => FromWorker::Tiers(self.worker()?.tiers(mode)),
            ToWorker::Prepare(how) => {
                let mut fds = fds.into_iter();
                let Some(file) = fds.next().map(File::from) else {
                    return self.not_prepared("there is nowhere to write the image", false);
                };
                let live = how.live;
                self.waiting = Some((how, file, fds.next().map(Helper::from_socket)));
                if !live {
                    return self.freeze();
                }
                self.worker()?.begin_copy();
                return Ok(());
            }
            ToWorker::Abort => {
                self.waiting = None;
                self.writer.give_up();
                let token = self.freeze.take().filter(|p| !p.contents.origin.went_on).map(|p| p.token);
                // The freeze is the one that we made.
                let _ = self.worker()?.abort(token);
                FromWorker::Aborted
            }
            ToWorker::Commit | ToWorker::Mapped | ToWorker::Start(_) => {
                return Err(Failure::new(
                    Status::Internal,
                    "the supervisor told a running network worker to start, or to end what it has not begun",
                ));
            }
        };
        self.channel.send(&answer, &[])
    }

    /// The freeze that was waited for.
    fn freeze(&mut self) -> Result<(), Failure> {
        let Some((how, file, helper)) = self.waiting.take() else { return Ok(()) };
        match self.worker()?.prepare(&how, helper) {
            Ok(prepared) => {
                self.channel.send(&FromWorker::Prepared(Box::new(prepared.report.clone())), &[])?;
                let prepared = Arc::new(prepared);
                self.writer.write(prepared.clone(), file);
                self.freeze = Some(prepared);
                Ok(())
            }
            Err(e) => {
                let _ = self.worker()?.abort(None);
                self.not_prepared(&e.to_string(), matches!(e, CheckpointError::Require { .. }))
            }
        }
    }

    fn not_prepared(&self, why: &str, require: bool) -> Result<(), Failure> {
        self.channel.send(&FromWorker::NotPrepared { why: why.into(), require }, &[])
    }

    /// Hands everything out; nothing is left to be done then.
    fn commit(&mut self) -> Result<(), Failure> {
        let Some(prepared) = self.freeze.take() else { return Err(loop_failed("nothing is frozen")) };
        let Ok(Subscriber::Network(worker)) = self.events.remove_subscriber(self.id) else {
            return Err(loop_failed("the worker is not in it"));
        };
        let held = worker.commit(prepared.token).map_err(|(_, e)| loop_failed(e))?;
        let (handed, fds) = Handed::of(&held);
        self.channel.send(&FromWorker::Committed(Box::new(handed)), &fds)
    }
}

fn make_link(end: &LinkEnd, fd: OwnedFd) -> Result<Box<dyn Link>, Failure> {
    let fail = |e: String| Failure::new(Status::Link, format!("cannot serve the link {}: {e}", end.ifname));
    match end.kind {
        LinkKind::Tap => {
            let tun = tun::adopt(fd, end.mtu).map_err(|e| fail(e.to_string()))?;
            Ok(Box::new(TapLink::new(tun, end.guest_mac)))
        }
        LinkKind::Packet { mac, receive_buffer } => {
            let socket = PacketSocket { fd, name: end.ifname.clone(), mtu: end.mtu, mac, receive_buffer };
            Ok(Box::new(SocketLink::packet(socket, end.guest_mac)))
        }
        LinkKind::Messages => {
            let mtu = u16::try_from(end.mtu).unwrap_or(u16::MAX);
            Ok(Box::new(SocketLink::messages(fd, mtu, end.guest_mac).map_err(|e| fail(e.to_string()))?))
        }
    }
}
