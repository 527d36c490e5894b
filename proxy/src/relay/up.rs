//! From the client to the server.

use super::{Event, IDLE_REPLAY_BYTES, MAX_REPLAY_BYTES, Relay, Role, Step, poll_fill};
use crate::guard::{self, Marks, StreamedText};
use crate::wire::header::{HEADER_BYTES, Header, c_string};
use crate::wire::lane::Front;
use crate::wire::outcome;
use crate::wire::tracker::Question;
use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

thread_local! {
    /// The beginning of a message that is renamed.
    static RENAMED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Messages with a text to be guarded are seen whole if that is possible.
fn is_read_whole(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B' | b'F')
}

impl Relay {
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Stuck;
        loop {
            match self.poll_write_server(cx) {
                Poll::Ready(()) => {}
                Poll::Pending => return step,
            }
            if let Some(event) = self.stop_up.take() {
                return Step::Event(event);
            }
            if self.up.has_unjudged() {
                if self.server.is_none() {
                    if let Some(event) = self.judge_without_server() {
                        return Step::Event(event);
                    }
                    if self.down.has_unsent() {
                        return Step::Moved;
                    }
                } else if self.may_judge_up() {
                    self.judge_up();
                    if self.up.has_unsent() || self.stop_up.is_some() {
                        self.note_activity();
                        step = Step::Moved;
                        continue;
                    }
                    if self.down.has_unsent() {
                        return Step::Moved;
                    }
                }
            }
            if self.client_ended {
                let waits =
                    self.up.has_unjudged() && !matches!(self.up.front(is_read_whole), Ok(Front::Nothing));
                return if waits || self.is_told_end(cx) { step } else { Step::Event(Event::ClientClosed) };
            }
            if !self.up.has_space() || self.tracker.is_overfull() {
                return step;
            }
            match poll_fill(&mut self.client, &mut self.up, cx) {
                Poll::Ready(Ok(n)) if n > 0 => step = Step::Moved,
                // What it asked for before is still answered, as Postgres does.
                Poll::Ready(Ok(_)) => self.client_ended = true,
                Poll::Ready(Err(_)) => return Step::Event(Event::ClientClosed),
                Poll::Pending => return step,
            }
        }
    }

    /// Tells the server that nothing more comes; its last words, and its end, are waited for. False: there is none.
    fn is_told_end(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(server) = &mut self.server else { return false };
        if !server.told_end && !server.deaf {
            match Pin::new(&mut server.stream).poll_shutdown(cx) {
                Poll::Ready(Ok(())) => server.told_end = true,
                Poll::Ready(Err(_)) => server.deaf = true,
                Poll::Pending => {}
            }
        }
        true
    }

    /// Ready: nothing is left to be written.
    fn poll_write_server(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.up.has_unsent() {
            let Some(server) = &mut self.server else {
                self.up.discard_unsent();
                break;
            };
            if server.deaf {
                self.up.discard_unsent();
                break;
            }
            if server.pass.as_ref().is_some_and(|p| !p.may_enter()) {
                // The gate wakes us when that changes.
                return Poll::Pending;
            }
            match Pin::new(&mut server.stream).poll_write(cx, self.up.unsent()) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.up.advance(n);
                    server.dirty = server.stream.buffers();
                }
                // Its last words are still to be read.
                Poll::Ready(_) => server.deaf = true,
                Poll::Pending => return Poll::Pending,
            }
        }
        if let Some(server) = &mut self.server
            && server.dirty
        {
            match Pin::new(&mut server.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => server.dirty = false,
                Poll::Ready(Err(_)) => (server.dirty, server.deaf) = (false, true),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    /// The next message would begin a request, and none is to begin now.
    #[inline]
    pub(super) fn begins_nothing(&self) -> bool {
        (self.parking || self.paused) && self.tracker.is_idle()
    }

    /// A cancel of the request before is on its way, and what comes now would begin another one. The session is woken
    /// when it has arrived.
    #[inline]
    pub(super) fn is_being_cancelled(&mut self) -> bool {
        if !self.tracker.is_quiet() {
            return false;
        }
        // Told first: a cancel that is not seen here has to see it.
        self.note_activity();
        self.slot.is_cancelling()
    }

    /// Whether the server may get what the client sends. Between transactions also whether results could leave:
    /// a request that has not begun can still go to another primary. (What guards results is the check at their way
    /// out.)
    #[inline]
    pub(super) fn may_judge_up(&mut self) -> bool {
        // The server is answering a question of ours, or has yet to open the block for what comes.
        if self.begins_nothing() || self.inquiry.is_some() || self.tracker.is_opening_alone() {
            return false;
        }
        let idle = self.tracker.is_idle();
        let Some(server) = &mut self.server else { return false };
        server.pass.as_mut().is_none_or(|p| if idle { p.may_begin() } else { p.may_enter() })
    }

    /// Judges what the client sent, as far as it may go to the server now.
    fn judge_up(&mut self) {
        loop {
            let front = match self.up.front(is_read_whole) {
                Ok(front) => front,
                Err(_) => return self.malformed("invalid message length"),
            };
            match front {
                Front::Nothing => return,
                Front::Part(bytes) if self.dropping_up => {
                    self.up.remove(bytes);
                    self.dropping_up &= !self.up.at_boundary();
                }
                Front::Part(bytes) => {
                    if self.streamed.is_some() && !self.judge_streamed(bytes) {
                        return;
                    }
                    self.pass_up(bytes);
                }
                Front::Large(header) => {
                    if self.begins_nothing() || self.tracker.is_overfull() || self.is_being_cancelled() {
                        return;
                    }
                    self.open_block_for(header.tag);
                    if !self.begin_large_up(header) {
                        return;
                    }
                }
                Front::Whole(header) => {
                    if self.begins_nothing() || self.tracker.is_overfull() || self.is_being_cancelled() {
                        return;
                    }
                    if self.opens_block_here(header) {
                        return;
                    }
                    self.open_block_for(header.tag);
                    if !self.judge_message_up(header) {
                        return;
                    }
                }
            }
        }
    }

    /// False: judge no more for now.
    #[inline]
    fn judge_message_up(&mut self, header: Header) -> bool {
        let asked = self.outcomes && self.asks_for_outcome(header);
        let body = &self.up.unjudged()[HEADER_BYTES..header.total];
        let (marks, refused) = match (self.role, header.tag) {
            // Refused where it entered.
            (Role::Gate { .. }, b'Q') => (guard::read(body), false),
            (Role::Gate { .. }, b'P') => (guard::read(c_string(body).map_or(body, |(_, text)| text)), false),
            (_, b'Q') => read_text(body),
            (_, b'P') => read_text(c_string(body).map_or(body, |(_, text)| text)),
            (_, b'B') if self.tracker.watches_binds() => read_values(body),
            (_, b'F') => read_values(body),
            _ => (Marks::default(), false),
        };
        self.unguarded |= marks.has(Marks::UNGUARDED);
        let quiet = !asked && self.tracker.is_quiet();
        if refused {
            let other = guard::refused_message(header.tag, body);
            let tag = other[0];
            // Nothing is told of its text: it does nothing.
            self.tracker.front(tag, &other[HEADER_BYTES..], Marks::default());
            self.note_request(quiet, &other);
            self.up.replace(header.total, &other);
            self.sent_up += other.len() as u64;
            self.refused += 1;
            return true;
        }
        if !self.tracker.front(header.tag, body, marks) {
            self.malformed("invalid frontend message type");
            return false;
        }
        if self.keeps_replay() {
            self.begin_replay(quiet);
            let message = &self.up.unjudged()[..header.total];
            append_replay(&mut self.replay, message);
        }
        if self.naming.is_none() || !self.rename(header, header.total) {
            self.up.pass(header.total);
            self.sent_up += header.total as u64;
        }
        if header.tag == b'X' {
            self.client_ended = true;
            return false;
        }
        true
    }

    /// Puts the question for the transaction's id in front of what commits it. True: it did.
    #[inline]
    fn asks_for_outcome(&mut self, header: Header) -> bool {
        let body = &self.up.unjudged()[HEADER_BYTES..header.total];
        let Some(question) = self.tracker.asks_before(header.tag, body) else { return false };
        if self.keeps_replay() {
            self.begin_replay(self.tracker.is_quiet());
        }
        let sent = match question {
            Question::Call => {
                let call = outcome::call();
                self.up.insert(&call);
                call.len()
            }
            Question::Statement => {
                self.up.insert(&outcome::STATEMENT);
                outcome::STATEMENT.len()
            }
        };
        self.sent_up += sent as u64;
        self.tracker.ask(question);
        true
    }

    #[cold]
    fn begin_large_up(&mut self, header: Header) -> bool {
        let body = &self.up.unjudged()[HEADER_BYTES..];
        if !self.tracker.front_of_large(header.tag, body) {
            self.malformed("invalid frontend message type");
            return false;
        }
        self.replay.whole = false;
        let has_text =
            matches!(header.tag, b'Q' | b'P' | b'F') || (header.tag == b'B' && self.tracker.watches_binds());
        self.streamed = has_text.then(StreamedText::default);
        let seen = self.up.unjudged().len();
        if self.naming.is_none() || !self.rename(header, seen) {
            self.up.begin_large(header);
        }
        true
    }

    /// Gives what the client has prepared its name on the server, in a message of which `seen` bytes are there. False: it
    /// goes as it is. The rest of a large one is still to be judged.
    #[cold]
    fn rename(&mut self, header: Header, seen: usize) -> bool {
        let Some(naming) = &mut self.naming else { return false };
        if !matches!(header.tag, b'Q' | b'P' | b'B' | b'D' | b'C') {
            return false;
        }
        let is_parse = header.tag == b'P';
        if is_parse && naming.is_full() {
            self.malformed("too many prepared statements");
            return false;
        }
        let kept = self.tracker.kept();
        let whole = seen >= header.total;
        let is_named = self.up.unjudged().get(HEADER_BYTES).is_some_and(|first| *first != 0);
        let known = whole && !(is_parse && is_named && !kept.remembers_last());
        // The tracker has counted this one already.
        let parses = kept.parses_sent().wrapping_sub(u32::from(is_parse));
        RENAMED.with_borrow_mut(|out| {
            out.clear();
            let message = &self.up.unjudged()[..seen.min(header.total)];
            let Some(rewritten) = naming.rewrite(message, known, parses, out) else { return false };
            if !whole {
                self.up.begin_large(header);
            }
            self.up.remove(rewritten.head);
            self.up.insert(out);
            self.sent_up += out.len() as u64;
            if whole {
                let rest = header.total - rewritten.head;
                self.up.pass(rest);
                self.sent_up += rest as u64;
            }
            if rewritten.parses {
                self.tracker.prepare_ours(parses);
            }
            true
        })
    }

    /// Reads the next bytes of a text too large to be held. False: it must not go on.
    #[cold]
    fn judge_streamed(&mut self, bytes: usize) -> bool {
        let Some(streamed) = &mut self.streamed else { return true };
        let marks = streamed.read(&self.up.unjudged()[..bytes]);
        self.unguarded |= marks.has(Marks::UNGUARDED);
        if marks.has(Marks::SYNCHRONOUS_COMMIT) && self.role == Role::Entry {
            // Its beginning is at the server, which does not act on a message that never ends.
            self.stop_up = Some(Event::Refused);
            return false;
        }
        self.tracker.more_text(marks);
        true
    }

    fn pass_up(&mut self, bytes: usize) {
        self.up.pass(bytes);
        self.sent_up += bytes as u64;
        if self.up.at_boundary() {
            self.streamed = None;
        }
    }

    fn malformed(&mut self, why: &'static str) {
        self.stop_up = Some(Event::ClientMalformed(why));
    }

    #[inline]
    fn keeps_replay(&self) -> bool {
        self.role == Role::Entry && self.server.as_ref().is_some_and(|s| s.stream.is_peer())
    }

    /// A message follows; one that comes when all is quiet begins a request.
    fn begin_replay(&mut self, quiet: bool) {
        if quiet {
            self.replay.bytes.clear();
            self.replay.bytes.shrink_to(IDLE_REPLAY_BYTES);
            self.replay.whole = true;
            self.replay.start = self.sent_up;
        }
    }

    fn note_request(&mut self, quiet: bool, message: &[u8]) {
        if self.keeps_replay() {
            self.begin_replay(quiet);
            append_replay(&mut self.replay, message);
        }
    }
}

fn append_replay(replay: &mut super::Replay, message: &[u8]) {
    if replay.whole && replay.bytes.len() + message.len() <= MAX_REPLAY_BYTES {
        replay.bytes.extend_from_slice(message);
    } else {
        replay.whole = false;
    }
}

#[inline]
fn read_text(text: &[u8]) -> (Marks, bool) {
    let marks = guard::read(text);
    (marks, marks.any() && guard::refuses_marked(text, marks))
}

/// What the values of a Bind after `set_config`, or of a FunctionCall, may set.
fn read_values(body: &[u8]) -> (Marks, bool) {
    let unguarded = guard::mentions_client_min_messages(body);
    let marks = if unguarded { Marks::UNGUARDED } else { Marks::default() };
    (marks, guard::mentions_synchronous_commit(body))
}
