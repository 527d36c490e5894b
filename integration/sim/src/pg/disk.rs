//! What of a replica survives its node: the log as far as it was flushed, and the promise.

use super::wal::{self, Record};
use crate::dice::Dice;
use crate::scene::Plant;
use quorate_model::{Epoch, Lsn, NodeId, ReplicaId, Timeline};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A replica's directory. Clones are the same.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Content>>);

#[derive(Clone, Debug, Default)]
pub struct Content {
    pub records: Vec<Record>,
    /// So many of them are durable.
    pub flushed: usize,
    /// Where each older timeline was left, oldest first.
    pub history: Vec<(Timeline, Lsn)>,
    /// The highest timeline that any file bears.
    pub highest: Timeline,
    /// A promotion has chosen its timeline, and no record may bear it yet.
    pub promoting: bool,
    /// Made or copied to the end.
    pub complete: bool,
    /// A rewind has begun to change it, and no instance has answered since.
    pub rewinding: bool,
    /// It was rewound, and is not known to be past its floor.
    pub rewound: bool,
    pub promise: Epoch,
}

impl Disk {
    pub fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    /// Of the last record.
    pub fn timeline(&self) -> Timeline {
        self.records.last().map_or(Timeline(1), |r| r.timeline)
    }

    pub fn end(&self) -> Lsn {
        wal::end_of(self.flushed)
    }

    /// Another's log takes the place of its own, durably. The epoch row that comes with it.
    pub fn take_log(&mut self, records: &[Record], history: &[(Timeline, Lsn)]) -> Epoch {
        self.flushed = records.len();
        self.highest = self.highest.max(records.last().map_or(Timeline(1), |r| r.timeline));
        self.records = records.to_vec();
        self.history = history.to_vec();
        wal::epoch_of(records)
    }

    /// The machine stops, or the postmaster is killed: of what was written and not flushed, some may be there.
    pub fn crash(&mut self, dice: &mut Dice, forgets: bool) {
        let kept = dice.between(self.flushed as u64, self.records.len() as u64) as usize;
        // The planted fault: a disk that said "flushed" and was not.
        let kept =
            if forgets { kept.min(self.flushed.saturating_sub(dice.between(1, 6) as usize)) } else { kept };
        self.records.truncate(kept);
        self.flushed = kept;
    }
}

/// The disks of all nodes.
#[derive(Default)]
pub struct Disks(Mutex<BTreeMap<(NodeId, ReplicaId), Disk>>);

impl Disks {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(NodeId, ReplicaId), Disk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replica's directory on that node, made if there is none.
    pub fn open(&self, node: NodeId, replica: ReplicaId) -> Disk {
        self.all().entry((node, replica)).or_default().clone()
    }

    pub fn on(&self, node: NodeId) -> Vec<ReplicaId> {
        self.all().keys().filter(|(n, _)| *n == node).map(|(_, id)| *id).collect()
    }

    pub fn remove(&self, node: NodeId, replica: ReplicaId) {
        self.all().remove(&(node, replica));
    }

    /// The machine stops.
    pub fn crash(&self, node: NodeId, dice: &mut Dice, plant: Option<Plant>) {
        for (_, disk) in self.all().iter().filter(|((n, _), _)| *n == node) {
            let mut content = disk.content();
            content.crash(dice, plant == Some(Plant::ForgottenFlush));
            if plant == Some(Plant::ForgottenPromise) {
                content.promise = Epoch::default();
            }
        }
    }
}
