//! Answers given without a server: the error that a lost transaction, or a wait in vain, ends with.

use super::{Event, Relay};
use crate::wire::header::{HEADER_BYTES, Header};
use crate::wire::lane::Front;
use crate::wire::reply::ready_for_query;

/// What the client is still to be told, by either protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Abort {
    /// This error, in answer to its next request.
    Next(Vec<u8>),
    /// It was told; everything up to its Sync is dropped.
    SkipToSync,
}

/// What to do with one message of the client.
enum Answer {
    Drop,
    /// The error and that it may go on.
    Whole(Vec<u8>),
    /// The error; the rest of the batch is skipped.
    Begin(Vec<u8>),
    Ready,
    Event(Event),
}

impl Relay {
    /// The transaction is gone: answers what is in flight with `error`, or keeps it for the next request.
    pub fn abort_with(&mut self, error: Vec<u8>) {
        let (answers, batch) = self.tracker.outstanding();
        for _ in 0..answers {
            self.down.insert(&error);
            self.down.insert(&ready_for_query(b'I'));
        }
        self.abort = if batch {
            self.down.insert(&error);
            Some(Abort::SkipToSync)
        } else {
            (answers == 0).then_some(Abort::Next(error))
        };
        self.tracker.reset();
    }

    /// The commit in flight has succeeded, and this is what the client waits for.
    pub fn answer_with(&mut self, answer: &[u8]) {
        self.down.insert(answer);
        self.tracker.reset();
    }

    /// Judges what a client sends while there is no server.
    pub(super) fn judge_without_server(&mut self) -> Option<Event> {
        loop {
            let front = match self.up.front(|tag| matches!(tag, b'Q' | b'P' | b'B')) {
                Ok(front) => front,
                Err(_) => return Some(Event::ClientMalformed("invalid message length")),
            };
            let (header, whole) = match front {
                Front::Nothing => return None,
                Front::Part(bytes) => {
                    // Its beginning was answered, or sent to a server that is gone.
                    self.up.remove(bytes);
                    self.dropping_up &= !self.up.at_boundary();
                    continue;
                }
                Front::Whole(header) => (header, true),
                Front::Large(header) => (header, false),
            };
            match self.answer(header) {
                Answer::Drop => {}
                Answer::Whole(error) => {
                    self.down.insert(&error);
                    self.down.insert(&ready_for_query(b'I'));
                    self.abort = None;
                }
                Answer::Begin(error) => {
                    self.down.insert(&error);
                    self.abort = Some(Abort::SkipToSync);
                }
                Answer::Ready => {
                    self.down.insert(&ready_for_query(b'I'));
                    self.abort = None;
                }
                Answer::Event(event) => return Some(event),
            }
            if whole {
                self.up.remove(header.total);
            } else {
                self.up.begin_large(header);
                self.dropping_up = true;
            }
        }
    }

    fn answer(&mut self, header: Header) -> Answer {
        debug_assert!(header.total >= HEADER_BYTES);
        match (header.tag, &mut self.abort) {
            // Data of a COPY that has failed; and a Flush, which has no answer of its own.
            (b'd' | b'c' | b'f' | b'H', _) => Answer::Drop,
            (b'X', _) => Answer::Event(Event::ClientClosed),
            (b'Q' | b'P' | b'B' | b'E' | b'D' | b'C' | b'S' | b'F', None) => Answer::Event(Event::Request),
            (b'Q' | b'F' | b'S', Some(Abort::Next(error))) => Answer::Whole(std::mem::take(error)),
            (b'P' | b'B' | b'E' | b'D' | b'C', Some(Abort::Next(error))) => {
                Answer::Begin(std::mem::take(error))
            }
            (b'S', Some(Abort::SkipToSync)) => Answer::Ready,
            (b'Q' | b'P' | b'B' | b'E' | b'D' | b'C' | b'F', Some(Abort::SkipToSync)) => Answer::Drop,
            _ => Answer::Event(Event::ClientMalformed("invalid frontend message type")),
        }
    }
}
