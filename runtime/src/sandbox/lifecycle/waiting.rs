//! Clients that wait for something to happen: news for a sleeping network, or that a running one is idle.

use super::Network;
use super::server::ClientId;
use super::wake;
use crate::checkpoint::news::{Event, News};
use crate::control::lifecycle::{Idle, State};
use crate::control::protocol::ProblemKind;
use crate::sandbox::failure::{Failure, complain};
use crate::sandbox::worker_process::ToWorker;
use rustix::process::{Pid, WaitStatus};
use std::time::Duration;

/// Most clients that wait: others must find room to ask for something else.
const MAX_WAITING: usize = 32;

/// Who waits, and for what.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For news, of one kind or of any.
    news: Vec<(ClientId, Option<Event>)>,
    /// That nothing moves for so long.
    idle: Vec<(ClientId, Duration)>,
    /// What the worker was asked for: the shortest of these.
    asked: Option<Duration>,
    /// Commands that were run to wake the network.
    commands: Vec<Pid>,
}

impl Network {
    fn has_room(&mut self, client: ClientId) -> bool {
        let room = self.waiting.news.len() + self.waiting.idle.len() < MAX_WAITING;
        if !room {
            self.refuse(client, ProblemKind::Busy, format!("{MAX_WAITING} clients wait already; try again later"));
        }
        room
    }

    /// A client waits for news, of this sleep or the next.
    pub(super) fn wait(&mut self, client: ClientId, event: Option<Event>) {
        if let Some(h) = &self.holder {
            match h.news() {
                Ok(news) => {
                    if let Some(news) = news.iter().find(|n| is_for(n, event)).cloned() {
                        return self.answer(client, &news);
                    }
                }
                Err(why) => return self.refuse(client, ProblemKind::State, why.into()),
            }
        }
        if self.has_room(client) {
            self.waiting.news.push((client, event));
        }
    }

    /// The network has fallen asleep: if it holds nothing there will be no news.
    pub(super) fn fell_asleep(&mut self) {
        if let Some(Err(why)) = self.holder.as_ref().map(|h| h.news().map(drop)) {
            for (client, _) in std::mem::take(&mut self.waiting.news) {
                self.refuse(client, ProblemKind::State, why.into());
            }
        }
    }

    /// Looks what has happened to what is held; the first thing wakes.
    pub(super) fn hear_news(&mut self) {
        let Some(h) = &mut self.holder else { return };
        let news = match h.look() {
            Ok(news) => news,
            Err(e) => {
                complain(format_args!("warning: held sockets cannot be watched any more, wake the network by hand: {e}"));
                return;
            }
        };
        for n in news {
            if let Some(wake) = self.holder.as_mut().and_then(|h| h.wake.take()) {
                match wake::run(&wake, &self.name(), &n, self.inherited) {
                    Ok(pid) => self.waiting.commands.push(pid),
                    Err(e) => complain(format_args!("{e}; it is not tried again before the next sleep")),
                }
            }
            let (told, left) = std::mem::take(&mut self.waiting.news).into_iter().partition(|(_, event)| is_for(&n, *event));
            self.waiting.news = left;
            for (client, _) in Vec::from_iter::<Vec<_>>(told) {
                self.answer(client, &n);
            }
        }
    }

    fn name(&self) -> String {
        self.kit.plan.name.clone().unwrap_or_default()
    }

    /// A child was waited for that is neither the sandbox's command nor the worker.
    pub(super) fn command_has_ended(&mut self, pid: Pid, status: WaitStatus) {
        let before = self.waiting.commands.len();
        self.waiting.commands.retain(|c| *c != pid);
        if self.waiting.commands.len() < before {
            wake::ended(&self.name(), status);
        }
    }

    /// A client waits for the network to be idle for so long. One that sleeps is not idle: whoever waits for that would put it to sleep.
    pub(super) fn wait_idle(&mut self, client: ClientId, after: Duration) -> Result<(), Failure> {
        if self.has_lost_its_worker() {
            self.refuse(client, ProblemKind::State, "its network has ended".into());
        } else if self.has_room(client) {
            self.waiting.idle.push((client, after));
            self.ask_idle()?;
        }
        Ok(())
    }

    /// The worker says for how long nothing has moved.
    pub(super) fn heard_idle(&mut self, idle: Duration) -> Result<(), Failure> {
        self.waiting.asked = None;
        let (told, left): (Vec<_>, _) = std::mem::take(&mut self.waiting.idle).into_iter().partition(|(_, after)| *after <= idle);
        self.waiting.idle = left;
        for (client, _) in told {
            self.answer(client, &Idle { idle_ns: u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX) });
        }
        self.ask_idle()
    }

    /// Another worker serves, who knows nothing of who waits.
    pub(super) fn ask_idle_anew(&mut self) -> Result<(), Failure> {
        self.waiting.asked = None;
        self.ask_idle()
    }

    /// Has the worker tell when nothing moved for as long as the first of those who wait want.
    fn ask_idle(&mut self) -> Result<(), Failure> {
        let wanted = self.waiting.idle.iter().map(|(_, after)| *after).min();
        let serves = self.worker.as_ref().is_some_and(|w| !w.silent);
        if wanted != self.waiting.asked && serves && self.state != State::Asleep {
            self.tell(&ToWorker::Idle(wanted), &[])?;
            self.waiting.asked = wanted;
        }
        Ok(())
    }

    /// Forgets a client that has left.
    pub(super) fn forget(&mut self, client: ClientId) -> Result<(), Failure> {
        self.waiting.news.retain(|(c, _)| *c != client);
        self.waiting.idle.retain(|(c, _)| *c != client);
        self.ask_idle()
    }
}

fn is_for(news: &News, event: Option<Event>) -> bool {
    event.is_none_or(|e| e == news.event)
}
