//! Answers given without a server: the error that a lost transaction, or a wait in vain, ends with.
//!
//! A client that was in a transaction block still is in one, a failed one, until it ends it: as with any error of
//! Postgres. Told that it is in none, one that does not look (a script, a queue of requests) would have what it sends next
//! committed one by one. The next server is put into the same state (`wire/inquiry.rs`, `failing`). Where what was lost may
//! have ended the block, the client is in none.

use super::{Event, Relay};
use crate::guard::{self, Marks};
use crate::wire::header::{HEADER_BYTES, Header, c_string};
use crate::wire::lane::Front;
use crate::wire::reply::ready_for_query;

/// What the client is still to be told, by either protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Abort {
    /// This error, in answer to its next request.
    Next { error: Vec<u8>, in_block: bool },
    /// It was told; everything up to its Sync is dropped.
    SkipToSync { in_block: bool },
}

/// What to do with one message of the client.
enum Answer {
    Drop,
    /// The error and that it may go on, in a block that has failed or outside of any.
    Whole {
        error: Vec<u8>,
        in_block: bool,
    },
    /// The error; the rest of the batch is skipped.
    Begin {
        error: Vec<u8>,
        in_block: bool,
    },
    Ready {
        in_block: bool,
    },
    /// What Postgres would say, whatever became of the transaction; the error is still to be told.
    Closed,
    Synced,
    Event(Event),
}

const CLOSE_COMPLETE: [u8; 5] = [b'3', 0, 0, 0, 4];

/// As ReadyForQuery says it.
fn status(in_block: bool) -> u8 {
    if in_block { b'E' } else { b'I' }
}

impl Relay {
    /// The transaction is gone: answers what is in flight with `error`, or keeps it for the next request.
    pub fn abort_with(&mut self, error: Vec<u8>) {
        let (answers, batch) = self.tracker.outstanding();
        let told = std::mem::take(&mut self.block_told);
        let in_block = told || self.tracker.in_transaction() && !self.tracker.may_have_ended();
        for _ in 0..answers {
            self.down.insert(&error);
            self.down.insert(&ready_for_query(status(in_block)));
        }
        self.abort = if batch {
            self.down.insert(&error);
            Some(Abort::SkipToSync { in_block })
        } else {
            (answers == 0).then_some(Abort::Next { error, in_block })
        };
        self.tracker.reset();
        if self.abort.is_none() {
            self.tracker.is_told(status(in_block));
        }
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
            if whole && self.opens_block_here(header) {
                return None;
            }
            match self.answer(header, whole) {
                Answer::Drop => {}
                Answer::Whole { error, in_block } => {
                    self.down.insert(&error);
                    self.tell_ready(in_block);
                }
                Answer::Begin { error, in_block } => {
                    self.down.insert(&error);
                    self.abort = Some(Abort::SkipToSync { in_block });
                }
                Answer::Ready { in_block } => self.tell_ready(in_block),
                Answer::Closed => {
                    self.forget_closed(header);
                    self.down.insert(&CLOSE_COMPLETE);
                }
                Answer::Synced => self.down.insert(&ready_for_query(b'T')),
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

    fn tell_ready(&mut self, in_block: bool) {
        self.down.insert(&ready_for_query(status(in_block)));
        self.tracker.is_told(status(in_block));
        self.abort = None;
    }

    /// A Close that no server gets.
    fn forget_closed(&mut self, header: Header) {
        let message = &self.up.unjudged()[..header.total];
        if let Some(naming) = &mut self.naming {
            naming.rewrite(message, true, 0, &mut Vec::new());
        }
        if let Some((name, _)) = message[HEADER_BYTES..].strip_prefix(b"S").and_then(c_string) {
            self.tracker.forget_statement(name);
        }
    }

    /// Whether a message of the client may end a transaction block. What is not seen whole may.
    fn may_end_block(&self, header: Header, whole: bool) -> bool {
        let body = self.up.unjudged().get(HEADER_BYTES..header.total).filter(|_| whole);
        let Some(body) = body else { return matches!(header.tag, b'Q' | b'P' | b'B') };
        let ends = |text: &[u8]| Marks::may_end_block(guard::read(text));
        match header.tag {
            b'Q' => ends(body),
            b'P' => c_string(body).is_none_or(|(_, text)| ends(text)),
            b'B' => {
                let statement = c_string(body).and_then(|(_, rest)| c_string(rest));
                statement.is_none_or(|(name, _)| self.tracker.may_end(name))
            }
            _ => false,
        }
    }

    fn answer(&mut self, header: Header, whole: bool) -> Answer {
        debug_assert!(header.total >= HEADER_BYTES);
        let ends = self.abort.is_some() && self.may_end_block(header, whole);
        match (header.tag, &mut self.abort) {
            // Data of a COPY that has failed; and a Flush, which has no answer of its own.
            (b'd' | b'c' | b'f' | b'H', _) => Answer::Drop,
            (b'X', _) => Answer::Event(Event::ClientClosed),
            (b'Q' | b'P' | b'B' | b'E' | b'D' | b'C' | b'S' | b'F', None) => Answer::Event(Event::Request),
            // Drivers close statements on the way and do not look at the answer (tokio-postgres): the error of a lost block
            // would be overlooked, and its COMMIT answered as that of a block whose failure is known.
            (b'C', Some(Abort::Next { in_block: true, .. })) if whole => Answer::Closed,
            (b'S', Some(Abort::Next { in_block: true, .. })) => Answer::Synced,
            (b'Q' | b'F' | b'S', Some(Abort::Next { error, in_block })) => {
                Answer::Whole { error: std::mem::take(error), in_block: *in_block && !ends }
            }
            (b'P' | b'B' | b'E' | b'D' | b'C', Some(Abort::Next { error, in_block })) => {
                Answer::Begin { error: std::mem::take(error), in_block: *in_block && !ends }
            }
            (b'S', Some(Abort::SkipToSync { in_block })) => Answer::Ready { in_block: *in_block },
            (b'Q' | b'P' | b'B' | b'E' | b'D' | b'C' | b'F', Some(Abort::SkipToSync { in_block })) => {
                *in_block &= !ends;
                Answer::Drop
            }
            _ => Answer::Event(Event::ClientMalformed("invalid frontend message type")),
        }
    }
}
