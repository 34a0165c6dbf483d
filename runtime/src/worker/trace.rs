//! Tracing for one who asks: what happens to packets waits here until it is fetched, and nothing is traced any more when nobody fetches it.

use super::Worker;
use crate::control::protocol::{Problem, ProblemKind, Trace, TraceEvent, TracePage, TraceStep, TraceWhich};
use hibernet_netstack::Time;
use hibernet_netstack::conntrack::filter::{AddrArg, FilterError, ProtoArg};
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::Iface;
use hibernet_netstack::trace;
use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Duration;

/// How long is traced without being asked for more.
const LEASE: Duration = Duration::from_secs(3);
/// Steps that are kept; what comes when there are so many is lost, and counted.
const MAX_STEPS: usize = 4096;

/// Somebody traces.
#[derive(Debug)]
pub(super) struct Tracer {
    id: u64,
    until: Time,
    steps: VecDeque<TraceEvent>,
    lost: u64,
}

impl Worker {
    /// Begins to trace, goes on with it, or ends it; what happened since the last time.
    pub(super) fn trace(&mut self, how: &Trace) -> Result<TracePage, Problem> {
        self.keep_traces();
        if self.tracer.as_ref().is_some_and(|t| t.id != how.id) {
            let why = "somebody else traces this network; try again when that has ended";
            return Err(Problem::new(ProblemKind::Busy, why));
        }
        if how.end {
            self.end_tracing();
            return Ok(TracePage::default());
        }
        let until = self.host_clock.now() + LEASE;
        match &mut self.tracer {
            Some(t) => {
                t.until = until;
                Ok(TracePage { steps: t.steps.drain(..).collect(), lost: std::mem::take(&mut t.lost) })
            }
            None => {
                let filter = how.which.as_ref().map(trace::Filter::try_from).transpose();
                self.set_trace(filter.map_err(|why| Problem::new(ProblemKind::Request, why))?);
                self.tracer = Some(Tracer { id: how.id, until, steps: VecDeque::new(), lost: 0 });
                Ok(TracePage::default())
            }
        }
    }

    fn end_tracing(&mut self) {
        self.tracer = None;
        self.set_trace(None);
    }

    fn set_trace(&mut self, filter: Option<trace::Filter>) {
        self.together(|w, others| {
            others.iter_mut().for_each(|o| o.stack.set_trace(filter.clone()));
            w.stack.set_trace(filter);
        });
    }

    /// Takes what was traced: for the one who traces, else as the kernel does, for the log.
    pub(super) fn keep_traces(&mut self) {
        if self.tracer.as_ref().is_some_and(|t| t.until <= self.host_clock.now()) {
            self.end_tracing();
        }
        let (steps, lost) = self.stack.take_traces();
        if steps.is_empty() && lost == 0 {
            return;
        }
        let Some(t) = &mut self.tracer else {
            let lines: Vec<String> = steps.iter().filter_map(trace::Event::line).collect();
            return self.rule_log.write(self.clock.now(), &lines, lost);
        };
        t.lost += lost;
        for step in &steps {
            match t.steps.len() < MAX_STEPS {
                true => t.steps.push_back(TraceEvent::from(step)),
                false => t.lost += 1,
            }
        }
    }
}

impl TryFrom<&TraceWhich> for trace::Filter {
    type Error = String;

    fn try_from(w: &TraceWhich) -> Result<Self, String> {
        fn read<T: FromStr<Err = FilterError>>(text: &Option<String>) -> Result<Option<T>, String> {
            text.as_deref().map(str::parse).transpose().map_err(|e: FilterError| e.to_string())
        }
        let iface = |name: &String| match name.strip_prefix("tap").map(str::parse) {
            Some(Ok(n)) => Ok(Iface::Link(LinkId(n))),
            None if name == "host0" => Ok(Iface::Host0),
            _ => Err(format!("packets enter by tap0, tap1, ... and host0, not by {name}")),
        };
        Ok(trace::Filter {
            v6: w.v6,
            proto: read::<ProtoArg>(&w.proto)?.map(|p| p.0),
            src: read::<AddrArg>(&w.src)?,
            dst: read::<AddrArg>(&w.dst)?,
            sport: w.sport,
            dport: w.dport,
            port: w.port,
            input: w.input.as_ref().map(iface).transpose()?,
        })
    }
}

impl From<&trace::Event> for TraceEvent {
    fn from(e: &trace::Event) -> TraceEvent {
        let step = match &e.what {
            trace::Step::Rule(r) => TraceStep::Rule {
                table: r.table.to_string(),
                hook: r.hook.chain().to_owned(),
                chain: r.chain.clone(),
                number: r.number as u64,
                kind: r.step.to_owned(),
                rule: r.rule.clone(),
                packet: r.packet.trim_end().to_owned(),
            },
            trace::Step::Route(to) => TraceStep::Route { to: to.map_or_else(|| "local".to_owned(), |i| i.to_string()) },
            trace::Step::End(Ok(())) => TraceStep::End { dropped: None },
            trace::Step::End(Err(why)) => TraceStep::End { dropped: Some(why.name().to_owned()) },
        };
        TraceEvent { packet: e.packet, step }
    }
}
