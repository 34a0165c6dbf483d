//! Plays scenarios.

use super::Side;
use super::compare::{self, Renames};
use super::frames::{Exchange, Packet};
use super::record::{self, Seen};
use super::scenario::{Change, Scenario, Step};
use std::fmt;
use std::time::Duration;

/// A router under comparison.
pub trait Router {
    /// Starts a case: no connections, these rules (as a person writes them, see [`super::whole`]), settings of tracking.
    fn load(&mut self, v6: bool, rules: &str, settings: &[(&'static str, u32)]);
    /// Time since the rules were loaded.
    fn now(&self) -> Duration;
    /// Lets time pass up to this.
    fn pass(&mut self, until: Duration);
    /// A frame goes in; all that come out by it.
    fn exchange(&mut self, side: Side, frame: &[u8]) -> Vec<(Side, Vec<u8>)>;
    /// Rules with counters, as `iptables-save -c` prints them.
    fn rules(&mut self) -> String;
    /// Connections, as `conntrack -L -o extended` prints them.
    fn connections(&mut self) -> String;
    /// Something changes under way.
    ///
    /// # Panics
    /// If it is no router of ours.
    fn change(&mut self, change: &Change) {
        panic!("{change:?} is for our own routers");
    }
}

/// Where two routers part.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The case.
    pub scenario: Scenario,
    /// Number of the step, or of the last one.
    pub step: usize,
    /// What differs.
    pub what: String,
    /// What was sent and seen around it.
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, step {}: {}", self.scenario.name, self.step, self.what)?;
        writeln!(f, "{}", self.detail)?;
        writeln!(f, "--- rules (IPv{})", if self.scenario.v6 { 6 } else { 4 })?;
        writeln!(f, "{}--- steps", self.scenario.rules)?;
        for (i, step) in self.scenario.steps.iter().enumerate().filter(|(_, s)| !matches!(s, Step::Gone)) {
            writeln!(f, "{i:3}: {step:?}")?;
        }
        Ok(())
    }
}

/// What a case amounted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packets sent.
    pub sent: u64,
    /// Packets that came out of the kernel.
    pub seen: u64,
    /// Connections that the kernel had at the end.
    pub connections: u64,
    /// Checksums that the kernel made wrong, and we did not (see [`compare`]).
    pub wrong_zeros: u64,
}

/// A case as it is played, step by step.
#[derive(Debug)]
pub struct Play<'a, K: Router, O: Router> {
    kernel: &'a mut K,
    ours: Option<&'a mut O>,
    /// What has been played.
    pub scenario: Scenario,
    /// What the kernel made of it.
    pub past: Vec<Exchange>,
    ours_past: Vec<Exchange>,
    renames: Renames,
    summary: Summary,
    /// The longest time that a packet took the kernel: by so much our clock may be late against its.
    late: Duration,
    /// Rules and connections are compared after every step.
    pub every_step: bool,
    /// Everything is printed (`HIBERNET_NETFILTER_SHOW`).
    show: bool,
}

impl<'a, K: Router, O: Router> Play<'a, K, O> {
    /// Loads the rules of a scenario whose steps come later.
    pub fn new(kernel: &'a mut K, mut ours: Option<&'a mut O>, scenario: &Scenario) -> Self {
        let mut scenario = scenario.clone();
        scenario.steps.clear();
        if let Some(o) = &mut ours {
            o.load(scenario.v6, &scenario.rules, &scenario.settings);
        }
        kernel.load(scenario.v6, &scenario.rules, &scenario.settings);
        let renames = Renames::new(&scenario.rules);
        let (past, ours_past) = (Vec::new(), Vec::new());
        let show = std::env::var_os("HIBERNET_NETFILTER_SHOW").is_some();
        if show {
            eprintln!("== {} (IPv{})\n{}", scenario.name, if scenario.v6 { 6 } else { 4 }, scenario.rules);
        }
        let (summary, late) = (Summary::default(), Duration::ZERO);
        Play { kernel, ours, scenario, past, ours_past, renames, summary, late, every_step: false, show }
    }

    /// Plays a step on both.
    pub fn step(&mut self, step: Step) -> Result<(), Box<Difference>> {
        let n = self.scenario.steps.len();
        self.scenario.steps.push(step.clone());
        self.past.push(Exchange::default());
        self.ours_past.push(Exchange::default());
        match &step {
            Step::Send(packet) => self.send(n, packet)?,
            Step::Wait(d) => {
                let until = self.kernel.now() + *d;
                self.kernel.pass(until);
            }
            Step::Check => self.check(n)?,
            Step::Change(change) => {
                self.check(n)?;
                self.kernel.change(change);
                self.ours.iter_mut().for_each(|o| o.change(change));
            }
            Step::Gone => {}
        }
        if self.every_step && matches!(step, Step::Send(_)) {
            self.check(n)?;
        }
        Ok(())
    }

    fn send(&mut self, n: usize, packet: &Packet) -> Result<(), Box<Difference>> {
        let now = self.kernel.now();
        if let Some(done) = exchange(self.kernel, packet, n, &self.past) {
            self.summary.sent += 1;
            self.summary.seen += done.out.len() as u64;
            self.past[n] = done;
        }
        self.late = self.late.max(self.kernel.now() - now);
        if self.show {
            eprint!("{n:3} {}", self.detail(n));
        }
        let Some(ours) = &mut self.ours else { return Ok(()) };
        ours.pass(now);
        if let Some(done) = exchange(*ours, packet, n, &self.ours_past) {
            self.ours_past[n] = done;
        }
        let (k, o) = (&self.past[n], &self.ours_past[n]);
        let Some((_, sent)) = &k.sent else {
            return if o.sent.is_none() { Ok(()) } else { Err(self.differ(n, "what is answered came from us only".into())) };
        };
        let sent = sent.clone();
        let seen = |e: &Exchange| -> Vec<Seen> { e.out.iter().map(|(side, p)| record::seen(*side, p, &sent)).collect() };
        let result = compare::frames(&seen(k), &seen(o), &sent, &mut self.renames);
        result.map_err(|what| self.differ(n, what))
    }

    fn check(&mut self, n: usize) -> Result<(), Box<Difference>> {
        let before = self.kernel.now();
        let entries = record::entries(&self.kernel.connections());
        self.summary.connections = entries.len() as u64;
        if self.show {
            entries.iter().for_each(|e| eprintln!("    {:?} {}", e.timeout, e.words.join(" ")));
        }
        let now = self.kernel.now();
        let late = self.late + (now - before);
        let Some(ours) = &mut self.ours else { return Ok(()) };
        ours.pass(now);
        let theirs = record::entries(&ours.connections());
        let tables = (record::tables(&self.kernel.rules()), record::tables(&ours.rules()));
        if self.show {
            tables.0.values().flatten().for_each(|line| eprintln!("    {line}"));
        }
        let result = compare::connections(&entries, &theirs, &self.renames, late)
            .map_err(|e| format!("connections:\n{e}"))
            .and_then(|()| compare::rules(&tables.0, &tables.1).map_err(|e| format!("rules and counters: {e}")));
        result.map_err(|what| self.differ(n, what))
    }

    /// The end of the case: rules and connections are compared.
    pub fn finish(mut self) -> Result<Summary, Box<Difference>> {
        let n = self.scenario.steps.len().saturating_sub(1);
        self.check(n)?;
        Ok(Summary { wrong_zeros: self.renames.wrong_zeros, ..self.summary })
    }

    fn differ(&self, step: usize, what: String) -> Box<Difference> {
        Box::new(Difference { scenario: self.scenario.clone(), step, what, detail: self.detail(step) })
    }

    fn detail(&self, step: usize) -> String {
        let mut detail = String::new();
        let all = [("kernel", &self.past), ("ours", &self.ours_past)];
        for (name, past) in all {
            let Some(e) = past.get(step) else { continue };
            if let Some((side, p)) = &e.sent {
                detail += &format!("{name:6} gets from {side:?}: {}\n", super::show::packet(p));
            }
            for (side, p) in &e.out {
                detail += &format!("{name:6} sends to {side:?}: {}\n", super::show::packet(p));
            }
        }
        detail
    }
}

fn exchange(router: &mut impl Router, packet: &Packet, n: usize, past: &[Exchange]) -> Option<Exchange> {
    let (side, bytes) = packet.resolve(n, past)?;
    let mut out = Vec::new();
    for frame in packet.frames(side, &bytes) {
        out.extend(router.exchange(side, &frame));
    }
    let out = out.into_iter().filter_map(|(side, f)| Some((side, record::packet(side, &f)?))).collect();
    let mut out = record::join(out);
    out.sort_by_key(|(side, _)| *side);
    Some(Exchange { sent: Some((side, bytes)), out })
}

/// Plays a scenario on both; says where they part.
pub fn run<K: Router, O: Router>(scenario: &Scenario, kernel: &mut K, ours: &mut O) -> Result<Summary, Box<Difference>> {
    play(scenario, kernel, Some(ours), false)
}

/// Plays a scenario on the kernel only.
pub fn run_alone<K: Router>(scenario: &Scenario, kernel: &mut K) -> Summary {
    play::<K, K>(scenario, kernel, None, false).unwrap_or_else(|d| panic!("nothing to differ from: {d}"))
}

/// Plays a scenario; `every_step` compares rules and connections after every packet.
pub(super) fn play<K: Router, O: Router>(
    scenario: &Scenario,
    kernel: &mut K,
    ours: Option<&mut O>,
    every_step: bool,
) -> Result<Summary, Box<Difference>> {
    let mut play = Play::new(kernel, ours, scenario);
    play.every_step = every_step;
    for step in &scenario.steps {
        play.step(step.clone())?;
    }
    let scenario = play.scenario.clone();
    let last = scenario.steps.len().saturating_sub(1);
    let summary = play.finish()?;
    if summary.seen == 0 && !scenario.silent {
        let what = "nothing came out of the kernel: the scenario tests nothing".to_owned();
        return Err(Box::new(Difference { scenario, step: last, what, detail: String::new() }));
    }
    Ok(summary)
}
