//! The doors of this node's replicas.

pub mod cancel;
pub mod control;
pub mod door;
pub mod serve;
pub mod slot;

use crate::gate::slot::locked;
pub use door::{BootTime, Door, Gate, NotOpen, Parked, Pass, boot_time};
use quorate_model::DatabaseId;
pub use slot::Slot;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// One gate a database that has a replica here.
#[derive(Debug, Default)]
pub struct Gates {
    gates: Mutex<BTreeMap<DatabaseId, Arc<Gate>>>,
}

impl Gates {
    pub fn new() -> Arc<Gates> {
        Arc::default()
    }

    /// The gate of that database; a new one is closed.
    pub fn gate(&self, database: DatabaseId) -> Arc<Gate> {
        Arc::clone(locked(&self.gates).entry(database).or_insert_with(|| Gate::new(database)))
    }

    /// The replica is no longer here: its gate closes for good.
    pub fn remove(&self, database: DatabaseId) {
        let gate = locked(&self.gates).remove(&database);
        if let Some(gate) = gate {
            gate.close("the replica was removed from this node");
        }
    }

    pub fn find(&self, database: DatabaseId) -> Option<Arc<Gate>> {
        locked(&self.gates).get(&database).cloned()
    }

    /// Every gate here, for reports.
    pub fn all(&self) -> Vec<Arc<Gate>> {
        locked(&self.gates).values().cloned().collect()
    }
}
