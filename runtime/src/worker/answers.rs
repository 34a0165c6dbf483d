//! What the worker answers to requests.

use super::Worker;
use super::follower::Follower;
use crate::control::protocol::{
    Answer, Conntrack, ConntrackStats, Form, MAX_ANSWER, Page, Problem, ProblemKind, Request, Restore, Restored, Rules, RulesOf,
    TableOf,
};
use crate::control::rules;
use hibernet_netstack::conntrack::{ConnId, ConnView, Filter, Line};
use hibernet_netstack::ipset::Sets;
use hibernet_netstack::iptables::text::{self, PrintOptions, RestoreOptions};
use hibernet_netstack::{Time, admin};
use serde::Serialize;
use serde_json::Value;

/// Slots of the table of connections that a page looks at: what one request can take of the worker's time.
const SLOTS_PER_PAGE: u32 = 256;

/// Elements of a set that a page has.
const ELEMENTS_PER_PAGE: usize = 4096;

/// An answer as it is sent.
pub(super) fn encode<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    let problem = |text: &str| {
        let text = format!(r#"{{"error":{{"kind":"internal","message":"{text}"}}}}"#);
        text.into_bytes()
    };
    let mut bytes = match serde_json::to_vec(answer) {
        Ok(b) if b.len() < MAX_ANSWER => b,
        Ok(_) => problem("the answer is longer than any may be"),
        Err(_) => problem("the answer cannot be written as JSON"),
    };
    bytes.push(b'\n');
    bytes
}

impl Worker {
    /// The answer to a request, as it is sent.
    pub(super) fn answer(&mut self, now: Time, request: &[u8]) -> Vec<u8> {
        let request = match serde_json::from_slice(request) {
            Ok(r) => r,
            Err(e) => return error(Problem::new(ProblemKind::Request, format!("not a request: {e}"))),
        };
        // What followers counted, logged and traced.
        self.together(|_, _| ());
        match request {
            Request::Stats => encode(&Answer::Ok(self.report())),
            Request::RulesSave { family, table, counters } => {
                encode(&Answer::Ok(Rules { text: self.save_rules(family, table, counters) }))
            }
            Request::RulesRestore(r) => result(self.restore_rules(now, &r)),
            Request::RulesDiff { family, text } => result(self.diff_rules(family, &text)),
            Request::SetsSave { set, from } => result(self.save_sets(now, set.as_deref(), from)),
            Request::Conntrack(r) => result(self.conntrack(now, &r)),
            Request::Trace(how) => result(self.trace(&how)),
            Request::ConntrackStats => result(self.conntrack_stats()),
        }
    }

    fn save_rules(&self, family: RulesOf, table: Option<TableOf>, counters: bool) -> String {
        let mut rules = self.stack.rules(family.into());
        if let Some(only) = table {
            rules.tables.retain(|t| t.name == only.into());
        }
        text::print(&rules, PrintOptions { counters, date: None })
    }

    fn restore_rules(&mut self, now: Time, r: &Restore) -> Result<Restored, Problem> {
        let options = RestoreOptions { counters: r.counters, noflush: r.noflush };
        let base = self.stack.rules(r.family.into());
        let new = rules::restore(&base, &r.text, options)?;
        let none = Sets::default();
        let on = if r.noflush { self.stack.sets() } else { &none };
        let sets = r.sets.as_ref().map(|text| rules::read_sets(on, text, now)).transpose()?;
        let named = sets.as_ref().unwrap_or(self.stack.sets()).clone();
        let refused = |e| rules::refused(&e, &base, &r.text, options, &named);
        if r.test {
            self.stack.check_rules_on(new, sets.as_ref()).map_err(refused)?;
            return Ok(Restored::default());
        }
        let recheck = r.recheck.unwrap_or(self.recheck);
        let report = self.together(|w, others| {
            let mut report = w.stack.set_rules_on(now, new, sets.as_ref(), recheck.into(), &mut w.edge)?;
            for Follower { stack, edge, .. } in others.iter_mut().map(|o| &mut **o) {
                if admin::Recheck::from(recheck) == admin::Recheck::Cut {
                    report.cut += stack.cut(now, &w.stack, r.family.into(), edge);
                }
                stack.follow(&w.stack);
            }
            Ok(report)
        });
        let report = report.map_err(refused)?;
        self.wake_followers();
        slog::info!(self.log, "rules were replaced"; "family" => ?r.family, "flows_cut" => report.cut);
        Ok(Restored { cut: report.cut as u64, other_dropped: report.other_family_closed })
    }

    fn diff_rules(&self, family: RulesOf, text: &str) -> Result<Rules, Problem> {
        let (old, options) = (self.stack.rules(family.into()), RestoreOptions::default());
        let new = rules::restore(&old, text, options)?;
        let refused = |e| rules::refused(&e, &old, text, options, self.stack.sets());
        self.stack.check_rules(new.clone()).map_err(refused)?;
        Ok(Rules { text: text::diff(&old, &self.stack.with_own_rules(new)).to_string() })
    }

    /// A page of sets: of one of them, or of all, one after the other.
    fn save_sets(&self, now: Time, only: Option<&str>, from: u64) -> Result<Page<String>, Problem> {
        let chosen: Vec<_> = self.stack.sets().saved().filter(|s| only.is_none_or(|name| s.name() == name)).collect();
        if let (Some(name), true) = (only, chosen.is_empty()) {
            return Err(Problem::new(ProblemKind::Request, format!("there is no set {name}")));
        }
        // Which set, and which of its elements.
        let (at, element) = ((from >> 32) as usize, (from & u64::from(u32::MAX)) as usize);
        let Some(set) = chosen.get(at) else { return Ok(Page { items: Vec::new(), next: None }) };
        let mut text = String::new();
        let next = if set.print_part(now, element, ELEMENTS_PER_PAGE, &mut text) {
            Some(from + ELEMENTS_PER_PAGE as u64)
        } else {
            (at + 1 < chosen.len()).then_some((at as u64 + 1) << 32)
        };
        Ok(Page { items: vec![text], next })
    }

    /// A page of connections, which are deleted if that is asked for.
    fn conntrack(&mut self, now: Time, r: &Conntrack) -> Result<Page<Value>, Problem> {
        let request = |text: String| Problem::new(ProblemKind::Request, text);
        let filter = Filter::try_from(&r.which).map_err(|e| request(e.to_string()))?;
        let from = u32::try_from(r.from).map_err(|_| request(format!("there is no place {}", r.from)))?;
        let mut found = Vec::new();
        let next = self.stack.conntrack().dump(now, from, SLOTS_PER_PAGE, |id, conn| {
            if filter.matches(conn) {
                found.push((id, *conn));
            }
        });
        let counts = |id| self.stack.conntrack().counts(id);
        let items = found.iter().map(|(id, conn)| match r.form {
            Form::Line => Ok(Line::new(conn, now).counting(counts(*id)).to_string().into()),
            Form::Extended => Ok(Line::new(conn, now).counting(counts(*id)).extended().to_string().into()),
            Form::Json => serde_json::to_value(ConnView::new(conn, now).counting(counts(*id))),
        });
        let items = items.collect::<Result<Vec<Value>, _>>();
        let items = items.map_err(|e| Problem::new(ProblemKind::Internal, e.to_string()))?;
        if r.delete {
            let ids: Vec<ConnId> = found.iter().map(|(id, _)| *id).collect();
            self.together(|w, others| {
                for Follower { stack, edge, .. } in others.iter_mut().map(|o| &mut **o) {
                    stack.delete_connections(now, &ids, edge);
                }
                w.stack.delete_connections(now, &ids, &mut w.edge);
            });
            self.wake_followers();
        }
        Ok(Page { items, next: next.map(u64::from) })
    }

    fn conntrack_stats(&self) -> Result<ConntrackStats, Problem> {
        let table = self.stack.conntrack();
        let counters = serde_json::to_value(table.counters()).and_then(serde_json::from_value);
        let counters = counters.map_err(|e| Problem::new(ProblemKind::Internal, e.to_string()))?;
        Ok(ConntrackStats { count: table.len() as u64, counters })
    }
}

fn result<T: Serialize>(r: Result<T, Problem>) -> Vec<u8> {
    match r {
        Ok(value) => encode(&Answer::Ok(value)),
        Err(p) => error(p),
    }
}

fn error(p: Problem) -> Vec<u8> {
    encode(&Answer::<()>::Error(p))
}
