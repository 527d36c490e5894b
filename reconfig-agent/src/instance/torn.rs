//! A standby's log that ends inside a record which goes on in a segment that is not there.
//!
//! Replay reads a record from its first page on and, where the log ends, asks for a stream from the segment of the page
//! that it wants next (`xlogrecovery.c`, `WaitForWALToBecomeAvailable`; `walreceiverfuncs.c`, `RequestXLogStreaming`). When
//! the record goes on in a later segment than the one in which it begins, and the new primary's history goes on before it,
//! that is wrong twice:
//!
//! * the new primary may not be there yet, and refuses the stream ("requested starting point … is ahead of the WAL flush
//!   position of this server"). What it writes waits for this standby, so it never comes there;
//! * if it is there, the standby flushes, and may acknowledge, log behind a hole: it has nothing of the new history between
//!   the fork and that segment. Then it finds that its record does not go on, and ends (PANIC).
//!
//! So the torn record is taken off before the standby streams from another timeline: its end of the log is then found
//! where the last whole record ends, in the segment that the stream begins with.

use super::error::InstanceError;
use super::files::{self, blocking};
use super::position::segments;
use super::session::within;
use super::{Inner, Instance, StopMode, orphan, process};
use quorate_model::Lsn;
use std::cmp::Ordering;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const WHAT: &str = "taking a torn record off";
const QUICK: Duration = Duration::from_secs(5);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

impl Instance {
    /// Whether the log of this standby goes on in a later segment than the one in which its last whole record ends, at
    /// `end` (its position). The tunnel is cut.
    pub async fn is_torn(&self, end: Lsn) -> Result<bool, InstanceError> {
        within(WHAT, QUICK, self.inner.is_torn(end)).await
    }

    /// Stops the instance and takes everything behind `end`, its position, off its log. It is to be started again.
    pub async fn take_torn_off(&self, end: Lsn) -> Result<(), InstanceError> {
        let _only_one = self.inner.lifecycle.lock().await;
        process::stop(&self.inner, StopMode::Immediate, STOP_DEADLINE).await?;
        let paths = self.inner.paths.clone();
        blocking(WHAT, move || {
            orphan::clear(&paths)?;
            cut(&paths.data.join("pg_wal"), end)
        })
        .await
    }
}

impl Inner {
    async fn is_torn(&self, end: Lsn) -> Result<bool, InstanceError> {
        // Where nothing was received, what replay last asked for: the beginning of the segment that it wants.
        const RECEIVED: &str = "SELECT pg_last_wal_receive_lsn()";
        let received: Option<Lsn> = self.sessions.row(WHAT, RECEIVED, QUICK).await?.maybe(0)?;
        let pg_wal = self.paths.data.join("pg_wal");
        let log = blocking(WHAT, move || segments(&pg_wal)).await?;
        Ok(received.is_some_and(|received| log.number(received) > log.number(end)))
    }
}

/// Blocking. Begun and not ended, it leaves a log that is torn at the same place, or ends there.
fn cut(pg_wal: &Path, end: Lsn) -> Result<(), InstanceError> {
    let log = segments(pg_wal)?;
    let entries = std::fs::read_dir(pg_wal).map_err(InstanceError::file("listing", pg_wal))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(number) = path.file_name().and_then(|name| log.number_of_file(name.to_str()?)) else {
            continue;
        };
        // On whatever timelines: which of them replay would read is its own choice.
        match number.cmp(&log.number(end)) {
            Ordering::Less => {}
            Ordering::Equal => {
                blank(&path, log.offset(end)).map_err(InstanceError::file("writing", &path))?
            }
            Ordering::Greater => files::remove(&path)?,
        }
    }
    files::sync_directory(pg_wal)
}

/// Zeros from `offset` to the end of the file: no record begins there.
fn blank(path: &Path, offset: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len().saturating_sub(offset);
    file.write_all_at(&vec![0; length as usize], offset)?;
    file.sync_all()
}
