//! Looks at everything that happens and says what must not be. One file an invariant of DESIGN §5, as far as it can be
//! seen from outside the protocol; I3 (every fence set meets every write quorum) is the model checker's, I13 the
//! operations' own tests', and I14 is the world's heal phase.
//!
//! A position of the log is *pinned* when a client was told of what stands there: a commit acknowledged or a value
//! returned, counted from the moment at which the result left the gate. From then on every primary has to have the same
//! record at that position.

mod i01_durable;
mod i02_fenced;
mod i04_log_matching;
mod i05_one_primary;
mod i06_row_on_quorum;
mod i07_fresh_reads;
mod i08_stable_values;
mod i09_configurations;
mod i10_no_loss;
mod i11_voters_only;
mod i12_emptied;

use crate::pg::server::Placed;
use crate::pg::wal::{KEYS, Record};
use crate::trace;
use quorate_model::{Database, DatabaseId, Epoch, PartitionMap, Reads, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Violations told; one is enough to fail.
const MAX_VIOLATIONS: usize = 20;

#[derive(Default)]
pub struct Oracle(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    violations: Vec<String>,
    books: BTreeMap<DatabaseId, Book>,
    promises: BTreeMap<ReplicaId, Epoch>,
    /// Replicas whose data was lost and not copied anew.
    emptied: BTreeSet<ReplicaId>,
    acknowledged: u64,
    reads: u64,
    unknown: u64,
    confirmed: u64,
    accepted: u64,
}

/// What is known of one database.
#[derive(Default)]
pub(crate) struct Book {
    /// The newest record that any node showed.
    newest: Option<Database>,
    /// By position in the log, the record that a client was told of.
    pinned: BTreeMap<usize, u64>,
    /// For each key the farthest acknowledged commit, and the farthest value returned.
    acknowledged: [Option<Placed>; KEYS],
    returned: [Option<Placed>; KEYS],
    /// The replica whose gate opened in each reign.
    opened: BTreeMap<Epoch, ReplicaId>,
    /// Writes of which a client was told that they were not carried out.
    refused: BTreeSet<u64>,
    /// The highest epoch row that each replica ever had durable.
    rows: BTreeMap<ReplicaId, Epoch>,
    /// How often an operator accepted that data is lost.
    words: u64,
    /// The data-loss epoch of the newest gate.
    data_loss: u64,
}

/// What a statement has to be at least as new as.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    acknowledged: Option<Placed>,
    returned: Option<Placed>,
    /// In which data-loss epoch: what an operator gave up since may be missing.
    data_loss: u64,
    /// The newest reign in which a gate had opened.
    pub newest: Epoch,
}

/// The gate through which a result leaves.
#[derive(Clone, Copy, Debug)]
pub struct Egress {
    pub database: DatabaseId,
    pub replica: ReplicaId,
    pub reign: Epoch,
    pub key: usize,
    /// What let it leave.
    pub by: Reads,
    /// The newest reign in which a gate had opened when the statement began.
    pub began_in: Epoch,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub acknowledged: u64,
    pub reads: u64,
    pub unknown: u64,
    /// Results that left by a confirmation.
    pub confirmed: u64,
    /// What clients were told of and an operator gave up.
    pub accepted: u64,
}

impl Inner {
    fn judge(&mut self, verdict: Result<(), String>) {
        if let Err(text) = verdict {
            trace::note(&format!("VIOLATION {text}"));
            if self.violations.len() < MAX_VIOLATIONS {
                self.violations.push(text);
            }
        }
    }

    fn book(&mut self, database: DatabaseId) -> &mut Book {
        self.books.entry(database).or_default()
    }
}

impl Book {
    fn pin(&mut self, placed: Placed) -> Result<(), String> {
        match self.pinned.insert(placed.index, placed.serial) {
            Some(other) if other != placed.serial => Err(format!(
                "I1: clients were told of two records at position {}: {other} and {}",
                placed.index, placed.serial
            )),
            _ => Ok(()),
        }
    }

    /// A gate opens. In a new data-loss epoch, what its log does not hold is given up, and only then: it is forgotten here.
    /// How much that is.
    fn give_up(&mut self, reign: Epoch, log: &[Record]) -> u64 {
        if reign.data_loss <= self.data_loss {
            return 0;
        }
        self.data_loss = reign.data_loss;
        let before = self.pinned.len();
        let is_there = |at: usize, serial: u64| log.get(at).is_some_and(|r| r.serial == serial);
        self.pinned.retain(|at, serial| is_there(*at, *serial));
        for known in self.acknowledged.iter_mut().chain(&mut self.returned) {
            *known = known.filter(|placed| is_there(placed.index, placed.serial));
        }
        (before - self.pinned.len()) as u64
    }
}

impl Oracle {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }

    pub fn fail(&self, text: String) {
        self.inner().judge(Err(text));
    }

    pub fn counts(&self) -> Counts {
        let inner = self.inner();
        Counts {
            acknowledged: inner.acknowledged,
            reads: inner.reads,
            unknown: inner.unknown,
            confirmed: inner.confirmed,
            accepted: inner.accepted,
        }
    }

    /// A node shows this map.
    pub fn map(&self, map: &PartitionMap) {
        let mut inner = self.inner();
        for record in map.databases.values() {
            let book = inner.book(record.id);
            if book.newest.as_ref().is_some_and(|known| known.version >= record.version) {
                continue;
            }
            let verdicts = [
                i09_configurations::record(record),
                i10_no_loss::record(record, book.words),
                i05_one_primary::epoch(book.newest.as_ref(), record),
            ];
            book.newest = Some(record.clone());
            for verdict in verdicts {
                inner.judge(verdict);
            }
        }
    }

    /// A promise is on disk.
    pub fn promised(&self, replica: ReplicaId, epoch: Epoch) {
        let mut inner = self.inner();
        let former = inner.promises.insert(replica, epoch);
        let verdict = i05_one_primary::promise(replica, former, epoch);
        inner.judge(verdict);
    }

    /// A node that starts finds this promise on its disk.
    pub fn remembered(&self, replica: ReplicaId, epoch: Epoch) {
        let mut inner = self.inner();
        let former = inner.promises.get(&replica).copied();
        let verdict = i05_one_primary::promise(replica, former, epoch);
        inner.judge(verdict);
    }

    /// The replica was dropped, and everything of it deleted.
    pub fn destroyed(&self, replica: ReplicaId) {
        self.inner().promises.remove(&replica);
    }

    /// The replica's data, and its promise with it, is gone.
    pub fn lost(&self, replica: ReplicaId) {
        let mut inner = self.inner();
        inner.promises.remove(&replica);
        inner.emptied.insert(replica);
    }

    /// A copy begins: what is there after it is whole.
    pub fn emptied(&self, replica: ReplicaId) {
        self.inner().emptied.remove(&replica);
    }

    /// The last reign in which this replica's gate was open.
    pub fn opened_by(&self, replica: ReplicaId) -> Epoch {
        let inner = self.inner();
        let of = |book: &Book| book.opened.iter().rfind(|(_, by)| **by == replica).map(|(epoch, _)| *epoch);
        inner.books.values().filter_map(of).max().unwrap_or_default()
    }

    pub fn epoch_row_flushed(&self, database: DatabaseId, replica: ReplicaId, epoch: Epoch) {
        let mut inner = self.inner();
        let row = inner.book(database).rows.entry(replica).or_default();
        *row = epoch.max(*row);
    }

    /// Names were set on a primary.
    pub fn named(&self, database: DatabaseId, replica: ReplicaId, names: &BTreeSet<ReplicaId>) {
        let mut inner = self.inner();
        let verdict = i09_configurations::names(inner.book(database).newest.as_ref(), replica, names);
        inner.judge(verdict);
    }

    /// A walsender of that primary counted a standby's flush.
    pub fn counted(&self, database: DatabaseId, primary: ReplicaId, reign: Epoch, standby: ReplicaId) {
        let mut inner = self.inner();
        let newest = inner.book(database).newest.as_ref();
        let verdict = i11_voters_only::check(newest, primary, reign, standby);
        inner.judge(verdict);
    }

    /// A standby took records behind a record that is not the one before them.
    pub fn garbage(&self, database: DatabaseId, replica: ReplicaId, at: usize, own: u64, other: u64) {
        self.inner().judge(i04_log_matching::check(database, replica, at, own, other));
    }

    /// A gate opened in front of a log.
    pub fn gate_opened(&self, database: DatabaseId, replica: ReplicaId, reign: Epoch, log: &[Record]) {
        let mut inner = self.inner();
        let was_emptied = inner.emptied.contains(&replica);
        let book = inner.book(database);
        let given_up = book.give_up(reign, log);
        let verdicts = [
            i01_durable::check(database, &book.pinned, &book.opened, (replica, reign), log),
            i05_one_primary::opened(&mut book.opened, database, replica, reign),
            i06_row_on_quorum::check(book.newest.as_ref(), &book.rows, replica, reign),
            i12_emptied::check(database, replica, was_emptied),
        ];
        inner.accepted += given_up;
        for verdict in verdicts {
            inner.judge(verdict);
        }
    }

    /// A statement begins at a gate.
    pub fn floor(&self, database: DatabaseId, key: usize) -> Floor {
        let mut inner = self.inner();
        let book = inner.book(database);
        let (acknowledged, returned) = (book.acknowledged[key], book.returned[key]);
        let newest = book.opened.last_key_value().map(|(reign, _)| *reign).unwrap_or_default();
        Floor { acknowledged, returned, data_loss: book.data_loss, newest }
    }

    /// The answer to a commit leaves the gate.
    pub fn acknowledged(&self, egress: Egress, placed: Placed) {
        let mut inner = self.inner();
        inner.acknowledged += 1;
        inner.confirmed += u64::from(egress.by == Reads::Confirm);
        let book = inner.book(egress.database);
        if egress.reign.data_loss < book.data_loss {
            // On its way for so long that an operator has given it up.
            let verdict = i02_fenced::check(&book.opened, egress);
            inner.accepted += 1;
            return inner.judge(verdict);
        }
        let verdicts = [i02_fenced::check(&book.opened, egress), book.pin(placed)];
        let known = &mut book.acknowledged[egress.key];
        if known.is_none_or(|k| k.index < placed.index) {
            *known = Some(placed);
        }
        trace::fold(&[10, egress.database.0, placed.index as u64, placed.serial]);
        for verdict in verdicts {
            inner.judge(verdict);
        }
    }

    /// A value leaves the gate.
    pub fn returned(&self, egress: Egress, floor: Floor, value: Option<Placed>) {
        let mut inner = self.inner();
        inner.reads += 1;
        inner.confirmed += u64::from(egress.by == Reads::Confirm);
        let book = inner.book(egress.database);
        // The gate of a new data-loss epoch may have opened since the world last looked.
        let same = floor.data_loss == egress.reign.data_loss;
        let floor = if same { floor } else { Floor::default() };
        let mut verdicts = vec![
            i02_fenced::check(&book.opened, egress),
            i07_fresh_reads::check(egress, floor.acknowledged, value),
            i08_stable_values::check(egress, floor.returned, value),
        ];
        if let Some(placed) = value.filter(|_| egress.reign.data_loss >= book.data_loss) {
            verdicts.push(book.pin(placed));
            let known = &mut book.returned[egress.key];
            if known.is_none_or(|k| k.index < placed.index) {
                *known = Some(placed);
            }
            trace::fold(&[11, egress.database.0, placed.index as u64, placed.serial]);
        }
        for verdict in verdicts {
            inner.judge(verdict);
        }
    }

    /// An operator accepts that data of this database is lost.
    pub fn word(&self, database: DatabaseId) {
        self.inner().book(database).words += 1;
    }

    /// A client does not know what became of its commit.
    pub fn unknown(&self) {
        self.inner().unknown += 1;
    }

    /// A client was told that its write was not carried out.
    pub fn refused(&self, database: DatabaseId, serial: u64) {
        self.inner().book(database).refused.insert(serial);
    }

    /// At the end: nothing of which a client was told that it was not carried out is in that log.
    pub fn refused_stay_out(&self, database: DatabaseId, log: &[Record]) {
        let mut inner = self.inner();
        let book = inner.book(database);
        let there = log.iter().map(|record| record.serial).find(|serial| book.refused.contains(serial));
        inner.judge(there.map_or(Ok(()), |serial| {
            Err(format!(
                "OUTCOME: {database}: a client was told that {serial} was not carried out; it is there"
            ))
        }));
    }

    /// At the end: everything that clients were told of is in that log. How many of them are not.
    pub fn lost_commits(&self, database: DatabaseId, log: &[Record]) -> usize {
        let mut inner = self.inner();
        let book = inner.book(database);
        book.pinned.iter().filter(|(at, serial)| log.get(**at).map(|r| r.serial) != Some(**serial)).count()
    }
}
