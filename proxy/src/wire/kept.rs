//! What a backend holds for a session beyond the transaction, and what is needed to make it anew at another backend.
//!
//! Three sources. Statements that the client prepared by the protocol are remembered as they came, once the server has
//! answered them. Everything else (settings, LISTEN, statements of PREPARE, temporary objects, cursors, locks) is not
//! guessed from texts: what was sent only says that something *may* have changed, and when the session is quiet its
//! server is asked what there is now ([`Inquiry`](super::inquiry::Inquiry)). What the server cannot say is kept as a bit.
//!
//! A transaction that is lost takes back what it changed, except for what is not of the transaction.

use super::header::c_string;
use super::inquiry::Known;
use super::outcome::Kind;
use crate::guard::Marks;
use std::collections::{BTreeMap, VecDeque};

/// Statements that are remembered, and their bytes; with more, the session counts as holding what cannot be moved until it
/// discards them all.
const MAX_STATEMENTS: usize = 1024;
const MAX_STATEMENT_BYTES: usize = 512 * 1024;

/// What is kept of a buffer when nothing is in it.
const IDLE_UNNAMED_BYTES: usize = 2 * 1024;
/// A longer text is not remembered for the unnamed statement.
const MAX_UNNAMED_BYTES: usize = 32 * 1024;

/// Names of settings of the application's own that are asked for.
const MAX_NAMES: usize = 64;

/// What Postgres keeps of a statement's name (`NAMEDATALEN` - 1).
const MAX_NAME_BYTES: usize = 63;

const SET: u16 = 1;
const LISTEN: u16 = 1 << 1;
const SQL_PREPARED: u16 = 1 << 2;
const CURSOR: u16 = 1 << 3;
const TEMP: u16 = 1 << 4;
const LOCK: u16 = 1 << 5;
const SET_CONFIG: u16 = 1 << 6;
/// Not asked for: nobody can tell.
const LOAD: u16 = 1 << 7;
const MANY_PREPARED: u16 = 1 << 8;
const UNKNOWN_SETTING: u16 = 1 << 9;
/// Asked, and not answered.
const UNANSWERED: u16 = 1 << 10;

const UNTOLD: u16 = LOAD | MANY_PREPARED | UNKNOWN_SETTING;
const NOT_ASKED_FOR: u16 = UNTOLD | UNANSWERED;
/// What a transaction that is lost does not take back.
const LASTING: u16 = SQL_PREPARED | LOCK | UNTOLD;

const WORDS: [(u16, &str); 11] = [
    (TEMP, "temporary objects"),
    (LISTEN, "LISTEN"),
    (CURSOR, "a cursor WITH HOLD"),
    (LOCK, "session-level advisory locks"),
    (SQL_PREPARED, "statements made by PREPARE"),
    (MANY_PREPARED, "more prepared statements than are remembered"),
    (SET, "settings made by SET"),
    (SET_CONFIG, "settings made by set_config"),
    (UNKNOWN_SETTING, "settings whose names are not known"),
    (LOAD, "a library made available by LOAD"),
    (UNANSWERED, "what its server did not tell when it was asked"),
];

/// A name, and the body of the Parse message that made it. The unnamed one is there only while a Bind of it may come
/// alone.
pub type Statements = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A Parse that was sent and not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pending {
    /// Counted over all of the session.
    number: u32,
    name: Box<[u8]>,
    body: Box<[u8]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// May have changed since the server was asked, by requests that have ended.
    stale: u16,
    /// The same, by what is in flight or in a transaction.
    fresh: u16,
    statements: Statements,
    statement_bytes: usize,
    /// The body of a Parse of the unnamed statement, which nothing of its batch has bound; or empty. A buffer that is used
    /// again: most clients send one with every statement.
    unnamed: Vec<u8>,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    parses_sent: u32,
    parses_answered: u32,
    /// Settings with a dot in their names, which the server lists nowhere.
    names: Vec<Box<[u8]>>,
    /// A cursor WITH HOLD may have been asked for.
    hold: bool,
    /// Statements have other names on the server.
    renames: bool,
    /// What is in flight is one SET LOCAL: its end says nothing of the session.
    sets_locally: bool,
    known: Known,
}

impl Kept {
    /// Statements have other names on the server from now on.
    pub fn rename(&mut self) {
        self.renames = true;
    }

    /// Whether the names of statements are asked for.
    pub fn asks_for_statements(&self) -> bool {
        !self.renames
    }

    /// Whether the server holds, or may hold, what the next client of the same server must not find, or what this one
    /// would miss at another.
    #[inline]
    pub fn holds(&self) -> bool {
        let Known { settings: _, channels, prepares, parsed: _, immovable } = &self.known;
        self.stale | self.fresh != 0 || immovable.is_some() || !channels.is_empty() || !prepares.is_empty()
    }

    /// What that is, in words.
    pub fn describe_hold(&self) -> Option<String> {
        let channel =
            || self.known.channels.first().map(|c| format!("LISTEN \"{}\"", String::from_utf8_lossy(c)));
        let prepare = || (!self.known.prepares.is_empty()).then(|| "statements made by PREPARE".to_owned());
        self.describe().or_else(channel).or_else(prepare)
    }

    /// The first thing that is lost with the server, in words.
    pub fn describe(&self) -> Option<String> {
        self.describe_bits(self.stale | self.fresh)
    }

    /// As [`Kept::describe`], when the transaction that is open is lost with it.
    pub fn describe_after_abort(&self) -> Option<String> {
        self.describe_bits(self.stale | self.fresh & LASTING)
    }

    fn describe_bits(&self, bits: u16) -> Option<String> {
        let word = WORDS.iter().find(|(bit, _)| bits & bit != 0);
        word.map(|(_, word)| (*word).to_owned()).or_else(|| self.known.immovable.clone())
    }

    /// The server should be asked what it holds now.
    pub fn is_stale(&self) -> bool {
        self.stale & !NOT_ASKED_FOR != 0
    }

    /// What is to be made anew at another server.
    pub fn known(&self) -> &Known {
        &self.known
    }

    pub fn statements(&self) -> &Statements {
        &self.statements
    }

    pub fn names(&self) -> &[Box<[u8]>] {
        &self.names
    }

    /// The server was asked, when nothing was in flight, and said this; none: it would not say.
    pub fn learn(&mut self, known: Option<Known>) {
        let Some(known) = known else {
            self.stale = self.stale & UNTOLD | UNANSWERED;
            return;
        };
        self.stale &= UNTOLD;
        let bytes = &mut self.statement_bytes;
        let renames = self.renames;
        self.statements.retain(|name, body| {
            // The server lists the named ones, under the client's names only where those are on it.
            let stays =
                renames || name.is_empty() || known.parsed.contains(&name[..name.len().min(MAX_NAME_BYTES)]);
            if !stays {
                *bytes -= body.len();
            }
            stays
        });
        self.known = known;
        self.known.parsed.clear();
    }

    /// A statement with these marks was sent.
    pub fn text(&mut self, marks: Marks) {
        if !marks.any() {
            return;
        }
        for (mark, bit) in [
            (Marks::MAKES_TEMP, TEMP),
            (Marks::ADVISORY_LOCK, LOCK),
            (Marks::ADVISORY_UNLOCK, LOCK),
            (Marks::SET_CONFIG, SET_CONFIG),
        ] {
            if marks.has(mark) {
                self.fresh |= bit;
            }
        }
        self.hold |= marks.has(Marks::HOLD);
    }

    /// A statement may make settings with these names, or (none) with names that cannot be told.
    pub fn settings(&mut self, names: Option<Vec<Vec<u8>>>) {
        let Some(names) = names else {
            self.fresh |= UNKNOWN_SETTING;
            return;
        };
        for name in names {
            if self.names.iter().any(|known| **known == *name) {
            } else if self.names.len() < MAX_NAMES {
                self.names.push(name.into());
            } else {
                self.fresh |= UNKNOWN_SETTING;
            }
        }
    }

    /// A Parse was sent. `whole`: that is all of it.
    pub fn prepare(&mut self, name: &[u8], body: &[u8], whole: bool) {
        let number = self.parses_sent;
        self.parses_sent = number.wrapping_add(1);
        if name.is_empty() {
            self.close(b"");
            self.unnamed.clear();
            // Where statements have other names, whoever gives them these knows this one too.
            if whole && !self.renames && body.len() <= MAX_UNNAMED_BYTES {
                self.unnamed.extend_from_slice(body);
            }
            return;
        }
        let count = self.statements.len() + self.pending.len();
        let bytes = self.statement_bytes + self.pending_bytes + body.len();
        if whole && count < MAX_STATEMENTS && bytes <= MAX_STATEMENT_BYTES {
            self.pending_bytes += body.len();
            self.pending.push_back(Pending { number, name: name.into(), body: body.into() });
        } else {
            self.fresh |= MANY_PREPARED;
        }
    }

    /// Whether the Parse that was sent last is remembered, if the server takes it.
    pub fn remembers_last(&self) -> bool {
        self.pending.back().is_some_and(|last| last.number.wrapping_add(1) == self.parses_sent)
    }

    fn next_pending(&mut self) -> Option<Pending> {
        let pending = self.pending.pop_front()?;
        self.pending_bytes -= pending.body.len();
        Some(pending)
    }

    /// The unnamed statement was bound. Nearly every client parses it anew for the next time.
    pub fn bind_unnamed(&mut self) {
        self.unnamed.clear();
        self.unnamed.shrink_to(IDLE_UNNAMED_BYTES);
    }

    /// A batch has ended. One that parsed the unnamed statement and did not bind it leaves that to the next: Go's pq waits
    /// for the answer in between, and there a session may get another server.
    pub fn end_batch(&mut self) {
        if self.unnamed.is_empty() {
            return;
        }
        let body = std::mem::take(&mut self.unnamed);
        if self.statement_bytes + self.pending_bytes + body.len() <= MAX_STATEMENT_BYTES {
            self.statement_bytes += body.len();
            self.statements.insert(Box::default(), body.into_boxed_slice());
        }
    }

    /// `ParseComplete`.
    #[inline]
    pub fn parse_complete(&mut self) {
        let number = self.parses_answered;
        self.parses_answered = number.wrapping_add(1);
        if self.pending.front().is_some_and(|first| first.number == number)
            && let Some(Pending { name, body, .. }) = self.next_pending()
        {
            self.close(&name);
            self.statement_bytes += body.len();
            self.statements.insert(name, body);
        }
    }

    /// How many Parse messages were sent: a Sync remembers it.
    pub fn parses_sent(&self) -> u32 {
        self.parses_sent
    }

    /// How many of them are answered.
    pub fn parses_answered(&self) -> u32 {
        self.parses_answered
    }

    /// The text of a named statement, and what is behind it, if it is remembered or on its way.
    pub fn text_of(&self, name: &[u8]) -> Option<&[u8]> {
        let pending = self.pending.iter().rev().find(|p| *p.name == *name).map(|p| &p.body);
        let body = pending.or_else(|| self.statements.get(name));
        body.and_then(|body| c_string(body)).map(|(_, text)| text)
    }

    /// What it does.
    pub fn kind(&self, name: &[u8]) -> Kind {
        self.text_of(name).map_or(Kind::Other, Kind::of)
    }

    /// The answer to a Sync has come, before which so many had been sent: those without an answer failed.
    #[inline]
    pub fn synced(&mut self, parses_sent: u32) {
        self.parses_answered = parses_sent;
        while self.pending.front().is_some_and(|first| (parses_sent.wrapping_sub(first.number) as i32) > 0) {
            self.next_pending();
        }
    }

    pub fn close(&mut self, name: &[u8]) {
        if let Some(body) = self.statements.remove(name) {
            self.statement_bytes -= body.len();
        }
    }

    /// Whether the statement that was sent last is a SET LOCAL, and the only one in flight.
    #[inline]
    pub fn sets_locally(&mut self, it_does: bool) {
        self.sets_locally = it_does;
    }

    /// A setting that Postgres reports was changed after startup.
    pub fn parameter(&mut self) {
        self.fresh |= SET;
    }

    /// A command was completed; `tag` is what CommandComplete says.
    #[inline]
    pub fn complete(&mut self, tag: &[u8]) {
        if let Some(b'S' | b'L' | b'U' | b'R' | b'P' | b'D' | b'C') = tag.first() {
            self.complete_command(tag);
        }
    }

    fn complete_command(&mut self, tag: &[u8]) {
        match tag {
            b"SET" if std::mem::take(&mut self.sets_locally) => {}
            b"SET" | b"RESET" => self.fresh |= SET,
            b"LISTEN" | b"UNLISTEN" => self.fresh |= LISTEN,
            b"LOAD" => self.fresh |= LOAD,
            b"PREPARE" | b"DEALLOCATE" => self.fresh |= SQL_PREPARED,
            b"DECLARE CURSOR" if self.hold => self.fresh |= CURSOR,
            b"DISCARD ALL" => {
                // What was sent behind it is not discarded, and what of it was noted is asked for.
                *self = Kept {
                    fresh: self.fresh & !UNTOLD,
                    pending: std::mem::take(&mut self.pending),
                    pending_bytes: self.pending_bytes,
                    parses_sent: self.parses_sent,
                    parses_answered: self.parses_answered,
                    renames: self.renames,
                    ..Kept::default()
                };
            }
            b"CLOSE CURSOR" | b"CLOSE CURSOR ALL" if self.known.immovable.is_some() => self.fresh |= CURSOR,
            b"DISCARD TEMP" => self.fresh |= TEMP,
            _ if tag.starts_with(b"DROP ") && self.known.immovable.is_some() => self.fresh |= TEMP,
            b"DEALLOCATE ALL" => {
                self.statements.clear();
                self.statement_bytes = 0;
                self.stale &= !MANY_PREPARED;
                self.fresh = self.fresh & !MANY_PREPARED | SQL_PREPARED;
            }
            _ => {}
        }
    }

    /// All is answered, and no transaction is open.
    #[inline]
    pub fn settle(&mut self) {
        self.stale |= std::mem::take(&mut self.fresh);
    }

    /// What is in flight has changed nothing: it never reached a server, or was lost with it, and what of it may have
    /// lasted was described.
    pub fn forget_fresh(&mut self) {
        self.fresh = 0;
        self.pending.clear();
        self.pending_bytes = 0;
        self.parses_sent = 0;
        self.parses_answered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(parsed: &[&[u8]], immovable: Option<&str>) -> Option<Known> {
        let parsed = parsed.iter().map(|name| (*name).into()).collect();
        Some(Known { parsed, immovable: immovable.map(str::to_owned), ..Known::default() })
    }

    #[test]
    fn what_may_have_changed_is_asked_for_and_then_known() {
        let mut kept = Kept::default();
        for tag in [&b"SELECT 1"[..], b"DECLARE CURSOR", b"DROP TABLE", b"ROLLBACK"] {
            kept.complete(tag);
        }
        kept.settle();
        assert!(!kept.is_stale() && kept.describe().is_none());
        kept.complete(b"SET");
        assert!(!kept.is_stale(), "not while the transaction may still end either way");
        assert!(kept.describe().is_some());
        assert_eq!(kept.describe_after_abort(), None, "it is taken back");
        kept.settle();
        assert!(kept.is_stale());
        kept.learn(known(&[], None));
        assert!(!kept.is_stale() && kept.describe().is_none());
        kept.text(crate::guard::read(b"declare c cursor with hold for select 1"));
        kept.complete(b"DECLARE CURSOR");
        kept.settle();
        assert_eq!(kept.describe().as_deref(), Some("a cursor WITH HOLD"));
        kept.learn(known(&[], Some("the cursor \"c\"")));
        assert_eq!(kept.describe().as_deref(), Some("the cursor \"c\""));
        kept.complete(b"CLOSE CURSOR");
        kept.settle();
        assert!(kept.is_stale(), "it may be gone");
        kept.complete(b"LOAD");
        kept.settle();
        kept.learn(known(&[], None));
        assert_eq!(kept.describe().as_deref(), Some("a library made available by LOAD"), "nobody can tell");
        kept.complete(b"DISCARD ALL");
        assert!(kept.describe().is_none());
        kept.text(crate::guard::read(b"select pg_advisory_lock(1)"));
        assert!(kept.describe_after_abort().is_some(), "a lock of the session outlives its transaction");
        kept.settle();
        kept.learn(None);
        assert!(
            kept.describe().is_some() && !kept.is_stale(),
            "a server that does not say is not asked at once"
        );
        kept.learn(known(&[], None));
        assert_eq!(kept.describe(), None);
    }

    #[test]
    fn a_statement_is_remembered_once_the_server_has_it() {
        let mut kept = Kept::default();
        let names = |kept: &Kept| kept.statements().keys().map(|n| n.to_vec()).collect::<Vec<_>>();
        kept.prepare(b"", b"unnamed", true);
        kept.prepare(b"a", b"one", true);
        kept.parse_complete();
        assert!(names(&kept).is_empty(), "that was the unnamed one");
        kept.parse_complete();
        assert_eq!(names(&kept), [b"a"]);
        // The second of three fails, and what is behind it up to the Sync is skipped.
        kept.prepare(b"b", b"x", true);
        kept.prepare(b"c", b"x", true);
        kept.prepare(b"d", b"x", true);
        let sync = kept.parses_sent();
        kept.prepare(b"e", b"x", true);
        kept.parse_complete();
        kept.synced(sync);
        kept.parse_complete();
        assert_eq!(names(&kept), [b"a", b"b", b"e"]);
        kept.learn(known(&[b"a", b"e"], None));
        assert_eq!(names(&kept), [b"a", b"e"], "DEALLOCATE b");
        kept.close(b"a");
        assert_eq!((names(&kept), kept.statement_bytes), (vec![b"e".to_vec()], 1));
        // Postgres keeps the beginning of a long name.
        let long = [b'n'; 70];
        kept.prepare(&long, b"x", true);
        kept.parse_complete();
        kept.learn(known(&[b"e", &long[..63]], None));
        assert_eq!(names(&kept).len(), 2);
        // What is sent behind DISCARD ALL is not discarded.
        kept.prepare(b"f", b"x", true);
        kept.text(crate::guard::read(b"create temp table t (a int)"));
        kept.complete(b"DISCARD ALL");
        kept.parse_complete();
        kept.settle();
        assert_eq!((names(&kept), kept.is_stale()), (vec![b"f".to_vec()], true));
    }

    #[test]
    fn what_is_too_much_is_not_remembered_and_said() {
        let mut kept = Kept::default();
        for i in 0..=MAX_STATEMENTS {
            kept.prepare(format!("s{i}").as_bytes(), b"", true);
            kept.parse_complete();
        }
        assert_eq!(kept.describe().as_deref(), Some("more prepared statements than are remembered"));
        kept.learn(known(&[], None));
        assert!(kept.describe().is_some(), "those that were not remembered are not known to be gone");
        kept.complete(b"DEALLOCATE ALL");
        kept.settle();
        kept.learn(known(&[], None));
        assert!(kept.describe().is_none());
        for i in 0..=MAX_NAMES {
            kept.settings(Some(vec![format!("app.s{i}").into_bytes()]));
        }
        assert!(kept.describe_after_abort().is_some());
    }
}
