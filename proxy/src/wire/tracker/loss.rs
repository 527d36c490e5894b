//! What the loss of its backend means for a session: a verdict on what the tracker knows, and on the last words of the
//! backend that its client was not told.

use super::super::header::{HEADER_BYTES, peek};
use super::super::outcome::Learnt;
use super::{Tracker, Wait};

/// What the loss of the backend means for the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing: the next request goes to another backend.
    Keep,
    /// Only this many Syncs were in flight that ended nothing: they are answered.
    Synced(usize),
    /// Only the Query was in flight that opens a block, whose CommandComplete says this: it is answered, and the
    /// transaction is gone.
    Opened(&'static str),
    /// Its transaction is gone for certain.
    Aborted,
    /// Something was kept that is gone: named.
    State(String),
    /// A transaction was committing that can be asked for.
    Committing(Box<Committing>),
    /// A statement was under way whose fate is not known; and what the session held, if that cannot be made anew.
    Unknown(Option<String>),
}

/// A commit whose answer was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committing {
    /// The transaction's id.
    pub id: u64,
    /// What the client is told if it has committed.
    pub answer: Vec<u8>,
    /// What the session has lost in either case.
    pub kept_if_committed: Option<String>,
    pub kept_if_aborted: Option<String>,
}

impl Tracker {
    /// The backend is gone: what of the session is gone with it? `rest`: what it had said last, and its client was not
    /// told; `said_all`: nothing more is missing.
    pub fn loss(&mut self, rest: &[u8], said_all: bool) -> Loss {
        let held = if self.listens() || self.next_is_statement() { self.hear_rest(rest) } else { Vec::new() };
        self.loss_with(held, said_all, said_all && rest.is_empty())
    }

    fn next_is_statement(&self) -> bool {
        self.waits.has_statement()
    }

    /// Looks for the answer to a question of ours. Returns what is the client's and came before its end.
    fn hear_rest(&mut self, mut rest: &[u8]) -> Vec<u8> {
        let mut held = Vec::new();
        while self.waits.questions() > 0
            && let Ok(Some(header)) = peek(rest)
            && header.total <= rest.len()
        {
            let (message, more) = rest.split_at(header.total);
            rest = more;
            if self.listens() && self.hear(header.tag, &message[HEADER_BYTES..]) {
                continue;
            }
            match header.tag {
                // A request has ended, or failed: what is asked for behind it is not reached.
                b'Z' | b'E' => break,
                b'1' if !self.parse_complete() => continue,
                b'S' | b'N' | b'A' => continue,
                _ => {}
            }
            held.extend_from_slice(message);
        }
        held
    }

    /// `heard_all`: everything that it said was told to the tracker before.
    fn loss_with(&self, held: Vec<u8>, said_all: bool, heard_all: bool) -> Loss {
        if self.is_idle() {
            return self.kept.describe().map_or(Loss::Keep, Loss::State);
        }
        if self.bare_sync {
            return self.kept.describe().map_or(Loss::Synced(self.waits.answers()), Loss::State);
        }
        if self.status == b'E' && self.is_quiet() {
            // Its client knows already that nothing of it will be.
            return self.kept.describe_after_abort().map_or(Loss::Keep, Loss::State);
        }
        let aborted = || self.kept.describe_after_abort().map_or(Loss::Aborted, Loss::State);
        if let Some(tag) = self.opens {
            return self.kept.describe().map_or(Loss::Opened(tag), Loss::State);
        }
        let alone = self.waits.answers() + usize::from(self.batch) <= 1;
        let next = self.waits.next();
        if said_all && matches!(next, Some(Wait::Call | Wait::Statement(_) | Wait::Open { .. })) {
            // It answers in order, and a question before it goes on to the commit behind it.
            return aborted();
        }
        if heard_all && self.waits.questions() > 0 && !self.asked_too_late {
            // Nor where requests before the question, which end nothing, have no answer: a driver that closes a statement, and
            // commits without waiting for the answer to that.
            return aborted();
        }
        if self.waits.answers() == 1
            && !self.batch
            && self.waits.are_all_clients()
            && let Some((learnt, answer)) = self.outcome.at_loss()
        {
            let Learnt::Id(id) = learnt else { return aborted() };
            return Loss::Committing(Box::new(Committing {
                id,
                answer: [held, answer].concat(),
                kept_if_committed: self.kept.describe(),
                kept_if_aborted: self.kept.describe_after_abort(),
            }));
        }
        let unknown = || Loss::Unknown(self.kept.describe_after_abort());
        if self.in_transaction() {
            // Of several requests in flight the first may have ended the transaction.
            let certain = self.is_quiet() || !self.executes || (alone && !self.commits);
            return if certain { aborted() } else { unknown() };
        }
        if self.executes { unknown() } else { aborted() }
    }
}
