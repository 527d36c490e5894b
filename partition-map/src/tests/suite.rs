//! openraft's own tests of a store.

use crate::store::{self, LogStore, Machine};
use crate::types::{StorageError, Types};
use openraft::StorageIOError;
use openraft::testing::{StoreBuilder, Suite};
use quorate_model::NodeId;
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().map_err(|e| StorageIOError::write(&e))?;
        let (log, machine, _) =
            store::open(&dir.path().join("map.redb"), NodeId(1)).map_err(|e| StorageIOError::write(&e))?;
        Ok((dir, log, machine))
    }
}

#[test]
fn the_store_passes_openrafts_suite() {
    Suite::test_all(Builder).unwrap();
}
