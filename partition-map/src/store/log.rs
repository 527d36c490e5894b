//! Raft's log, in memory and on its way to the disk.

use super::disk::{Change, Held, Log, encode};
use super::writer::Writer;
use crate::types::{Entry, LogId, StorageError, Types, Vote};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader, StorageIOError};
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Entries that are sent to another node at once, at most; one entry always is.
const READ_BYTES: usize = 4 * 1024 * 1024;

#[derive(Clone)]
pub(crate) struct LogStore {
    log: Arc<Mutex<Log>>,
    writer: Writer,
}

impl LogStore {
    pub(crate) fn new(writer: Writer, log: Log) -> Self {
        LogStore { log: Arc::new(Mutex::new(log)), writer }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of the log, written or about to be.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.log().last()
    }

    pub(crate) async fn close(&self) {
        self.writer.close().await;
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.log().entries.range(range).map(|(_, held)| held.entry.clone()).collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let mut bytes = 0;
        let log = self.log();
        let fits = log.entries.range(start..end).take_while(|(_, held)| {
            let first = bytes == 0;
            bytes += held.bytes.max(1);
            first || bytes <= READ_BYTES
        });
        Ok(fits.map(|(_, held)| held.entry.clone()).collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let log = self.log();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.writer.write(Change::Vote(*vote)).await.map_err(|e| StorageIOError::write_vote(&e))?;
        self.log().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.log().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.log().committed = committed;
        self.writer.note_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.log().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        {
            let mut log = self.log();
            for entry in entries {
                let bytes = encode(&entry).map_err(|e| StorageIOError::write_log_entry(entry.log_id, &e))?;
                let index = entry.log_id.index;
                log.entries.insert(index, Held { entry, bytes: bytes.len() });
                encoded.push((index, bytes));
            }
        }
        self.writer.append(encoded, callback).await;
        Ok(())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        drop(self.log().entries.split_off(&from.index));
        let change = Change::Truncate { from: from.index };
        self.writer.write(change).await.map_err(|e| StorageIOError::write_logs(&e).into())
    }

    async fn purge(&mut self, up_to: LogId) -> Result<(), StorageError> {
        {
            let mut log = self.log();
            log.purged = Some(up_to);
            log.entries = log.entries.split_off(&(up_to.index + 1));
        }
        let change = Change::Purge { up_to };
        self.writer.write_later(change).await.map_err(|e| StorageIOError::write_logs(&e).into())
    }
}
