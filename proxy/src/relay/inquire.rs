//! Asking the server what it holds for the session, between the client's requests.
//!
//! Whether a session can be moved when its server is lost depends on that, and afterwards nobody can be asked. So once
//! something may have changed and the session has been quiet for a moment, a question of ours goes to the server; its
//! answer stays here. What the client sends meanwhile waits for the answer, as it would wait for any request before it.

use super::{Relay, Role};
use crate::config::INQUIRE_AFTER;
use crate::wire::header::{HEADER_BYTES, Header};
use crate::wire::inquiry::{Heard, Inquiry};
use std::task::Context;

impl Relay {
    /// Between transactions, with everything known that is to be taken along.
    pub(super) fn may_leave(&self) -> bool {
        self.tracker.is_idle() && !self.up.has_unsent() && self.inquiry.is_none() && !self.may_inquire()
    }

    /// Between transactions, with nothing on the server that is this session's alone.
    #[inline]
    pub(super) fn may_release(&mut self) -> bool {
        if self.naming.is_none()
            || self.server.is_none()
            || !self.tracker.is_idle()
            || self.up.has_unsent()
            || self.down.has_unjudged()
            || self.inquiry.is_some()
            // What the server was attached for is still to come.
            || self.tracker.requests() == self.requests_before && self.up.has_unjudged()
        {
            return false;
        }
        if self.tracker.kept().holds() || self.unguarded != self.unguarded_from_start {
            self.note_pinned();
            return false;
        }
        // A cancel that is on its way to the server must not hit the next client there. Told first: one that is not seen
        // here sees that there is nothing to cancel.
        self.note_activity();
        self.refused == 0
            && self.abort.is_none()
            && !self.client_ended
            && self.up.at_boundary()
            && self.down.at_boundary()
            && self
                .server
                .as_ref()
                .is_some_and(|s| !s.deaf && !s.dirty && !s.told_end && !s.egress.is_dropping())
            && !self.slot.is_cancelling()
    }

    /// Says why the session keeps its server, once that is known.
    #[cold]
    fn note_pinned(&mut self) {
        if self.pinned || self.may_inquire() {
            return;
        }
        self.pinned = true;
        let why = self.tracker.kept().describe_hold();
        self.slot.set_pinned(Some(why.unwrap_or_else(|| "a setting that could not be judged".to_owned())));
    }

    fn may_inquire(&self) -> bool {
        self.role == Role::Entry
            && self.tracker.kept().is_stale()
            && self.tracker.is_idle()
            && self.inquiry.is_none()
            && self.server.as_ref().is_some_and(|server| !server.deaf && !server.told_end)
            && self.abort.is_none()
            && !self.client_ended
            && !self.up.has_unsent()
            && !self.up.has_unjudged()
            && self.up.at_boundary()
    }

    /// Asks, when it is time to. True: it was asked.
    pub(super) fn poll_inquire(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.may_inquire() {
            return false;
        }
        // Others may wait for a server that is shared.
        if !self.parking && self.naming.is_none() {
            let at = self.inquire_at.get_or_insert_with(|| Box::pin(tokio::time::sleep(INQUIRE_AFTER)));
            if at.as_mut().poll(cx).is_pending() {
                return false;
            }
        }
        self.inquire_at = None;
        let kept = self.tracker.kept();
        let question = Inquiry::question(kept.names(), kept.asks_for_statements());
        self.up.insert(&question);
        self.sent_up += question.len() as u64;
        self.inquiry = Some(Box::default());
        true
    }

    /// Whether a message of the server, of which `seen` bytes are there, answers a question of ours.
    #[inline]
    pub(super) fn is_for_us(&mut self, header: Header, seen: usize) -> bool {
        let body = &self.down.unjudged()[HEADER_BYTES..seen];
        if self.tracker.listens() && self.tracker.hear(header.tag, body) {
            return true;
        }
        let Some(inquiry) = &mut self.inquiry else { return false };
        match inquiry.hear(header.tag, body, seen == header.total) {
            Heard::Others => return false,
            Heard::Ours => {}
            Heard::End => {
                let inquiry = self.inquiry.take().unwrap_or_default();
                self.tracker.learn(inquiry.conclude());
            }
        }
        true
    }
}
