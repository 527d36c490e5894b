//! Whether a primary's log gets to its disk.
//!
//! A disk that hangs does not stop queries, so a probe that asks is answered, and every commit waits for ever. What tells
//! is the log: bytes that were inserted and are not flushed, with a flush position that does not move. An open
//! transaction alone looks the same, because nothing has to flush what was not committed. So after a while of it a small
//! commit of our own is tried, and only if that does not return does the instance count as hung. An idle database is
//! never written to.

use super::error::InstanceError;
use super::session::{Purpose, Row, Session};
use quorate_model::Lsn;
use std::path::Path;
use std::time::{Duration, Instant};

/// Answered by every instance that answers; of a primary with two positions, which are read without a lock that a writer
/// could hold.
pub const PROBE: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn() END, \
    CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END";

/// A flush position that stands still for so long, with something to flush, is suspect.
const SUSPECT_AFTER: Duration = Duration::from_millis(800);
/// A commit that does not return in this time will not help anybody.
const WRITE_DEADLINE: Duration = Duration::from_millis(2_000);

/// How far a primary's log is: `flushed <= inserted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogProgress {
    inserted: Lsn,
    flushed: Lsn,
}

impl LogProgress {
    pub fn read(row: &Row) -> Option<LogProgress> {
        Some(LogProgress { inserted: row.lsn(0).ok()?, flushed: row.lsn(1).ok()? })
    }
}

#[derive(Debug, Default)]
pub struct Stall {
    /// Where the flush position stands still, and since when.
    still: Option<(Lsn, Instant)>,
    /// A commit did not return while it stood there.
    stalled_at: Option<Lsn>,
}

impl Stall {
    /// Whether the last that was heard of the log is that it stalls.
    pub fn is_known(&self) -> bool {
        self.stalled_at.is_some()
    }

    /// Takes in what a probe showed; tries a commit where that is called for. Whether the log gets to the disk.
    pub async fn writes(&mut self, progress: LogProgress, sockets: &Path) -> bool {
        if !self.is_suspect(progress, Instant::now()) {
            return self.stalled_at.is_none();
        }
        match tokio::time::timeout(WRITE_DEADLINE, write(sockets)).await {
            // An answer of any kind: the session's end, if it failed, is for others to notice.
            Ok(_) => self.still = None,
            Err(_) => self.stalled_at = Some(progress.flushed),
        }
        self.stalled_at.is_none()
    }

    /// Whether only a commit can tell now.
    fn is_suspect(&mut self, progress: LogProgress, now: Instant) -> bool {
        if let Some(at) = self.stalled_at {
            if progress.flushed <= at {
                return false;
            }
            self.stalled_at = None;
        }
        if progress.inserted <= progress.flushed {
            self.still = None;
            return false;
        }
        match self.still {
            Some((at, since)) if at == progress.flushed => now.duration_since(since) >= SUSPECT_AFTER,
            _ => {
                self.still = Some((progress.flushed, now));
                false
            }
        }
    }
}

/// One commit that waits for the local disk and nobody else. Its caller may give up: the backend ends when it can.
async fn write(sockets: &Path) -> Result<(), InstanceError> {
    const WHAT: &str = "the write probe";
    let session = Session::open(sockets, Purpose::Local).await?;
    session.rows(WHAT, "SELECT pg_logical_emit_message(true, 'quorate', 'probe')").await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_position_is_suspect_when_it_stands_still_before_something() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let log = |inserted, flushed| LogProgress { inserted: Lsn(inserted), flushed: Lsn(flushed) };
        let mut stall = Stall::default();
        assert!(!stall.is_suspect(log(10, 10), at(0)));
        assert!(!stall.is_suspect(log(10, 10), at(5_000)), "idle");
        assert!(!stall.is_suspect(log(20, 10), at(5_000)));
        assert!(!stall.is_suspect(log(30, 20), at(5_900)), "it moves");
        assert!(!stall.is_suspect(log(30, 20), at(6_600)));
        assert!(stall.is_suspect(log(30, 20), at(6_700)));
        stall.stalled_at = Some(Lsn(20));
        assert!(!stall.is_suspect(log(40, 20), at(9_000)), "no second commit behind the first");
        assert!(stall.is_known());
        assert!(!stall.is_suspect(log(40, 40), at(9_100)));
        assert!(!stall.is_known(), "it moves again");
    }
}
