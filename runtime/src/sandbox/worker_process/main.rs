//! The worker's own side: confines itself, serves the network, and does what the supervisor tells it.

use super::messages::{FromWorker, Parts, ToWorker};
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
use crate::worker::{ControlSocket, Finished, Worker, WorkerSetup};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use rustix::fs::{FileType, fstat};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use vmm_sys_util::epoll::EventSet;

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
    let worker = make(Parts::from_message(*start, fds)?)?;
    let fail = |e: event_manager::Error| Failure::new(Status::Internal, format!("cannot start the network worker: {e}"));
    let mut events = EventManager::new().map_err(fail)?;
    let id = events.add_subscriber(Subscriber::Network(Box::new(worker)));
    let told = Rc::new(Cell::new(false));
    events.add_subscriber(Subscriber::Supervisor { channel: channel.as_fd().as_raw_fd(), ready: told.clone() });
    confine::restrict_system_calls()?;
    channel.send(&FromWorker::Ready, &[])?;
    serve(&mut events, id, channel, &told)
}

/// Makes the worker, and gives up everything that it does not need.
fn make(parts: Parts) -> Result<Worker, Failure> {
    let Parts { config, rules, log, end, users, link, resolvers, stop, control, host } = parts;
    let link = make_link(&end, link)?;
    let file_on_stderr =
        fstat(rustix::stdio::stderr()).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
    confine::drop_privileges(host.pcap.is_some() || host.log.is_some() || file_on_stderr)?;
    let log = log::root(&log, host.log);
    let link = match host.pcap {
        Some(file) => {
            let tee = PcapLink::new(link, Box::new(file), log.clone());
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
    Worker::new(setup).map_err(|e| Failure::new(Status::Internal, format!("cannot start the network worker: {e}")))
}

/// What the process's loop serves.
enum Subscriber {
    Network(Box<Worker>),
    /// The channel. It only notes that something came: that is read between two turns of the loop, when the worker can be had.
    Supervisor {
        channel: RawFd,
        ready: Rc<Cell<bool>>,
    },
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Network(w) => w.process(events, ops),
            Subscriber::Supervisor { ready, .. } => ready.set(true),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Network(w) => w.init(ops),
            Subscriber::Supervisor { channel, .. } => {
                // Refused only for want of memory; then the supervisor finds that it gets no answers.
                let _ = ops.add(Events::new_raw(*channel, EventSet::IN));
            }
        }
    }
}

type Loop = EventManager<Subscriber>;

fn loop_failed(why: impl std::fmt::Display) -> Failure {
    Failure::new(Status::Internal, format!("the network worker's event loop failed: {why}"))
}

fn network(events: &mut Loop, id: SubscriberId) -> Result<&mut Worker, Failure> {
    match events.subscriber_mut(id) {
        Ok(Subscriber::Network(w)) => Ok(w),
        _ => Err(loop_failed("the worker is not in it")),
    }
}

/// Serves until the worker has finished or the supervisor is gone.
fn serve(events: &mut Loop, id: SubscriberId, channel: &Channel, told: &Cell<bool>) -> Result<(), Failure> {
    loop {
        match network(events, id)?.finished() {
            None => {}
            Some(Finished::Stopped | Finished::LinksGone | Finished::Frozen) => return Ok(()),
            Some(Finished::LoopFailed) => return Err(loop_failed("it refused a descriptor")),
        }
        match events.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(loop_failed(e)),
        }
        while told.get() {
            match channel.try_recv()? {
                Heard::Message(message, _) => obey(network(events, id)?, &message, channel)?,
                Heard::Nothing => told.set(false),
                Heard::Closed => return Ok(()),
            }
        }
    }
}

/// Does what the supervisor says, between two turns of the loop.
fn obey(worker: &mut Worker, message: &ToWorker, channel: &Channel) -> Result<(), Failure> {
    match message {
        ToWorker::Pause => {
            worker.pause();
            channel.send(&FromWorker::Paused, &[])
        }
        ToWorker::Resume => {
            worker.resume();
            channel.send(&FromWorker::Resumed, &[])
        }
        ToWorker::Mapped | ToWorker::Start(_) => {
            Err(Failure::new(Status::Internal, "the supervisor told a running network worker to start"))
        }
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
