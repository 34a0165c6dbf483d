//! `hibernet demo`: a sandbox streams verified data through a network that sleeps, wakes, is copied and upgraded meanwhile.

mod guest;
mod sandbox;
mod server;
mod stream;
mod vm;

pub(super) use guest::{DemoGuestArgs, guest};
pub(super) use vm::{leash, machine};

use super::checkpoint::{Target, see_through, tally};
use super::print_json;
use crate::checkpoint::file::Replacement;
use crate::checkpoint::report::{FreezeReport, Outcome, ThawReport, Tier};
use crate::control::lifecycle::{Asking, Request, State, Upgraded};
use crate::control::registry::start_time;
use crate::sandbox::failure::{Failure, Status};
use crate::sys::process::{SignalFd, SignalSet};
use crate::worker::{Mode, Prepare};
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use sandbox::{CONNECTIONS, Sandbox, WORLD};
use serde_json::{Value, json};
use server::{Server, Verified};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub(super) const HELP: &str = "\
It needs no network, no privilege and no other program, and leaves nothing behind. Exit status 0 only if every byte was verified
in both directions and no connection was lost.

With --vm it is a virtual machine that streams: QEMU with a Linux kernel, and `hibernet attach --vhost-user`. QEMU saves it to a file with
hibernet's state inside, both processes end, both come back, and the connections go on. QEMU 10 or newer is needed, and a kernel with its drivers, such as
those that are installed; the machine's programs are this one. KVM is used if it can be. The commands are shown.";

/// For how long data streams between two steps.
const STREAM: Duration = Duration::from_millis(800);
/// For how long the network sleeps.
const SLEEP: Duration = Duration::from_secs(1);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Every connection has to move by so much, both ways, after each step.
const MOVES: u64 = 128 << 10;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    vm: vm::VmOptions,
}

/// What is shown, and since when.
struct Show {
    begun: Instant,
    json: bool,
    steps: Vec<Value>,
}

impl Show {
    /// A step was done.
    fn step(&mut self, step: &str, text: &str, mut facts: Value) -> Result<(), Failure> {
        let at = self.begun.elapsed();
        if !self.json {
            super::print(&format!("{:6.2} s  {step:<9}  {text}\n", at.as_secs_f64()))?;
        }
        facts["step"] = json!(step);
        facts["at_ms"] = json!(at.as_millis() as u64);
        self.steps.push(facts);
        Ok(())
    }

    /// How the last step was done.
    fn commands(&mut self, commands: &[String]) -> Result<(), Failure> {
        if !self.json {
            super::print(&commands.iter().map(|c| format!("           $ {c}\n")).collect::<String>())?;
        }
        if let Some(step) = self.steps.last_mut() {
            step["commands"] = json!(commands);
        }
        Ok(())
    }
}

/// Lets time pass, unless it is to be given up.
fn pass(stop: &SignalFd, time: Duration) -> Result<(), Failure> {
    let time = time.try_into().map_err(|_| Failure::new(Status::Internal, "that is too long"))?;
    match poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&time)) {
        Ok(0) | Err(_) => Ok(()),
        Ok(_) => Err(Failure::new(Status::Internal, "the demo was given up")),
    }
}

struct Demo {
    show: Show,
    /// Readable when it is to be given up.
    stop: SignalFd,
    server: Server,
    sandbox: Sandbox,
}

pub(super) fn demo(args: &DemoArgs) -> Result<u8, Failure> {
    let show = Show { begun: Instant::now(), json: args.json, steps: Vec::new() };
    // Whoever ends it early finds nothing of it left, either.
    let signals = SignalSet::new(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]);
    let internal = |e| Failure::os(Status::Internal, "cannot listen to signals", e);
    signals.block().map_err(internal)?;
    let stop = SignalFd::new(&signals).map_err(internal)?;
    if args.vm.vm {
        return vm::demo(&args.vm, show, stop);
    }
    let server = Server::start(CONNECTIONS)?;
    let sandbox = Sandbox::start(server.addr.port())?;
    let mut demo = Demo { show, stop, server, sandbox };
    let done = demo.steps();
    let Demo { show, server, sandbox, .. } = demo;
    // What was wrong with the data says more than what followed from it.
    server.check().and(done)?;
    sandbox.end()?;
    let Verified { from_guest, to_guest } = server.verified();
    let seconds = show.begun.elapsed().as_secs_f64();
    if show.json {
        return print_json(&json!({
            "verified": true,
            "connections": CONNECTIONS,
            "bytes_from_guest": from_guest,
            "bytes_to_guest": to_guest,
            "seconds": seconds,
            "steps": show.steps,
        }));
    }
    super::print(&format!(
        "\nEvery byte was right: {} from the sandbox, {} to it; {CONNECTIONS} of {CONNECTIONS} connections ended in good order.\n",
        mib(from_guest),
        mib(to_guest)
    ))
}

impl Demo {
    fn steps(&mut self) -> Result<(), Failure> {
        self.begin()?;
        self.stream(STREAM)?;
        self.sleep()?;
        self.wake()?;
        self.stream(STREAM)?;
        self.copy()?;
        self.stream(STREAM)?;
        self.upgrade()?;
        self.stream(STREAM)?;
        self.server.stop();
        self.until("all connections have ended", |d| Ok(d.server.ended() as u64 == CONNECTIONS))
    }

    /// Waits for what has to happen soon.
    fn until(&self, what: &str, holds: impl Fn(&Self) -> Result<bool, Failure>) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        while !holds(self)? {
            self.server.check()?;
            self.sandbox.check()?;
            if Instant::now() > end {
                return Err(Failure::new(Status::Internal, format!("in vain for {} s: that {what}", PATIENCE.as_secs())));
            }
            pass(&self.stop, Duration::from_millis(1))?;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Failure> {
        self.until("the sandbox's connections are there", |d| Ok(d.server.connections() as u64 == CONNECTIONS))?;
        let entry = self.sandbox.entry()?;
        let text = format!(
            "sandbox {}, served by process {}; {CONNECTIONS} TCP connections to {WORLD}, which DNAT leads to {}; all else is dropped",
            entry.name, entry.worker, self.server.addr
        );
        self.show.step("started", &text, json!({ "name": entry.name, "worker": entry.worker, "server": self.server.addr }))
    }

    /// Lets data move for a time; all connections have to.
    fn stream(&mut self, time: Duration) -> Result<(), Failure> {
        let (mark, before) = (self.server.mark(), self.server.verified());
        pass(&self.stop, time)?;
        self.until("every connection moves", |d| Ok(d.server.is_past(&mark, MOVES)))?;
        let now = self.server.verified();
        let (from, to) = (now.from_guest - before.from_guest, now.to_guest - before.to_guest);
        let text = format!("verified {} from the sandbox, {} to it", mib(from), mib(to));
        self.show.step("streaming", &text, json!({ "bytes_from_guest": from, "bytes_to_guest": to }))
    }

    /// An image in the demo's own directory, and how long it is.
    fn checkpoint(&self, how: Prepare) -> Result<(FreezeReport, u64), Failure> {
        let path = self.sandbox.image();
        let file = Replacement::begin(&path).map_err(|e| Failure::new(Status::File, e.to_string()))?;
        let request = Request::Checkpoint { how, wake: None };
        let asking = Asking::new(self.sandbox.name(), &request, &[file.as_fd()])?;
        let report = see_through(asking, Target::File(Box::new(file)), &mut |_, _| {})?;
        let bytes = path.metadata().map_err(|e| Failure::os(Status::File, "cannot look at the image", e))?.len();
        Ok((report, bytes))
    }

    fn sleep(&mut self) -> Result<(), Failure> {
        let worker = self.sandbox.entry()?.worker;
        let (report, bytes) = self.checkpoint(Prepare::default())?;
        if report.flows.len() as u64 != CONNECTIONS || report.flows.iter().any(|f| f.tier != Tier::Hold) {
            return Err(Failure::new(Status::Internal, format!("not all flows are held: {}", tally(&report.flows))));
        }
        self.until("the worker has ended", |d| Ok(d.sandbox.entry()?.state == State::Asleep && start_time(worker).is_none()))?;
        let text = format!(
            "frozen within {}; image of {bytes} bytes, with {} tracked connections; {}; process {worker} has ended",
            us(report.times.total_ns()),
            report.connections,
            tally(&report.flows)
        );
        self.show.step("asleep", &text, json!({ "bytes": bytes, "ended": worker, "freeze": report }))
    }

    fn wake(&mut self) -> Result<(), Failure> {
        pass(&self.stop, SLEEP)?;
        let path = self.sandbox.image();
        let file = File::open(&path).map_err(|e| Failure::os(Status::File, "cannot read the image", e))?;
        let (mark, begun) = (self.server.mark(), Instant::now());
        let asking = Asking::new(self.sandbox.name(), &Request::Restore(Box::default()), &[file.as_fd()])?;
        let report: ThawReport = asking.answer()?;
        all_resumed(&report)?;
        self.until("every connection moves again", |d| Ok(d.server.is_past(&mark, 1)))?;
        let moved = begun.elapsed();
        self.until("the network is served", |d| Ok(d.sandbox.entry()?.state == State::Running))?;
        let worker = self.sandbox.entry()?.worker;
        let text = format!(
            "after {} s; process {worker} restored it within {}: {} flows resumed; all move again, both ways, {} ms later",
            SLEEP.as_secs(),
            us(report.took_ns),
            report.flows.len(),
            moved.as_millis()
        );
        self.show.step("awake", &text, json!({ "worker": worker, "moved_after_ms": moved.as_millis() as u64, "thaw": report }))
    }

    fn copy(&mut self) -> Result<(), Failure> {
        let (report, bytes) = self.checkpoint(Prepare { mode: Mode::GoOn, live: true, ..Prepare::default() })?;
        let text = format!(
            "live, while it runs on: frozen within {}; image of {bytes} bytes, with {} tracked connections",
            us(report.times.total_ns()),
            report.connections
        );
        self.show.step("copied", &text, json!({ "bytes": bytes, "freeze": report }))
    }

    fn upgrade(&mut self) -> Result<(), Failure> {
        let old = self.sandbox.entry()?.worker;
        let program = File::open("/proc/self/exe").map_err(|e| Failure::os(Status::File, "cannot open this program", e))?;
        let mut asking = Asking::new(self.sandbox.name(), &Request::Upgrade {}, &[program.as_fd()])?;
        asking.be_patient();
        while asking.event()?.is_some() {}
        let done: Upgraded = asking.answer()?;
        all_resumed(&done.thawed)?;
        self.until("another worker serves", |d| Ok(d.sandbox.entry()?.worker != old && start_time(old).is_none()))?;
        let worker = self.sandbox.entry()?.worker;
        let text = format!(
            "process {worker} serves in place of {old} after a gap of {}: {} flows resumed",
            us(done.gap_ns),
            done.thawed.flows.len()
        );
        self.show.step("upgraded", &text, json!({ "worker": worker, "ended": old, "upgrade": done }))
    }
}

fn all_resumed(report: &ThawReport) -> Result<(), Failure> {
    let resumed = report.count(Outcome::Resumed) as u64;
    if resumed == CONNECTIONS {
        return Ok(());
    }
    let why = report.flows.iter().find_map(|f| f.why.clone()).unwrap_or_default();
    Err(Failure::new(Status::Internal, format!("only {resumed} of {CONNECTIONS} flows were resumed: {why}")))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn us(ns: u64) -> String {
    format!("{} us", ns / 1000)
}
