//! The doors of this node's replicas.

pub mod audit;
pub mod cancel;
pub mod control;
pub mod door;
pub mod evidence;
pub mod pass;
pub mod rounds;
pub mod serve;
pub mod slot;

use crate::gate::slot::locked;
pub use door::{BootTime, Door, Gate, NotOpen, Parked, boot_time};
pub use evidence::{Commits, Evidence, Reads};
pub use pass::Pass;
use quorate_model::DatabaseId;
pub use slot::Slot;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

/// One gate a database that has a replica here.
#[derive(Default)]
pub struct Gates {
    gates: Mutex<BTreeMap<DatabaseId, Arc<Gate>>>,
    evidence: Arc<OnceLock<Arc<dyn Evidence>>>,
}

impl Gates {
    pub fn new() -> Arc<Gates> {
        Arc::default()
    }

    /// Where all gates have confirmations and evidence from, once it can be asked. Only the first counts.
    pub fn set_evidence(&self, evidence: Arc<dyn Evidence>) {
        let _ = self.evidence.set(evidence);
    }

    /// The gate of that database; a new one is closed.
    pub fn gate(&self, database: DatabaseId) -> Arc<Gate> {
        let new = || Gate::new(database, Arc::clone(&self.evidence));
        Arc::clone(locked(&self.gates).entry(database).or_insert_with(new))
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
