//! The file. Blocking; only the writer's thread touches it once it is open.

use crate::types::{Entry, LogId, Vote};
use openraft::{EmptyNode, SnapshotMeta};
use quorate_model::NodeId;
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// 2: operations have attempts, keys and typed steps; databases have options.
const FORMAT: u32 = 2;
/// redb would use up to 1 GiB; everything is cached above it already.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("{0}")]
    Redb(Box<redb::Error>),
    #[error("{0}")]
    Io(std::io::Error),
    /// What is in it is not what should be.
    #[error("{0}")]
    Content(String),
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for DiskError {
            fn from(error: redb::$error) -> Self {
                DiskError::Redb(Box::new(error.into()))
            }
        }
    )*};
}

from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

impl From<std::io::Error> for DiskError {
    fn from(error: std::io::Error) -> Self {
        DiskError::Io(error)
    }
}

/// One entry, and how large it is when encoded.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) entry: Entry,
    pub(crate) bytes: usize,
}

/// The log as it is kept in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) entries: BTreeMap<u64, Held>,
    pub(crate) purged: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
}

impl Log {
    /// The last entry there is, or was before everything was purged.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|held| held.entry.log_id).or(self.purged)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct StoredSnapshot {
    pub(crate) meta: SnapshotMeta<u64, EmptyNode>,
    pub(crate) data: Arc<Vec<u8>>,
}

pub(crate) struct Loaded {
    pub(crate) log: Log,
    pub(crate) snapshot: Option<StoredSnapshot>,
}

/// One change of the file; several make a transaction.
#[derive(Debug)]
pub(crate) enum Change {
    Append(Vec<(u64, Vec<u8>)>),
    /// This entry and all after it go.
    Truncate {
        from: u64,
    },
    /// This entry and all before it go.
    Purge {
        up_to: LogId,
    },
    Vote(Vote),
    Committed(LogId),
    Snapshot(StoredSnapshot),
}

pub(crate) struct Disk(Database);

impl Disk {
    pub(crate) fn open(path: &Path, node: NodeId) -> Result<(Disk, Loaded), DiskError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
        let write = database.begin_write()?;
        {
            write.open_table(LOG)?;
            let mut meta = write.open_table(META)?;
            expect(&mut meta, "format", FORMAT, "format")?;
            expect(&mut meta, "node", node.0, "node")?;
        }
        write.commit()?;
        let loaded = load(&database)?;
        Ok((Disk(database), loaded))
    }

    /// Makes the changes, all or none, durable before it returns.
    pub(crate) fn commit<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) -> Result<(), DiskError> {
        let write = self.0.begin_write()?;
        for change in changes {
            make(&write, change)?;
        }
        write.commit()?;
        Ok(())
    }
}

fn make(write: &WriteTransaction, change: &Change) -> Result<(), DiskError> {
    match change {
        Change::Append(entries) => {
            let mut log = write.open_table(LOG)?;
            for (index, bytes) in entries {
                log.insert(index, bytes.as_slice())?;
            }
        }
        Change::Truncate { from } => write.open_table(LOG)?.retain_in(*from.., |_, _| false)?,
        Change::Purge { up_to } => {
            write.open_table(LOG)?.retain_in(..=up_to.index, |_, _| false)?;
            put(write, "purged", up_to)?;
        }
        Change::Vote(vote) => put(write, "vote", vote)?,
        Change::Committed(committed) => put(write, "committed", committed)?,
        Change::Snapshot(snapshot) => {
            put(write, "snapshot-meta", &snapshot.meta)?;
            write.open_table(META)?.insert("snapshot", snapshot.data.as_slice())?;
        }
    }
    Ok(())
}

fn put<T: Serialize>(write: &WriteTransaction, key: &str, value: &T) -> Result<(), DiskError> {
    let bytes = encode(value)?;
    write.open_table(META)?.insert(key, bytes.as_slice())?;
    Ok(())
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, DiskError> {
    postcard::to_stdvec(value).map_err(|e| DiskError::Content(format!("encoding: {e}")))
}

pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, DiskError> {
    postcard::from_bytes(bytes).map_err(|e| DiskError::Content(format!("{what} cannot be decoded: {e}")))
}

/// Writes a value that never changes, or checks that it is the one that was written.
fn expect<T>(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &str,
    value: T,
    what: &str,
) -> Result<(), DiskError>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Display,
{
    let found: Option<T> = meta.get(key)?.map(|bytes| decode(what, bytes.value())).transpose()?;
    match found {
        Some(found) if found == value => Ok(()),
        Some(found) => Err(DiskError::Content(format!("it is of {what} {found}, not {value}"))),
        None => {
            meta.insert(key, encode(&value)?.as_slice())?;
            Ok(())
        }
    }
}

fn load(database: &Database) -> Result<Loaded, DiskError> {
    let read = database.begin_read()?;
    let meta = read.open_table(META)?;
    let mut log = Log {
        entries: BTreeMap::new(),
        purged: value(&meta, "purged")?,
        vote: value(&meta, "vote")?,
        committed: value(&meta, "committed")?,
    };
    for row in read.open_table(LOG)?.iter()? {
        let (index, bytes) = row?;
        let held = Held { entry: decode("a log entry", bytes.value())?, bytes: bytes.value().len() };
        log.entries.insert(index.value(), held);
    }
    let snapshot = match (value(&meta, "snapshot-meta")?, meta.get("snapshot")?) {
        (Some(meta), Some(data)) => Some(StoredSnapshot { meta, data: Arc::new(data.value().to_vec()) }),
        _ => None,
    };
    Ok(Loaded { log, snapshot })
}

fn value<T: DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, DiskError> {
    meta.get(key)?.map(|bytes| decode(key, bytes.value())).transpose()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_belongs_to_one_node() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map.redb");
        drop(Disk::open(&path, NodeId(1)).unwrap());
        let refused = Disk::open(&path, NodeId(2)).err().unwrap();
        assert_eq!(refused.to_string(), "it is of node 1, not 2");
        Disk::open(&path, NodeId(1)).unwrap();
    }
}
