//! Flows that change the worker.

use super::Tcp;
use super::flow::Events;
use crate::edge::{SockId, Token, TokenKind};
use crate::router::Router;
use crate::timers::Deadline;

impl Tcp {
    /// Takes over the flows of another worker's. See [`Stack::take_over`](crate::Stack::take_over).
    pub(crate) fn take_over(
        &mut self,
        r: &mut Router,
        other: &mut Tcp,
        from: &mut Router,
        socket: &mut dyn FnMut(SockId, Token) -> Option<SockId>,
    ) {
        for slot in other.flows.occupied() {
            let Some((index, generation)) = self.flows.next() else { return };
            let token = Token::new(TokenKind::Tcp, index, generation);
            let Some(flow) = other.flows.get(slot).filter(|f| !self.index.contains_key(&f.tuple)) else { continue };
            let Some(sock) = socket(flow.sock, token) else { continue };
            let Some(mut flow) = other.flows.remove(slot) else { continue };
            other.index.remove(&flow.tuple);
            let due = flow.deadline.due();
            from.timers.cancel(&mut flow.deadline);
            other.shared.held -= u64::from(core::mem::take(&mut flow.counted));
            let half_open = u32::from(flow.events.has(Events::HALF_OPEN));
            other.shared.half_open -= half_open;
            self.shared.half_open += half_open;
            flow.recount(&mut self.shared);
            (flow.token, flow.sock, flow.deadline) = (token, sock, Deadline::default());
            flow.via.resume(r, token);
            flow.events.clear(Events::LISTED);
            // Whatever it waited for there, it looks again here.
            flow.events.add(Events::UNSETTLED);
            self.shared.unsettled.push(index);
            r.timers.set(&mut flow.deadline, token, due);
            self.index.insert(flow.tuple, index);
            self.flows.insert(|_, _| flow);
        }
        other.shared.unsettled.retain(|&i| other.flows.get(i).is_some());
    }
}
