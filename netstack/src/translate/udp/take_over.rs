//! Flows that change the worker.

use super::Udp;
use crate::edge::{SockId, Token, TokenKind};
use crate::router::Router;
use crate::timers::Deadline;

impl Udp {
    /// Takes over the flows of another worker's, which has no published ports. See [`Stack::take_over`](crate::Stack::take_over).
    pub(crate) fn take_over(
        &mut self,
        r: &mut Router,
        other: &mut Udp,
        from: &mut Router,
        socket: &mut dyn FnMut(SockId, Token) -> Option<SockId>,
    ) {
        for slot in other.flows.occupied() {
            let Some((index, generation)) = self.flows.next() else { return };
            let token = Token::new(TokenKind::Udp, index, generation);
            let ours = |t| self.index.contains_key(t);
            let Some(flow) = other.flows.get(slot).filter(|f| f.client.is_none() && !ours(&f.tuple)) else { continue };
            let Some(sock) = socket(flow.sock, token) else { continue };
            let Some(mut flow) = other.flows.remove(slot) else { continue };
            other.index.remove(&flow.tuple);
            other.unreplied[flow.kind()].remove(slot);
            other.backlog.retain(|t| *t != flow.token);
            let due = flow.deadline.due();
            from.timers.cancel(&mut flow.deadline);
            (flow.token, flow.sock, flow.deadline) = (token, sock, Deadline::default());
            flow.via.resume(r, token);
            if !flow.replied() {
                self.unreplied[flow.kind()].touch(index);
            }
            if flow.waits {
                self.backlog.push_back(token);
            }
            r.timers.set(&mut flow.deadline, token, due);
            self.index.insert(flow.tuple, index);
            self.flows.insert(|_, _| flow);
        }
    }
}
