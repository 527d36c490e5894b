//! A transaction block that was opened for the client, and not yet at the server.
//!
//! A plain BEGIN changes nothing at the server that anybody else could see, and it is nearly always followed at once by the
//! first statement. So it is answered here, and goes to the server in front of that statement, in the same write: one round
//! trip less a transaction, for the client, for the relay and for the backend. When nothing follows for a moment
//! ([`OPEN_AFTER`](crate::config::OPEN_AFTER)), it goes alone: the transaction's time (`now()`) and what others see of it (`pg_stat_activity`) are
//! those of the client's BEGIN, later by that moment at most.
//!
//! What follows must never be carried out outside the block, should the server refuse to open it. In front of a statement it
//! is therefore opened by the extended protocol, without a Sync: a server that has refused ignores everything up to the next
//! Sync, a Query too (PostgreSQL, `tcop/postgres.c`, `ignore_till_sync`), and the session is told that its transaction is
//! lost. Where it goes alone, what follows waits for its answer.
//!
//! A session that was told of its block and has sent nothing else can be moved: the next server opens it.

use super::{Relay, Role};
use crate::wire::header::{HEADER_BYTES, Header};
use crate::wire::open_block::{AHEAD, ALONE, opens_plainly};
use crate::wire::outcome::opened;
use crate::wire::reply::{command_complete, ready_for_query};
use std::task::Context;

impl Relay {
    /// Whether the message at the front, with nothing behind it, is a BEGIN that can be answered here; it then has been.
    pub(super) fn opens_block_here(&mut self, header: Header) -> bool {
        let message = self.up.unjudged();
        if header.tag != b'Q'
            || message.len() != header.total
            || self.block_told
            || self.role != Role::Entry
            || !self.tracker.is_idle()
            || !opens_plainly(&message[HEADER_BYTES..])
            || self.inquiry.is_some()
            || self.abort.is_some()
            || !self.down.at_boundary()
            || self.down.has_unjudged()
        {
            return false;
        }
        let tag = opened(&message[HEADER_BYTES..]);
        if let Some(naming) = &mut self.naming {
            // A Query ends the unnamed statement.
            naming.rewrite(message, true, 0, &mut Vec::new());
        }
        self.tracker.opens_here();
        self.up.remove(header.total);
        self.down.insert(&command_complete(tag));
        self.down.insert(&ready_for_query(b'T'));
        self.block_told = true;
        true
    }

    /// The client's next message belongs into a block that the server has not opened yet.
    #[inline]
    pub(super) fn open_block_for(&mut self, tag: u8) {
        if self.block_told && matches!(tag, b'Q' | b'P' | b'B' | b'E' | b'D' | b'C' | b'F' | b'S') {
            self.open_block(&AHEAD, false);
        }
    }

    fn open_block(&mut self, messages: &[u8], alone: bool) {
        self.block_told = false;
        self.open_block_at = None;
        self.up.insert(messages);
        self.sent_up += messages.len() as u64;
        self.tracker.open_block(alone);
    }

    /// Opens the block at the server when the client sends nothing else for a moment. True: it was sent.
    pub(super) fn poll_open_block(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.block_told || self.server.is_none() || self.up.has_unjudged() || !self.may_judge_up() {
            return false;
        }
        if self.is_being_cancelled() {
            return false;
        }
        let at = self.open_block_at.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.open_after)));
        if at.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.open_block(&ALONE, true);
        true
    }
}
