//! A disk that a simulation owns: it outlives the node that writes to it, takes its time to flush, and forgets what
//! was not flushed.

use super::disk::{Change, DiskError, Held, Loaded, Log, StoredSnapshot, decode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the next flush takes; asked once a flush.
type Pace = Box<dyn Fn() -> Duration + Send + Sync>;

/// Clones are the same disk.
#[derive(Clone)]
pub struct MemoryDisk(Arc<Inner>);

struct Inner {
    kept: Mutex<Kept>,
    pace: Pace,
}

#[derive(Default)]
struct Kept {
    log: Log,
    snapshot: Option<StoredSnapshot>,
}

impl MemoryDisk {
    pub fn new(pace: impl Fn() -> Duration + Send + Sync + 'static) -> MemoryDisk {
        MemoryDisk(Arc::new(Inner { kept: Mutex::default(), pace: Box::new(pace) }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn load(&self) -> Loaded {
        let kept = self.kept();
        Loaded { log: kept.log.clone(), snapshot: kept.snapshot.clone() }
    }

    /// The changes are there, all of them, when the flush ends; a node that dies during it leaves none.
    pub(super) async fn commit<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> Result<(), DiskError> {
        tokio::time::sleep((self.0.pace)()).await;
        let mut kept = self.kept();
        for change in changes {
            kept.make(change)?;
        }
        Ok(())
    }
}

impl Kept {
    fn make(&mut self, change: &Change) -> Result<(), DiskError> {
        match change {
            Change::Append(entries) => {
                for (index, bytes) in entries {
                    let held = Held { entry: decode("a log entry", bytes)?, bytes: bytes.len() };
                    self.log.entries.insert(*index, held);
                }
            }
            Change::Truncate { from } => drop(self.log.entries.split_off(from)),
            Change::Purge { up_to } => {
                self.log.entries = self.log.entries.split_off(&(up_to.index + 1));
                self.log.purged = Some(*up_to);
            }
            Change::Vote(vote) => self.log.vote = Some(*vote),
            Change::Committed(committed) => self.log.committed = Some(*committed),
            Change::Snapshot(snapshot) => self.snapshot = Some(snapshot.clone()),
        }
        Ok(())
    }
}
