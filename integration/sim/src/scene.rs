//! What holds everywhere in a world: how long things take now, what is planted, and numbers that are unique.

use crate::dice::Dice;
use quorate_model::NodeId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An error put into the world on purpose, to show that the oracle sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// Disks say that they flushed and did not.
    ForgottenFlush,
    /// Results leave whatever the lease says.
    NoLease,
    /// A replica's promise is not there any more after a restart.
    ForgottenPromise,
    /// The walsenders count every standby, whoever is named.
    CountsAnybody,
    /// A client whose commit's answer was lost is told that it was not carried out.
    MistakenRefusal,
}

pub struct Conditions {
    pub plant: Option<Plant>,
    inner: Mutex<Inner>,
}

struct Inner {
    dice: Dice,
    serial: u64,
    pid: u32,
    /// Up to so many milliseconds a flush.
    slow_disks: BTreeMap<NodeId, u64>,
}

impl Conditions {
    pub fn new(dice: Dice, plant: Option<Plant>) -> Conditions {
        let inner = Inner { dice, serial: 0, pid: 1000, slow_disks: BTreeMap::new() };
        Conditions { plant, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn slow_disk(&self, node: NodeId, up_to_ms: Option<u64>) {
        match up_to_ms {
            Some(ms) => self.inner().slow_disks.insert(node, ms),
            None => self.inner().slow_disks.remove(&node),
        };
    }

    pub fn all_disks_well(&self) {
        self.inner().slow_disks.clear();
    }

    /// How long the next flush takes on that node.
    pub fn fsync(&self, node: NodeId) -> Duration {
        let mut inner = self.inner();
        let usual = inner.dice.below(3);
        let slow = inner.slow_disks.get(&node).copied().unwrap_or(0);
        Duration::from_millis(usual + inner.dice.below(slow + 1))
    }

    /// How long a copy of a database takes.
    pub fn copy(&self) -> Duration {
        self.inner().dice.millis(50, 800)
    }

    /// Half of a promotion.
    pub fn promotion(&self) -> Duration {
        self.inner().dice.millis(2, 60)
    }

    pub fn start(&self) -> Duration {
        self.inner().dice.millis(20, 300)
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.inner().dice.below(bound)
    }

    pub fn dice(&self) -> Dice {
        self.inner().dice.fork()
    }

    /// A number that nothing else in this world bears.
    pub fn serial(&self) -> u64 {
        let mut inner = self.inner();
        inner.serial += 1;
        inner.serial
    }

    pub fn pid(&self) -> u32 {
        let mut inner = self.inner();
        inner.pid += 1;
        inner.pid
    }
}
