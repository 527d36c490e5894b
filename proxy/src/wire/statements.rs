//! Prepared statements of clients that share servers.
//!
//! Each client has its own names for its statements, and each server its own statements. A text that clients prepare is
//! known once for all of them ([`Statement`]); on a server it has a name of ours, which is never used twice, so that nothing
//! has to be closed before something is prepared. A client's statement is as old as its last Parse: on a server that
//! prepared the text before, it is prepared anew, as the client would find it on a server of its own (a table may have got
//! other columns in between).

use crate::gate::slot::locked;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Statements that a server may have for its clients; with more, those used longest ago are closed.
const MAX_ON_SERVER: usize = 1024;
/// And bytes of their texts.
const MAX_BYTES_ON_SERVER: usize = 4 * 1024 * 1024;
/// Statements that are to be closed are closed together, so many at a time.
const CLOSE_AT_ONCE: usize = 64;

/// What a Parse message has behind its name: the text, and the types of its parameters.
#[derive(Debug)]
pub struct Statement {
    id: u64,
    body: Arc<[u8]>,
    all: Weak<Statements>,
}

impl Statement {
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        if let Some(all) = self.all.upgrade() {
            let mut texts = locked(&all.texts);
            // Somebody may have made another one of the same text since the last user of this one went.
            if texts.get(&self.body).is_some_and(|known| known.strong_count() == 0) {
                texts.remove(&self.body);
            }
        }
    }
}

/// The order in which statements were prepared, over all servers of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial(u64);

impl Serial {
    /// The statement's name on a server; no driver makes such a one.
    pub fn name(self) -> [u8; NAME_BYTES] {
        let mut name = [0; NAME_BYTES];
        name[..2].copy_from_slice(NOBODYS_NAME);
        for (at, digit) in name[2..].iter_mut().enumerate() {
            let nibble = self.0 >> (60 - 4 * at) & 0xf;
            *digit = b"0123456789abcdef"[nibble as usize];
        }
        name
    }
}

/// Length of the names of ours.
pub const NAME_BYTES: usize = 18;

/// A name that no server has a statement of.
pub const NOBODYS_NAME: &[u8] = b"\x01q";

/// All statements of a node.
#[derive(Debug, Default)]
pub struct Statements {
    texts: Mutex<HashMap<Arc<[u8]>, Weak<Statement>>>,
    ids: AtomicU64,
    serials: AtomicU64,
}

impl Statements {
    /// The statement of that body, the same for all who have it.
    pub fn statement(self: &Arc<Self>, body: &[u8]) -> Arc<Statement> {
        let mut texts = locked(&self.texts);
        if let Some(known) = texts.get(body).and_then(Weak::upgrade) {
            return known;
        }
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let statement = Arc::new(Statement { id, body: body.into(), all: Arc::downgrade(self) });
        texts.insert(Arc::clone(&statement.body), Arc::downgrade(&statement));
        statement
    }

    /// One that is nobody else's, because not all of its body is known.
    pub fn partial(self: &Arc<Self>) -> Arc<Statement> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        Arc::new(Statement { id, body: Arc::default(), all: Weak::new() })
    }

    /// The next one to be prepared.
    pub fn serial(&self) -> Serial {
        Serial(self.serials.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Prepared {
    serial: Serial,
    used: u64,
    /// Its id is not given to another text while a server has it.
    statement: Arc<Statement>,
}

/// What one server has.
#[derive(Debug, Default)]
pub struct OnServer {
    prepared: HashMap<u64, Prepared>,
    /// Of their texts.
    bytes: usize,
    uses: u64,
    /// Nobody will use them again.
    left: Vec<Serial>,
}

impl OnServer {
    /// As what that server has the statement, if it was prepared at `since` or later.
    pub fn find(&mut self, statement: &Statement, since: Serial) -> Option<Serial> {
        self.uses += 1;
        let prepared = self.prepared.get_mut(&statement.id)?;
        prepared.used = self.uses;
        (prepared.serial >= since).then_some(prepared.serial)
    }

    /// The server has prepared it.
    pub fn add(&mut self, statement: Arc<Statement>, serial: Serial) {
        self.uses += 1;
        let id = statement.id;
        self.leave(id);
        self.bytes += statement.body.len();
        self.prepared.insert(id, Prepared { serial, used: self.uses, statement });
        while self.prepared.len() > MAX_ON_SERVER || self.bytes > MAX_BYTES_ON_SERVER {
            let Some((id, _)) = self.prepared.iter().min_by_key(|(_, p)| p.used) else { break };
            self.leave(*id);
        }
    }

    /// One of them is not used any more, and is to be closed.
    fn leave(&mut self, id: u64) {
        if let Some(former) = self.prepared.remove(&id) {
            self.bytes -= former.statement.body.len();
            self.left.push(former.serial);
        }
    }

    /// The server has forgotten one of them.
    pub fn remove(&mut self, statement: &Statement) {
        if self.prepared.remove(&statement.id).is_some() {
            self.bytes -= statement.body.len();
        }
    }

    /// The server has forgotten all of them.
    pub fn clear(&mut self) {
        *self = OnServer::default();
    }

    /// Those to be closed, when there are enough of them.
    pub fn to_close(&mut self) -> Vec<Serial> {
        if self.left.len() < CLOSE_AT_ONCE { Vec::new() } else { std::mem::take(&mut self.left) }
    }
}

/// Statements of one client, by its names for them.
pub type Named = BTreeMap<Box<[u8]>, (Arc<Statement>, Serial)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_statement_for_all_while_somebody_has_it() {
        let all = Arc::new(Statements::default());
        let one = all.statement(b"select 1\0\0\0");
        assert!(Arc::ptr_eq(&one, &all.statement(b"select 1\0\0\0")));
        assert!(!Arc::ptr_eq(&one, &all.statement(b"select 2\0\0\0")));
        assert_eq!(locked(&all.texts).len(), 1, "nobody has the second any more");
        drop(one);
        assert!(locked(&all.texts).is_empty());
    }

    #[test]
    fn a_server_has_a_statement_since_it_was_prepared_there_last() {
        let all = Arc::new(Statements::default());
        let statement = all.statement(b"select 1\0\0\0");
        let mut server = OnServer::default();
        let [first, second] = [all.serial(), all.serial()];
        assert_eq!(server.find(&statement, first), None);
        server.add(Arc::clone(&statement), first);
        assert_eq!(server.find(&statement, first), Some(first));
        assert_eq!(server.find(&statement, second), None, "its client prepared it later");
        server.add(Arc::clone(&statement), second);
        assert_eq!(server.find(&statement, first), Some(second));
        assert_eq!(server.left, [first]);
        assert_eq!(&first.name()[..], b"\x01q0000000000000000");
        assert!(server.to_close().is_empty(), "not one by one");
        assert_eq!(server.bytes, statement.body.len());
        server.clear();
        assert_eq!((server.find(&statement, first), server.bytes), (None, 0));
    }

    #[test]
    fn what_is_used_longest_ago_makes_room() {
        let all = Arc::new(Statements::default());
        let mut server = OnServer::default();
        let kept: Vec<_> = (0..=MAX_ON_SERVER + CLOSE_AT_ONCE)
            .map(|n| {
                let statement = all.statement(format!("select {n}\0\0\0").as_bytes());
                server.add(Arc::clone(&statement), all.serial());
                server.find(&kept_first(&all), Serial(0));
                statement
            })
            .collect();
        assert_eq!(server.prepared.len(), MAX_ON_SERVER);
        assert!(server.find(&kept[0], Serial(0)).is_some(), "it was used all the time");
        assert_eq!(server.find(&kept[1], Serial(0)), None);
        assert_eq!(server.to_close().len(), CLOSE_AT_ONCE + 1);
        assert!(server.to_close().is_empty());
    }

    fn kept_first(all: &Arc<Statements>) -> Arc<Statement> {
        all.statement(b"select 0\0\0\0")
    }
}
