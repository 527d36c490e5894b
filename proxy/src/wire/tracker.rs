//! What a session is in the middle of: the requests whose answers are outstanding, the transaction, and what the
//! backend keeps for it. From this follows what can be done for the client when the backend is lost ([`loss`]).
//!
//! The tracker is told of every message in both directions, whole or by its beginning. It errs towards caution: a
//! request that might have committed something counts as one that did.

mod loss;
mod outstanding;

use super::header::c_string;
use super::inquiry::{Known, statement_name};
use super::kept::Kept;
use super::outcome::{self, Batch, Heard, Kind, Outcome};
use crate::guard::{self, Marks};
pub use loss::{Committing, Loss};
use outstanding::{CopyIn, Outstanding, Wait};
use std::collections::VecDeque;

/// Requests without an answer that a session may have; above this the relay stops reading from the client.
pub const MAX_OUTSTANDING: usize = 64 * 1024;

/// The form in which the server is asked for the transaction that is about to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    Call,
    Statement,
}

/// What a statement that was prepared may do to the transaction block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Does {
    commits: bool,
    /// Commits it or rolls it back.
    ends: bool,
}

impl Does {
    fn more(&mut self, marks: Marks) {
        self.commits |= marks.has(Marks::MAY_COMMIT);
        self.ends |= marks.may_end_block();
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracker {
    /// Of the last ReadyForQuery: idle `I`, in a transaction `T`, in a failed one `E`.
    status: u8,
    waits: Outstanding,
    /// Extended-protocol messages were sent and no Sync after them.
    batch: bool,
    /// What was begun last is a Sync that ends nothing, and so is all before it that has no answer.
    bare_sync: bool,
    /// All that is in flight is a Query that opens a block, and nothing of its answer has come. This is what it is.
    opens: Option<&'static str>,
    /// The server waits for the client's copy data.
    copy_in: bool,
    /// A request in flight may have executed something.
    executes: bool,
    /// A request in flight may have committed something.
    commits: bool,
    /// A request in flight may have ended the transaction block.
    ends: bool,
    /// The unnamed statement, and all named ones together.
    unnamed: Does,
    named: Does,
    /// A statement that may commit was bound in this transaction.
    bound_commits: bool,
    /// A statement mentioned set_config: its parameters are looked at too.
    watches_binds: bool,
    /// The transaction block of the last ReadyForQuery has ended since, within a request of several statements.
    ended_block: bool,
    /// A transaction block was opened since the last ReadyForQuery.
    opened_block: bool,
    kept: Kept,
    /// Parse messages of ours that are not answered, by their numbers among all.
    ours: VecDeque<u32>,
    outcome: Outcome,
    /// When the last question was sent, a request in flight might have ended the transaction, or there was none.
    asked_too_late: bool,
    /// What is bound in the batch that was begun.
    bound: Batch,
    unnamed_kind: Kind,
    /// A question stands in the batch that was begun.
    asked: bool,
    /// The answer to a question within a batch has begun.
    hearing: bool,
    /// Whether the session will be moved by whoever keeps this: what its backend holds is remembered.
    remembers: bool,
    /// Requests begun, for those who have to tell one from the next.
    requests: u64,
}

impl Default for Tracker {
    fn default() -> Self {
        Tracker {
            status: b'I',
            waits: Outstanding::default(),
            batch: false,
            bare_sync: false,
            opens: None,
            copy_in: false,
            executes: false,
            commits: false,
            ends: false,
            unnamed: Does::default(),
            named: Does::default(),
            bound_commits: false,
            watches_binds: false,
            ended_block: false,
            opened_block: false,
            kept: Kept::default(),
            ours: VecDeque::new(),
            outcome: Outcome::default(),
            asked_too_late: false,
            bound: Batch::default(),
            unnamed_kind: Kind::Other,
            asked: false,
            hearing: false,
            remembers: false,
            requests: 0,
        }
    }
}

impl Tracker {
    /// One that remembers what a backend holds for the session.
    pub fn remembering() -> Tracker {
        Tracker { remembers: true, ..Tracker::default() }
    }

    /// What the client prepares has other names on its servers ([`Naming`](super::naming::Naming)).
    pub fn share_servers(&mut self) {
        self.kept.rename();
    }

    /// A Parse of ours is sent within what the client sends, behind `before` others.
    pub fn prepare_ours(&mut self, before: u32) {
        self.ours.push_back(before);
        self.kept.prepare(b"", b"", false);
    }

    /// No answer is outstanding and no request begun.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.waits.answers() == 0 && !self.batch && !self.copy_in
    }

    /// What is waited for next is the end of a transaction, which a quorum has to have first.
    #[inline]
    pub fn awaits_end(&self) -> bool {
        self.ends && !matches!(self.waits.front(), Some(Wait::Call | Wait::Statement(_)))
    }

    /// Quiet and outside a transaction: here a session may change its backend.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.status == b'I' && self.is_quiet()
    }

    pub fn status(&self) -> u8 {
        self.status
    }

    pub fn in_transaction(&self) -> bool {
        self.status != b'I'
    }

    /// Whether something in flight may have ended the transaction block.
    pub fn may_have_ended(&self) -> bool {
        self.ends
    }

    /// Whether a statement that was prepared may end a transaction block. One of which nothing is remembered may what any
    /// of them may.
    pub fn may_end(&self, statement: &[u8]) -> bool {
        if statement.is_empty() {
            return self.unnamed.ends;
        }
        let of_text = |text| guard::read(text).may_end_block();
        self.named.ends && self.kept.text_of(statement).is_none_or(of_text)
    }

    /// The client has been told that it is in a block: an open one (`T`), or one that has failed (`E`).
    pub fn is_told(&mut self, status: u8) {
        self.status = status;
    }

    /// The client, which is in none, has been told that its transaction block is open; its server has not been asked for it.
    pub fn opens_here(&mut self) {
        self.kept.sets_locally(false);
        self.kept.close(b"");
    }

    /// The server is asked to open that block now, in front of the client's next message or `alone`.
    pub fn open_block(&mut self, alone: bool) {
        self.waits.push(Wait::Open { alone });
        self.status = b'T';
        self.bare_sync = false;
        self.opens = None;
    }

    /// What the server says next is about such a block.
    #[inline]
    pub fn is_opening(&self) -> bool {
        matches!(self.waits.next(), Some(Wait::Open { .. }))
    }

    /// The same, and what the client sends meanwhile has to wait.
    #[inline]
    pub fn is_opening_alone(&self) -> bool {
        matches!(self.waits.next(), Some(Wait::Open { alone: true }))
    }

    pub fn requests(&self) -> u64 {
        self.requests
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    pub fn watches_binds(&self) -> bool {
        self.watches_binds
    }

    pub fn is_overfull(&self) -> bool {
        self.waits.len() >= MAX_OUTSTANDING
    }

    /// Answers that are outstanding, and whether a batch was begun behind them.
    pub fn outstanding(&self) -> (usize, bool) {
        (self.waits.answers(), self.batch)
    }

    /// A message of the client; `marks` of its text, if it has one. False: PostgreSQL knows no such message.
    #[inline]
    pub fn front(&mut self, tag: u8, body: &[u8], marks: Marks) -> bool {
        self.message(tag, body, marks, true)
    }

    /// As [`Tracker::front`], of a large message whose beginning is `body`; more of its text follows by
    /// [`Tracker::more_text`].
    pub fn front_of_large(&mut self, tag: u8, body: &[u8]) -> bool {
        self.message(tag, body, Marks::default(), false)
    }

    #[inline]
    fn message(&mut self, tag: u8, body: &[u8], marks: Marks, whole: bool) -> bool {
        self.outcome.behind(tag, body.first() == Some(&b'P'));
        match tag {
            b'Q' => {
                let local = self.is_quiet() && guard::sets_locally(body);
                self.kept.sets_locally(local);
                // A block that was only opened has done nothing.
                let opens = self.remembers && Kind::of(body) == Kind::Begins;
                let alone = opens && self.is_idle();
                self.begin(Wait::Simple);
                // What of a batch is before it ends with it.
                self.batch = false;
                self.bound = Batch::default();
                self.opens = alone.then(|| outcome::opened(body));
                self.executes |= !opens;
                self.ends |= marks.may_end_block();
                self.commits |= marks.has(Marks::MAY_COMMIT);
                self.asked = false;
                self.kept.close(b"");
                self.text(body, marks);
            }
            b'P' => self.parse(body, marks, whole),
            b'B' => self.bind(body),
            b'E' => {
                self.extend();
                self.executes = true;
                self.commits |= self.bound_commits;
            }
            b'D' => self.extend(),
            // It begins nothing: libpq sends one behind each Sync of a pipeline too.
            b'H' => {}
            b'C' => {
                self.extend();
                if let Some((b'S', rest)) = body.split_first()
                    && let Some((name, _)) = c_string(rest)
                {
                    self.kept.close(name);
                }
            }
            // Within a COPY the server ignores it.
            b'S' if self.copy_in => {}
            b'S' => {
                let bare = self.is_idle() || self.bare_sync;
                self.begin(Wait::Sync(self.kept.parses_sent()));
                self.bare_sync = bare;
                self.batch = false;
                self.bound = Batch::default();
                self.asked = false;
                self.kept.end_batch();
            }
            b'F' => {
                self.begin(Wait::Simple);
                self.batch = false;
                self.executes = true;
            }
            b'd' => {}
            b'c' | b'f' => self.end_copy(),
            b'X' => {}
            _ => return false,
        }
        true
    }

    fn begin(&mut self, wait: Wait) {
        if self.is_quiet() {
            self.requests += 1;
        }
        self.waits.push(wait);
        self.bare_sync = false;
        self.opens = None;
    }

    fn extend(&mut self) {
        if self.is_quiet() {
            self.requests += 1;
        }
        self.batch = true;
        self.bare_sync = false;
        self.opens = None;
    }

    fn text(&mut self, text: &[u8], marks: Marks) {
        self.marks(marks);
        if self.remembers {
            self.kept.settings(guard::own_settings(text, marks));
        }
    }

    fn marks(&mut self, marks: Marks) {
        self.kept.text(marks);
        self.watches_binds |= marks.has(Marks::SET_CONFIG);
    }

    fn parse(&mut self, body: &[u8], marks: Marks, whole: bool) {
        let is_first = self.is_quiet();
        self.extend();
        let name = statement_name(body);
        let local = is_first && name.is_empty() && guard::sets_locally(body.get(1..).unwrap_or_default());
        self.kept.sets_locally(local);
        if name.is_empty() {
            self.unnamed = Does::default();
            self.unnamed.more(marks);
        } else {
            self.named.more(marks);
        }
        if self.remembers {
            if name.is_empty() {
                self.unnamed_kind = Kind::of(body.get(1..).unwrap_or_default());
            }
            self.kept.prepare(name, body, whole);
        }
        self.text(body.get(name.len() + 1..).unwrap_or_default(), marks);
    }

    fn bind(&mut self, body: &[u8]) {
        self.extend();
        let statement = c_string(body).and_then(|(_, rest)| c_string(rest)).map(|(name, _)| name);
        self.ends |= statement.is_none_or(|name| self.may_end(name));
        self.bound_commits |= match statement {
            Some(b"") => self.unnamed.commits,
            Some(_) => self.named.commits,
            None => true,
        };
        if statement == Some(b"") {
            self.kept.bind_unnamed();
        } else {
            self.kept.sets_locally(false);
        }
        if self.remembers {
            let kind = statement.map_or(Kind::Other, |name| self.kind_of(name));
            self.bound.add(kind);
            if kind != Kind::Commits {
                // What was asked before does not tell of this.
                self.asked = false;
                self.outcome.spoil();
            }
        }
    }

    fn kind_of(&self, statement: &[u8]) -> Kind {
        if statement.is_empty() { self.unnamed_kind } else { self.kept.kind(statement) }
    }

    /// The question that must go in front of this message of the client, for the outcome of its commit to be known.
    #[inline]
    pub fn asks_before(&self, tag: u8, body: &[u8]) -> Option<Question> {
        if self.copy_in {
            return None;
        }
        let kind = match tag {
            // Outside a transaction block the end of a batch commits it.
            b'S' => {
                let commits = self.batch && self.status == b'I' && self.bound.commits_at_sync();
                return (commits && !self.asked).then_some(Question::Statement);
            }
            b'Q' if !self.batch => Kind::of(body),
            b'P' => c_string(body).map_or(Kind::Other, |(_, text)| Kind::of(text)),
            b'B' => {
                let statement = c_string(body).and_then(|(_, rest)| c_string(rest));
                statement.map_or(Kind::Other, |(name, _)| self.kind_of(name))
            }
            _ => return None,
        };
        if kind != Kind::Commits || self.asked {
            return None;
        }
        if !self.batch {
            return Some(Question::Call);
        }
        self.bound.takes_question().then_some(Question::Statement)
    }

    /// The question was put in front of what the client sends next.
    pub fn ask(&mut self, question: Question) {
        self.outcome.ask();
        // A Query ends with itself; a batch with its Sync.
        self.asked = true;
        self.asked_too_late = !self.in_transaction() || self.ends || self.commits;
        self.waits.push(match question {
            Question::Call => Wait::Call,
            Question::Statement => Wait::Statement(self.kept.parses_sent()),
        });
    }

    /// Whether the next answer may be of a question of ours, or what of a commit is not to be told.
    #[inline]
    pub fn listens(&self) -> bool {
        !matches!(self.waits.front(), None | Some(Wait::Simple | Wait::Sync(_))) || self.outcome.has_failed()
    }

    /// A message of the server, while [`Tracker::listens`]: false, if it is for the client.
    pub fn hear(&mut self, tag: u8, body: &[u8]) -> bool {
        let heard = match self.waits.next() {
            Some(Wait::Call) => self.outcome.hear_call(tag, body),
            Some(Wait::Open { alone }) => match tag {
                b'1' | b'2' | b'C' => Heard::Ours,
                b'3' if !alone => Heard::End,
                b'Z' => Heard::End,
                _ => Heard::Others,
            },
            Some(Wait::Statement(parses)) => {
                self.hearing |= tag == b'1' && self.kept.parses_answered() == parses;
                if !self.hearing {
                    return false;
                }
                self.outcome.hear_statement(tag, body)
            }
            _ => return self.outcome.has_failed() && self.outcome.is_of_failed(tag, body),
        };
        if heard == Heard::End {
            self.hearing = false;
            self.waits.heard();
        }
        matches!(heard, Heard::Ours | Heard::End)
    }

    /// More of a large text was sent.
    pub fn more_text(&mut self, marks: Marks) {
        self.marks(marks);
        self.commits |= marks.has(Marks::MAY_COMMIT);
        self.ends |= marks.may_end_block();
        self.unnamed.more(marks);
        self.named.more(marks);
    }

    fn end_copy(&mut self) {
        if self.copy_in {
            self.copy_in = false;
        } else if !self.is_quiet() {
            // It may have been sent before the server says that it wants data.
            self.waits.push(Wait::CopyEnd);
        }
    }

    /// `ReadyForQuery`.
    #[inline]
    pub fn ready(&mut self, status: u8) {
        if let Some(Wait::Sync(parses)) = self.waits.answered() {
            self.kept.synced(parses);
            while self.ours.front().is_some_and(|number| (parses.wrapping_sub(*number) as i32) > 0) {
                self.ours.pop_front();
            }
        }
        if self.waits.questions() == 0 {
            self.outcome.answered();
        } else {
            self.outcome.answered_before();
        }
        self.hearing = false;
        self.status = status;
        self.copy_in = false;
        self.ended_block = false;
        self.opened_block = false;
        if status == b'I' && self.waits.answers() == 0 {
            self.bound_commits = false;
        }
        if self.waits.answers() == 0 && !self.batch {
            self.executes = false;
            self.commits = false;
            self.ends = false;
            self.waits.clear();
            if status == b'I' {
                self.kept.settle();
            }
        }
    }

    /// `CopyInResponse`: what the server reads until the copy's end is data, and a Sync among it is ignored.
    pub fn copy_in_response(&mut self) {
        let copy = self.waits.copies_in();
        self.copy_in = copy != CopyIn::Ended;
        self.batch |= copy == CopyIn::GoesInBatch;
    }

    /// Whether a CommandComplete or ReadyForQuery, not told to the tracker yet, may tell of a commit. Outside a
    /// transaction block every statement commits by itself, and so does the end of a batch.
    pub fn may_tell_of_commit(&self, tag: u8, body: &[u8]) -> bool {
        let command = body.strip_suffix(b"\0").unwrap_or(body);
        match tag {
            b'C' => {
                let begins = matches!(command, b"BEGIN" | b"START TRANSACTION");
                let ends = command.starts_with(b"COMMIT") || command == b"PREPARE TRANSACTION";
                let inside = self.in_transaction() || self.opened_block;
                ends || !begins && (!inside || self.ended_block)
            }
            b'Z' => body.first() == Some(&b'I') && self.executes,
            _ => false,
        }
    }

    /// The body of a CommandComplete.
    #[inline]
    pub fn complete(&mut self, body: &[u8]) {
        let command = body.strip_suffix(b"\0").unwrap_or(body);
        self.opens = None;
        self.ended_block |= matches!(command, b"COMMIT" | b"ROLLBACK" | b"PREPARE TRANSACTION");
        self.opened_block |= matches!(command, b"BEGIN" | b"START TRANSACTION");
        self.kept.complete(command);
    }

    /// `ParseComplete`. False: of a Parse of ours.
    #[inline]
    pub fn parse_complete(&mut self) -> bool {
        let is_ours = self.ours.front().is_some_and(|number| *number == self.kept.parses_answered());
        if is_ours {
            self.ours.pop_front();
        }
        self.kept.parse_complete();
        !is_ours
    }

    /// A ParameterStatus after startup, its value different from before.
    pub fn parameter(&mut self) {
        self.kept.parameter();
        if self.is_idle() {
            self.kept.settle();
        }
    }

    /// The server was asked what it holds, and said this.
    pub fn learn(&mut self, known: Option<Known>) {
        self.kept.learn(known);
    }

    /// A statement could not be prepared again.
    pub fn forget_statement(&mut self, name: &[u8]) {
        self.kept.close(name);
    }

    /// Whether the answer that comes next is that of a Query.
    pub fn answers_simple(&self) -> bool {
        self.waits.front() == Some(Wait::Simple)
    }

    /// Nothing is in flight any more: it never reached a server, or the session has been told that it was lost.
    pub fn reset(&mut self) {
        let mut kept = std::mem::take(&mut self.kept);
        kept.forget_fresh();
        *self = Tracker {
            kept,
            requests: self.requests,
            remembers: self.remembers,
            // Of statements that are prepared again.
            unnamed: self.unnamed,
            named: self.named,
            watches_binds: self.watches_binds,
            ..Tracker::default()
        };
    }
}

#[cfg(test)]
mod tests;
