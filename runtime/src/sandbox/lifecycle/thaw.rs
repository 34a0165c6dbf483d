//! Another worker goes on where one stood.

use super::Network;
use super::freeze::Upgrade;
use super::server::ClientId;
use crate::checkpoint::Held;
use crate::checkpoint::report::{ThawReport, generation_text};
use crate::control::lifecycle::{Restore, State, Upgraded};
use crate::control::protocol::ProblemKind;
use crate::control::rules;
use crate::sandbox::failure::{Failure, Status, complain};
use crate::sandbox::worker_process::{Thaw, WorkerProcess};
use crate::worker::{RestorePolicy, RulesSetup};
use hibernet_netstack::iptables::text::RestoreOptions;
use hibernet_netstack::iptables::{Family, Ruleset};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl Network {
    /// A client brings an image.
    pub(super) fn restore(&mut self, client: ClientId, how: &Restore, image: OwnedFd, helper: Option<OwnedFd>) {
        if self.state != State::Asleep {
            let why = "its network is not asleep; `hibernet checkpoint` puts it to sleep";
            return self.refuse(client, ProblemKind::State, why.into());
        }
        let rules = match rules_of(how) {
            Ok(r) => r,
            Err((kind, why)) => return self.refuse(client, kind, why),
        };
        let held = self.holder.as_ref().map_or_else(|| Ok(Held::default()), |h| h.held().try_clone());
        let done = held.map_err(|e| Failure::os(Status::Resources, "cannot hand the sockets over", e));
        let done = done.and_then(|held| {
            self.kit.plan.rules = rules;
            let program = self.kit.program.try_clone().map_err(|e| Failure::os(Status::Resources, "cannot start a worker", e))?;
            self.start(program.as_fd(), Thaw { image, held, policy: how.policy.clone(), helper })
        });
        match done {
            Ok(report) => {
                if let Some(h) = self.holder.take() {
                    h.let_go();
                }
                if let Err(e) = self.retries.put_back() {
                    complain(format_args!("warning: the sandbox's kernel still tries more often than it did: {e}"));
                }
                self.answer(client, &report);
            }
            Err(e) => {
                let kind = if e.status == Status::Image { ProblemKind::Image } else { ProblemKind::Internal };
                self.refuse(client, kind, format!("{e}; its network sleeps on"));
            }
        }
    }

    /// Another worker goes on at once; if it cannot, one like the last.
    pub(super) fn replace(&mut self, client: ClientId, upgrade: Upgrade, held: Held) {
        self.kit.plan.rules = RulesSetup { recheck: self.kit.plan.rules.recheck, ..RulesSetup::default() };
        let Upgrade { program, image, since } = upgrade;
        let begin = |network: &mut Self, program: BorrowedFd<'_>| {
            let fail = |e| Failure::os(Status::Resources, "cannot hand the sockets over", e);
            let thaw = Thaw {
                image: image.try_clone().map_err(fail)?,
                held: held.try_clone().map_err(fail)?,
                policy: RestorePolicy { expected: held.generation, ..RestorePolicy::default() },
                helper: None,
            };
            network.start(program, thaw)
        };
        let why = match begin(self, program.as_fd()) {
            Ok(thawed) => {
                self.kit.program = program;
                let gap_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                return self.answer(client, &Upgraded { thawed, gap_ns });
            }
            Err(e) => e,
        };
        let again = self.kit.program.try_clone().map_err(|e| Failure::os(Status::Resources, "cannot start a worker", e));
        match again.and_then(|old| begin(self, old.as_fd())) {
            Ok(_) => self.refuse(client, ProblemKind::Internal, format!("{why}; the program of before goes on")),
            Err(e) => {
                let generation = held.generation.as_ref().map_or_else(String::new, generation_text);
                self.sleep(held, generation);
                self.refuse(
                    client,
                    ProblemKind::Internal,
                    format!("{why}; nor does the program of before go on: {e}; its network is asleep"),
                );
            }
        }
    }

    fn start(&mut self, program: BorrowedFd<'_>, thaw: Thaw) -> Result<ThawReport, Failure> {
        let given = self.kit.given(thaw)?;
        let (worker, report) = WorkerProcess::start(program, &self.kit.plan, given)?;
        let report =
            report.ok_or_else(|| Failure::new(Status::Internal, "the network worker does not say what became of its flows"))?;
        self.worker = Some(worker);
        (self.silent, self.state) = (false, State::Running);
        Ok(report)
    }
}

/// The rules that are to take the place of the image's.
fn rules_of(how: &Restore) -> Result<RulesSetup, (ProblemKind, String)> {
    let read = |family: Family, text: &Option<String>| {
        let read = |text: &String| {
            rules::restore(&Ruleset::new(family), text, RestoreOptions::default()).map_err(|p| (p.kind, p.message))
        };
        text.as_ref().map(read).transpose()
    };
    Ok(RulesSetup { v4: read(Family::V4, &how.rules4)?, v6: read(Family::V6, &how.rules6)?, recheck: how.recheck })
}
