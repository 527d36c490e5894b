//! Learning the transaction of a COMMIT before it is sent, so that its outcome can be found when its server is lost with
//! the answer. Pure.
//!
//! In front of what commits goes a question of ours, in the same write: which transaction id does this session have? The
//! server answers before it commits. Between requests that is a FunctionCall, which is neither parsed nor planned; within
//! a batch of the extended protocol, where a FunctionCall would end the transaction, it is a statement of its own name,
//! flushed. A session that is lost with its answer outstanding then knows what to ask its next server for
//! ([`Outcome::at_loss`]).

use super::header::c_string;
use super::reply::{begin, end, field, put_c_string, ready_for_query};
use std::sync::LazyLock;

/// `pg_current_xact_id_if_assigned()`: a number of the system catalogs (`pg_proc.dat`), the same since PostgreSQL 13.
const FUNCTION_OID: u32 = 5060;
/// The name of our statement and of its portal; no driver makes such a one.
const NAME: &[u8] = b"\x01quorate-xid";
/// Messages after the question that are remembered; of a longer request the outcome stays unknown.
const MAX_TAGS: usize = 12;
/// SQLSTATE of whatever is sent in a transaction that has failed.
const IN_FAILED_TRANSACTION: &[u8] = b"25P02";

/// What a statement does to its transaction, as far as its first word tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Whatever is none of the others; it may read from the client, or commit in between.
    #[default]
    Other,
    /// Returns rows, and writes only by what it calls.
    Reads,
    Writes,
    /// Opens a transaction block.
    Begins,
    /// Ends one by committing it, and does nothing else.
    Commits,
}

impl Kind {
    /// Of the text of a statement, zero-terminated or not. Only where the first word asks for it is the rest looked at:
    /// this is done for every statement.
    pub fn of(text: &[u8]) -> Kind {
        let text = text.trim_ascii_start();
        let word = text.iter().position(|b| !b.is_ascii_alphabetic()).unwrap_or(text.len());
        let (word, rest) = text.split_at(word);
        let is = |words: &[&str]| words.iter().any(|w| word.eq_ignore_ascii_case(w.as_bytes()));
        if is(&["commit", "end"]) {
            let rest = whole(rest);
            let rest = rest.strip_suffix(b";").unwrap_or(rest).trim_ascii();
            let alone = [&b""[..], b"work", b"transaction"].iter().any(|w| rest.eq_ignore_ascii_case(w));
            return if alone { Kind::Commits } else { Kind::Other };
        }
        if rest.first().is_some_and(|b| !b.is_ascii_whitespace() && !matches!(b, b';' | 0)) {
            return Kind::Other;
        }
        if is(&["insert", "update", "delete", "merge", "with"]) {
            Kind::Writes
        } else if is(&["select", "values", "table", "show"]) {
            Kind::Reads
        } else if is(&["begin", "start"]) {
            let rest = whole(rest);
            let alone = !rest.strip_suffix(b";").unwrap_or(rest).contains(&b';');
            if alone { Kind::Begins } else { Kind::Other }
        } else {
            Kind::Other
        }
    }
}

/// What the server calls a statement that opens a block.
pub fn opened(text: &[u8]) -> &'static str {
    match text.trim_ascii_start().first() {
        Some(b's' | b'S') => "START TRANSACTION",
        _ => "BEGIN",
    }
}

/// A text up to its end, without the space there.
fn whole(text: &[u8]) -> &[u8] {
    c_string(text).map_or(text, |(text, _)| text).trim_ascii_end()
}

/// What a batch of the extended protocol holds so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    other: bool,
    writes: bool,
    begins: bool,
}

impl Batch {
    pub fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Other => self.other = true,
            Kind::Writes => self.writes = true,
            Kind::Begins => self.begins = true,
            Kind::Reads | Kind::Commits => {}
        }
    }

    /// A question may stand behind what the batch holds: nothing of it takes what follows for its own.
    pub fn takes_question(self) -> bool {
        !self.other
    }

    /// Its Sync commits, outside a transaction block, what was written.
    pub fn commits_at_sync(self) -> bool {
        self.writes && !self.other && !self.begins
    }
}

/// The question between requests.
pub fn call() -> [u8; 15] {
    let mut out = [0; 15];
    out[0] = b'F';
    out[1..5].copy_from_slice(&14u32.to_be_bytes());
    out[5..9].copy_from_slice(&FUNCTION_OID.to_be_bytes());
    // No formats of arguments, no arguments, a binary result.
    out[14] = 1;
    out
}

/// The question within a batch. What it makes is closed again.
pub static STATEMENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut out = Vec::with_capacity(192);
    let mut message = |tag: u8, parts: &[&[u8]]| {
        let start = begin(&mut out, tag);
        for part in parts {
            out.extend_from_slice(part);
        }
        end(&mut out, start);
    };
    let mut name = Vec::with_capacity(NAME.len() + 1);
    put_c_string(&mut name, NAME);
    message(b'P', &[&name, b"SELECT pg_catalog.pg_current_xact_id_if_assigned()\0", &[0, 0]]);
    message(b'B', &[&name, &name, &[0, 0, 0, 0, 0, 1, 0, 1]]);
    message(b'E', &[&name, &[0; 4]]);
    message(b'C', &[b"P", &name]);
    message(b'C', &[b"S", &name]);
    message(b'H', &[]);
    out
});

/// What the server said of the session's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// It has written nothing.
    NoId,
    Id(u64),
}

/// What to do with a message while a question is being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is of the answer.
    Ours,
    /// It ends the answer.
    End,
    /// It is for the client.
    Others,
    /// It is for the client, and ends the transaction: what is said of the COMMIT is dropped up to its end.
    Failed,
}

/// The outcome of what commits next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// A question was sent, and what it is asked for is not answered.
    open: bool,
    learnt: Option<Learnt>,
    /// Tags of the client's messages behind the question.
    behind: Vec<u8>,
    /// More of them, or what the question does not tell of.
    more: bool,
    /// CloseComplete of the question's portal has come.
    closed: bool,
    failed: bool,
}

impl Outcome {
    /// A question is sent.
    pub fn ask(&mut self) {
        self.open = true;
        self.behind.clear();
        self.more = false;
    }

    /// The client's message behind it. `portal`: of a Describe, that of a portal.
    #[inline]
    pub fn behind(&mut self, tag: u8, portal: bool) {
        if !self.open {
            return;
        }
        if self.behind.len() == MAX_TAGS {
            self.more = true;
            return;
        }
        self.behind.push(if tag == b'D' && portal { b'd' } else { tag });
    }

    /// Something else than what the question was put in front of will be carried out behind it.
    pub fn spoil(&mut self) {
        self.more = true;
    }

    /// The client's ReadyForQuery: what was learnt was of what it answers.
    #[inline]
    pub fn answered(&mut self) {
        self.open = false;
        self.learnt = None;
        self.failed = false;
    }

    /// The same, of a request before the question that was asked last, which has no answer yet.
    #[inline]
    pub fn answered_before(&mut self) {
        self.learnt = None;
        self.failed = false;
    }

    /// The COMMIT was never carried out, and the client has been told why.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Of the answer to such a COMMIT: what the client, which has been told, does not hear.
    pub fn is_of_failed(&self, tag: u8, body: &[u8]) -> bool {
        match tag {
            b'Z' | b'A' | b'S' | b'N' => false,
            b'E' => !is_fatal(body),
            _ => true,
        }
    }

    /// A message of the answer to [`call`].
    pub fn hear_call(&mut self, tag: u8, body: &[u8]) -> Heard {
        match tag {
            b'V' => {
                self.learnt = Some(learn(body));
                Heard::Ours
            }
            b'Z' => Heard::End,
            b'E' if is_fatal(body) => Heard::Others,
            b'E' if field(body, b'C') == Some(IN_FAILED_TRANSACTION) => {
                // The COMMIT will say that it rolls back.
                self.learnt = Some(Learnt::NoId);
                Heard::Ours
            }
            b'E' => {
                self.learnt = Some(Learnt::NoId);
                self.failed = true;
                Heard::Failed
            }
            _ => Heard::Others,
        }
    }

    /// A message of the answer to [`statement`], its ParseComplete being the first.
    pub fn hear_statement(&mut self, tag: u8, body: &[u8]) -> Heard {
        match tag {
            b'D' => {
                // One column behind the number of columns.
                self.learnt = Some(learn(body.get(2..).unwrap_or_default()));
                Heard::Ours
            }
            b'3' if std::mem::replace(&mut self.closed, true) => {
                self.closed = false;
                Heard::End
            }
            b'1' | b'2' | b'3' | b'C' => Heard::Ours,
            _ => Heard::Others,
        }
    }

    /// The server is gone, and one answer is outstanding: what was learnt, and what the client waits for if it was
    /// committed.
    pub fn at_loss(&self) -> Option<(Learnt, Vec<u8>)> {
        let learnt = self.learnt?;
        let ends = matches!(self.behind.last(), Some(b'Q' | b'S'));
        let others = self.behind.split_last().map_or(&[][..], |(_, others)| others);
        let executed = self.behind.iter().filter(|tag| **tag == b'E').count();
        if self.more || !ends || executed > 1 || others.iter().any(|tag| matches!(tag, b'Q' | b'S')) {
            return None;
        }
        let mut answer = Vec::with_capacity(64);
        for tag in &self.behind {
            match tag {
                b'P' => answer.extend_from_slice(&empty(b'1')),
                b'B' => answer.extend_from_slice(&empty(b'2')),
                b'C' => answer.extend_from_slice(&empty(b'3')),
                b'd' => answer.extend_from_slice(&empty(b'n')),
                b'D' => {
                    answer.extend_from_slice(&[b't', 0, 0, 0, 6, 0, 0]);
                    answer.extend_from_slice(&empty(b'n'));
                }
                b'E' => complete(&mut answer),
                b'H' => {}
                b'Q' => {
                    complete(&mut answer);
                    answer.extend_from_slice(&ready_for_query(b'I'));
                }
                b'S' => answer.extend_from_slice(&ready_for_query(b'I')),
                _ => return None,
            }
        }
        Some((learnt, answer))
    }
}

fn is_fatal(error: &[u8]) -> bool {
    matches!(field(error, b'V'), Some(b"FATAL" | b"PANIC"))
}

fn empty(tag: u8) -> [u8; 5] {
    [tag, 0, 0, 0, 4]
}

fn complete(answer: &mut Vec<u8>) {
    let start = begin(answer, b'C');
    put_c_string(answer, b"COMMIT");
    end(answer, start);
}

/// A value behind its length; -1 is none.
fn learn(value: &[u8]) -> Learnt {
    match value.split_first_chunk::<4>() {
        Some(([0, 0, 0, 8], id)) => {
            <[u8; 8]>::try_from(id).map_or(Learnt::NoId, |id| Learnt::Id(u64::from_be_bytes(id)))
        }
        _ => Learnt::NoId,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn statements_are_told_by_their_first_words() {
        for (text, kind) in [
            ("commit", Kind::Commits),
            (" END Transaction ;\0", Kind::Commits),
            ("COMMIT WORK", Kind::Commits),
            ("commit and chain", Kind::Other),
            ("commit prepared 'x'", Kind::Other),
            ("commit; select 1", Kind::Other),
            ("Insert into t values (1)", Kind::Writes),
            ("with x as (select 1) insert into t select * from x", Kind::Writes),
            ("select 1", Kind::Reads),
            ("BEGIN;", Kind::Begins),
            ("start transaction", Kind::Begins),
            ("begin; insert into t values (1); commit;", Kind::Other),
            ("copy t from stdin", Kind::Other),
            ("/* a */ insert into t values (1)", Kind::Other),
            ("selectx", Kind::Other),
            ("select$1", Kind::Other),
            ("", Kind::Other),
        ] {
            assert_eq!(Kind::of(text.as_bytes()), kind, "{text}");
        }
    }

    #[test]
    fn an_id_is_learnt_and_the_rest_of_the_answer_known() {
        let mut outcome = Outcome::default();
        outcome.ask();
        outcome.behind(b'Q', false);
        assert_eq!(outcome.at_loss(), None);
        assert_eq!(outcome.hear_call(b'V', &[0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 2]), Heard::Ours);
        assert_eq!(outcome.hear_call(b'Z', b"T"), Heard::End);
        let (learnt, answer) = outcome.at_loss().unwrap();
        assert_eq!(learnt, Learnt::Id((1 << 32) + 2));
        assert_eq!(answer, b"C\0\0\0\x0bCOMMIT\0Z\0\0\0\x05I");
        outcome.answered();
        assert_eq!(outcome.at_loss(), None);

        outcome.ask();
        for (tag, portal) in [(b'P', false), (b'B', false), (b'D', true), (b'E', false), (b'S', false)] {
            outcome.behind(tag, portal);
        }
        assert_eq!(outcome.hear_call(b'V', &[0xff; 4]), Heard::Ours);
        let (learnt, answer) = outcome.at_loss().unwrap();
        assert_eq!(learnt, Learnt::NoId);
        let tags: Vec<u8> =
            answer.split_inclusive(|b| *b == 4 || *b == b'I').filter_map(|m| m.first().copied()).collect();
        assert_eq!(tags[..3], *b"12n");
        // A request behind it: whose answer is outstanding is not known.
        outcome.behind(b'Q', false);
        assert_eq!(outcome.at_loss(), None);
    }

    #[test]
    fn a_question_within_a_batch_ends_with_its_second_close() {
        let mut outcome = Outcome::default();
        outcome.ask();
        outcome.behind(b'S', false);
        let row = [&[0, 1, 0, 0, 0, 8][..], &7u64.to_be_bytes()].concat();
        let heard: Vec<Heard> =
            [(b'1', &b""[..]), (b'2', b""), (b'D', &row), (b'C', b"SELECT 1\0"), (b'3', b""), (b'3', b"")]
                .iter()
                .map(|(tag, body)| outcome.hear_statement(*tag, body))
                .collect();
        assert_eq!(heard, [Heard::Ours, Heard::Ours, Heard::Ours, Heard::Ours, Heard::Ours, Heard::End]);
        assert_eq!(outcome.at_loss(), Some((Learnt::Id(7), ready_for_query(b'I').to_vec())));
    }

    #[test]
    fn an_error_of_the_question_is_the_clients_unless_the_transaction_had_failed() {
        let mut outcome = Outcome::default();
        assert_eq!(outcome.hear_call(b'E', b"SERROR\0VERROR\0C25P02\0Mx\0\0"), Heard::Ours);
        assert!(!outcome.has_failed());
        assert_eq!(outcome.hear_call(b'E', b"SFATAL\0VFATAL\0C57P01\0Mx\0\0"), Heard::Others);
        assert_eq!(outcome.hear_call(b'E', b"SERROR\0VERROR\0C57014\0Mx\0\0"), Heard::Failed);
        assert!(outcome.has_failed());
        outcome.answered();
        assert!(!outcome.has_failed());
    }
}
