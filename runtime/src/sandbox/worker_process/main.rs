//! The worker's own side: confines itself, serves the network, and does what the supervisor tells it.

use super::messages::{FromWorker, GoOn, Handed, Join, Parts, ToWorker};
use super::moving::Move;
use super::writer::{Writer, Written};
use crate::checkpoint::helper::Helper;
use crate::checkpoint::news::Watched;
use crate::checkpoint::{CheckpointError, known};
use crate::link::Link;
use crate::link::datagram::DatagramLink;
use crate::link::pcap::PcapLink;
use crate::link::queues::QueuesLink;
use crate::link::socket::SocketLink;
use crate::link::stream::StreamLink;
use crate::link::tap::TapLink;
use crate::link::vhost_user::{MAX_QUEUE_PAIRS, VhostUserLink};
use crate::sandbox::channel::{Channel, Heard};
use crate::sandbox::failure::{Failure, Status};
use crate::sandbox::guest::{LinkEnd, LinkKind};
use crate::sandbox::{confine, log, open_null};
use crate::sys::packet::PacketSocket;
use crate::sys::{process, tun, vanished};
use crate::worker::{ControlSocket, Finished, Mode, NewLink, Prepare, Prepared, Worker, WorkerSetup};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use hibernet_netstack::edge::LinkId;
use hibernet_snapshot::Image;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use vmm_sys_util::epoll::EventSet;

/// Longest image that is read.
pub(super) const MAX_IMAGE: u64 = 8 << 30;

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
    let parts = Parts::from_message(*start, fds)?;
    let require = parts.require;
    let setup = confine_with(parts)?;
    let rules = setup.rules.clone();
    vanished::survive().map_err(|e| Failure::os(Status::Internal, "cannot handle a signal", e))?;
    let writer = Writer::start().map_err(|e| Failure::os(Status::Resources, "cannot start the network worker's thread", e))?;
    // Nothing is read or decided before, images least of all.
    confine::restrict_system_calls()?;
    channel.send(&FromWorker::Standing, &[])?;
    let worker = match channel.recv()? {
        Some((ToWorker::Serve, _)) => {
            Worker::new(setup).map_err(|e| Failure::new(Status::Internal, format!("cannot start the network worker: {e}")))?
        }
        Some((ToWorker::GoOn(how), fds)) => go_on(setup, *how, fds, channel)?,
        Some(_) => return Err(Failure::new(Status::Internal, "the network worker was not told how to begin")),
        None => return Ok(()),
    };
    let mut worker = worker;
    worker.ask_for_ports();
    let fail = |e: event_manager::Error| Failure::new(Status::Internal, format!("cannot start the network worker: {e}"));
    let mut events = EventManager::new().map_err(fail)?;
    let id = events.add_subscriber(Subscriber::Network(Box::new(worker)));
    let told = Rc::new(Cell::new(false));
    for fd in [channel.as_fd().as_raw_fd(), writer.fd()] {
        events.add_subscriber(Subscriber::Bell { fd, rung: told.clone() });
    }
    channel.send(&FromWorker::Ready, &[])?;
    let moving = Move::new(rules, require);
    Served { events, id, channel, told, writer, freeze: None, mode: Mode::default(), waiting: None, moving }.serve()
}

/// Gives up everything that the worker does not need.
fn confine_with(parts: Parts) -> Result<WorkerSetup, Failure> {
    let Parts { config, rules, log, name, end, users, link, queues, joined, resolvers, stop, control, host, .. } = parts;
    let (link, others) = match link {
        Some(fd) if parts.workers > 1 => {
            let mut all = share_out(&end, fd, queues, parts.workers)?.into_iter();
            (all.next(), all.collect())
        }
        link => (link.map(|fd| make_link(&end, fd, queues)).transpose()?, Vec::new()),
    };
    let joined = joined.into_iter().map(|j| Ok((LinkId(j.number), make_link(&j.end, j.fd, Vec::new())?)));
    let joined = joined.collect::<Result<_, Failure>>()?;
    confine::drop_privileges()?;
    let log = log::root(&log, host.log);
    let link: Option<Box<dyn Link>> = match (host.pcap, link) {
        (Some(file), Some(link)) => {
            let tee = match parts.capture_goes_on {
                true => Ok(PcapLink::going_on(link, Box::new(file), log.clone())),
                false => PcapLink::new(link, Box::new(file), log.clone()),
            };
            Some(Box::new(tee.map_err(|e| Failure::os(Status::File, "cannot write to the capture file", e))?))
        }
        (_, link) => link,
    };
    Ok(WorkerSetup {
        config,
        rules,
        name,
        links: link.into_iter().collect(),
        queues: others,
        joined,
        tcp_listeners: host.tcp,
        udp_listeners: host.udp,
        raw_icmp4: host.raw_icmp4,
        raw_icmp6: host.raw_icmp6,
        address_watch: host.address_watch,
        resolver_updates: Some(resolvers),
        control: control.map(|fd| ControlSocket { listener: fd.into(), users: Some(users) }),
        stop: Some(stop),
        log,
    })
}

/// A worker that goes on where the one stood of which the image is.
/// The first of the descriptors is the image, the others are what is held.
fn go_on(setup: WorkerSetup, how: GoOn, fds: Vec<OwnedFd>, channel: &Channel) -> Result<Worker, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure::new(Status::Image, format!("the image cannot be restored: {e}"));
    let mut fds = fds.into_iter();
    let file = fds.next().ok_or_else(|| Failure::new(Status::Internal, "the image did not arrive"))?;
    let mut rest: Vec<OwnedFd> = fds.collect();
    let helper = if how.helper { rest.pop().map(Helper::from_socket) } else { None };
    let held = how.handed.take(rest)?;
    let mut file = File::from(file);
    // Somebody may have read it before; a pipe is where it is.
    if let Err(e) = file.rewind()
        && e.raw_os_error() != Some(libc::ESPIPE)
    {
        return Err(bad(&e));
    }
    let image = Image::read(&mut file, MAX_IMAGE, &known()).map_err(|e| bad(&e))?;
    let (worker, report) = Worker::restore(setup, &image, held, &how.policy, helper).map_err(|e| bad(&e))?;
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
pub(super) struct Served<'a> {
    events: Loop,
    id: SubscriberId,
    pub(super) channel: &'a Channel,
    /// Somebody has said something.
    told: Rc<Cell<bool>>,
    pub(super) writer: Writer,
    /// A freeze whose image is written, or about to be committed.
    freeze: Option<Arc<Prepared>>,
    /// What is to become of its sockets.
    mode: Mode,
    /// A freeze that begins when so little is left to copy that it is short, and where its image goes.
    waiting: Option<(Prepare, File, Option<Helper>)>,
    /// A virtual machine that moves.
    pub(super) moving: Move,
}

impl Served<'_> {
    pub(super) fn worker(&mut self) -> Result<&mut Worker, Failure> {
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
                Some(Finished::Stopped | Finished::LinksGone | Finished::Frozen | Finished::Moved) => return Ok(()),
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
            if let Some(idle) = self.worker()?.take_idle() {
                self.channel.send(&FromWorker::Idle(idle), &[])?;
            }
            self.follow_move()?;
            if self.told.take() && !self.listen()? {
                return Ok(());
            }
        }
    }

    /// Hears the writing thread and the supervisor; `false` at the end.
    fn listen(&mut self) -> Result<bool, Failure> {
        for news in self.writer.news() {
            let Some(news) = self.image_moved(news)? else { continue };
            let message = match news {
                // Only what moves is read.
                Written::Read(_) => continue,
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
                Heard::Message(ToWorker::End, _) => return self.end().map(|()| false),
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
            ToWorker::Idle(after) => {
                self.worker()?.await_idle(after);
                return Ok(());
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
            ToWorker::Hand => return self.hand(),
            ToWorker::Join(how) => match self.join(*how, fds) {
                Ok(LinkId(number)) => FromWorker::Joined(number),
                Err(e) => FromWorker::NotJoined(e.to_string()),
            },
            m @ (ToWorker::Save(_) | ToWorker::Load | ToWorker::NoTransfer | ToWorker::Ports(..)) => {
                return self.obey_moving(m, fds);
            }
            ToWorker::Leave(number) => {
                self.worker()?.remove_link(LinkId(number));
                return Ok(());
            }
            ToWorker::End | ToWorker::Mapped | ToWorker::Start(_) | ToWorker::Serve | ToWorker::GoOn(_) => {
                return Err(Failure::new(Status::Internal, "the supervisor told a running network worker to begin"));
            }
        };
        self.channel.send(&answer, &[])
    }

    /// One more guest.
    fn join(&mut self, Join { name, net, end, offloads }: Join, fds: Vec<OwnedFd>) -> Result<LinkId, Failure> {
        let internal = |e: &dyn std::fmt::Display| Failure::new(Status::Internal, e.to_string());
        let fd = fds.into_iter().next().ok_or_else(|| internal(&"its link did not arrive"))?;
        // All that would have to be asked of a TAP was asked by the supervisor, who may.
        let link = match (end.kind, end.guest_mac) {
            (LinkKind::Tap, Some(mac)) => {
                let tun = tun::Tun { fd, name: end.ifname, mtu: end.mtu, mac, offloads };
                Box::new(TapLink::new(tun, Some(mac)))
            }
            (LinkKind::Tap, None) => return Err(internal(&"the TAP's address is not known")),
            _ => make_link(&end, fd, Vec::new())?,
        };
        self.worker()?.add_link(NewLink { name, net, link }).map_err(|e| internal(&e))
    }

    /// The freeze that was waited for.
    fn freeze(&mut self) -> Result<(), Failure> {
        let Some((how, file, helper)) = self.waiting.take() else { return Ok(()) };
        match self.worker()?.prepare(&how, helper) {
            Ok(prepared) => {
                self.mode = how.mode;
                self.channel.send(&FromWorker::Prepared(Box::new(prepared.report.clone())), &[])?;
                let prepared = Arc::new(prepared);
                self.writer.write(prepared.clone(), file);
                self.freeze = Some(prepared);
                Ok(())
            }
            Err(e) => {
                let _ = self.worker()?.abort(None);
                self.not_prepared(&e.to_string(), matches!(e, CheckpointError::Require { .. } | CheckpointError::Level { .. }))
            }
        }
    }

    fn not_prepared(&self, why: &str, require: bool) -> Result<(), Failure> {
        self.channel.send(&FromWorker::NotPrepared { why: why.into(), require }, &[])
    }

    /// Gives copies of the sockets: until it is told to end, the worker can go on with its own.
    fn hand(&mut self) -> Result<(), Failure> {
        let copies = match self.freeze.as_ref().map(|p| p.token) {
            Some(token) => {
                let worker = self.worker()?;
                worker.copies(token).map(|held| (held, Watched::of(worker.stack()))).map_err(|e| e.to_string())
            }
            None => Err("nothing is frozen".into()),
        };
        match copies {
            Ok((held, watched)) => {
                let (handed, fds) = Handed::of(&held);
                self.channel.send(&FromWorker::Handed(Box::new(handed), watched), &fds)
            }
            Err(why) => self.channel.send(&FromWorker::NotHanded(why), &[]),
        }
    }

    /// Ends a frozen worker. What others hold copies of lives on, and if nobody is to, peers hear of a reset; sockets in repair mode end without a
    /// word all the same.
    fn end(&mut self) -> Result<(), Failure> {
        let Some(prepared) = self.freeze.take() else { return Err(loop_failed("nothing is frozen")) };
        let Ok(Subscriber::Network(worker)) = self.events.remove_subscriber(self.id) else {
            return Err(loop_failed("the worker is not in it"));
        };
        let held = worker.commit(prepared.token).map_err(|(_, e)| loop_failed(e))?;
        if matches!(self.mode, Mode::Drop | Mode::Repair) {
            held.reset_on_close();
        }
        Ok(())
    }
}

/// A link for each worker, of the descriptors of a link.
fn share_out(end: &LinkEnd, fd: OwnedFd, queues: Vec<OwnedFd>, workers: u32) -> Result<Vec<Box<dyn Link>>, Failure> {
    if let LinkKind::VhostUser { .. } | LinkKind::VhostUserHanded { .. } = end.kind {
        let shared = make_vhost_user(end, fd).and_then(|link| link.shared_by(workers as usize));
        let (link, others) = shared.map_err(|e| Failure::os(Status::Link, "cannot serve the virtual machine's queues", e))?;
        let others = others.into_iter().map(|l| Box::new(l) as Box<dyn Link>);
        return Ok(std::iter::once(Box::new(link) as Box<dyn Link>).chain(others).collect());
    }
    let mut shares: Vec<Vec<OwnedFd>> = (0..workers).map(|_| Vec::new()).collect();
    for (n, fd) in std::iter::once(fd).chain(queues).enumerate() {
        shares[n % workers as usize].push(fd);
    }
    let with_any = shares.into_iter().filter(|s| !s.is_empty());
    with_any.map(|mut share| make_link(end, share.remove(0), share)).collect()
}

/// `queues`: what else belongs to the link, see [`Opened::queues`](crate::sandbox::guest::Opened::queues).
fn make_link(end: &LinkEnd, fd: OwnedFd, queues: Vec<OwnedFd>) -> Result<Box<dyn Link>, Failure> {
    let fail = |e: String| Failure::new(Status::Link, format!("cannot serve the link {}: {e}", end.ifname));
    let mtu = u16::try_from(end.mtu).unwrap_or(u16::MAX);
    match end.kind {
        LinkKind::Tap => {
            let tun = tun::adopt(fd, end.mtu).map_err(|e| fail(e.to_string()))?;
            Ok(Box::new(TapLink::new(tun, end.guest_mac)))
        }
        LinkKind::Packet { mac, receive_buffer, ring } => {
            let make = |fd| {
                let name = end.ifname.clone();
                let socket = PacketSocket { fd, name, mtu: end.mtu, mac, receive_buffer, ring, queues: Vec::new() };
                SocketLink::packet(socket, end.guest_mac).map_err(|e| fail(format!("its ring cannot be mapped: {e}")))
            };
            let first = make(fd)?;
            if queues.is_empty() {
                return Ok(Box::new(first));
            }
            let others = queues.into_iter().map(make).collect::<Result<_, _>>()?;
            Ok(Box::new(QueuesLink::new(first, others).map_err(|e| fail(e.to_string()))?))
        }
        LinkKind::Datagrams => {
            let bell = queues.into_iter().next().ok_or_else(|| fail("its bell did not arrive".into()))?;
            Ok(Box::new(DatagramLink::new(fd, bell, mtu, end.guest_mac).map_err(|e| fail(e.to_string()))?))
        }
        LinkKind::Messages => Ok(Box::new(SocketLink::messages(fd, mtu, end.guest_mac).map_err(|e| fail(e.to_string()))?)),
        LinkKind::Streams { one_off } => {
            Ok(Box::new(StreamLink::listening(fd, one_off, mtu, end.guest_mac).map_err(|e| fail(e.to_string()))?))
        }
        LinkKind::VhostUser { .. } | LinkKind::VhostUserHanded { .. } => {
            Ok(Box::new(make_vhost_user(end, fd).map_err(|e| fail(e.to_string()))?))
        }
        LinkKind::Stream => Ok(Box::new(StreamLink::connected(fd, mtu, end.guest_mac).map_err(|e| fail(e.to_string()))?)),
    }
}

/// The link to a virtual machine's monitor. What the command line allows is what a device can have; another version's word is cut to that.
fn make_vhost_user(end: &LinkEnd, fd: OwnedFd) -> io::Result<VhostUserLink> {
    let mtu = u16::try_from(end.mtu).unwrap_or(u16::MAX);
    let (link, pairs) = match end.kind {
        LinkKind::VhostUser { one_off, pairs } => (VhostUserLink::listening(fd, one_off, mtu, end.guest_mac)?, pairs),
        LinkKind::VhostUserHanded { pairs } => (VhostUserLink::handed(fd, mtu, end.guest_mac)?, pairs),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    Ok(link.with_queue_pairs((pairs as usize).clamp(1, MAX_QUEUE_PAIRS)))
}
