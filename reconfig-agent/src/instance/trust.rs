//! Whether a data directory may be started again.
//!
//! Two things take the trust away for good. A flush that failed: the kernel may have dropped the pages and reports the
//! next flush as a success, so what the instance believes to be on disk is not. And a rewind that was begun and did not
//! end: the directory is half one log and half another. Both are marked beside the data, so that a daemon which starts
//! later knows; such a replica is dropped and rebuilt under a new id.

use super::error::InstanceError;
use super::files::{self, Durability};
use super::paths::Paths;
use super::{Instance, process};

const INTERRUPTED: &str = "a rewind was begun and did not end";

/// The end of a log in which a failure of the storage is looked for: messages of sessions that end may follow it.
pub const LOG_SEARCH_BYTES: u64 = 64 * 1024;

/// The end of a log in which vain requests are looked for: a dozen attempts to stream, two seconds or so.
const LAST_WORDS_BYTES: u64 = 4 * 1024;

impl Instance {
    /// Why the data cannot be trusted any more, if it cannot.
    pub fn distrust(&self) -> Option<String> {
        let paths = &self.inner.paths;
        if paths.rewinding.exists() {
            return Some(INTERRUPTED.to_owned());
        }
        // A mark that cannot be read is one nevertheless.
        paths.distrusted.exists().then(|| {
            std::fs::read_to_string(&paths.distrusted).map_or_else(
                |e| format!("the mark of its failure cannot be read: {e}"),
                |t| t.trim().to_owned(),
            )
        })
    }
}

impl Instance {
    /// Whether a standby asks in vain for log that its primary has recycled: the last words of its own log say so, again
    /// and again. It will never stream.
    pub async fn is_log_gone(&self) -> bool {
        let log = self.inner.paths.log.clone();
        let end = files::blocking("reading the server's log", move || {
            Ok(process::end_of_log(&log, 0, LAST_WORDS_BYTES).unwrap_or_default())
        });
        end.await.is_ok_and(|end| asks_in_vain(&end))
    }
}

impl Paths {
    /// Blocking.
    pub(super) fn mark_distrusted(&self, reason: &str) -> Result<(), InstanceError> {
        files::replace(&self.distrusted, &format!("{reason}\n"), Durability::Durable, None)
    }

    /// The data they spoke of is gone. Blocking.
    pub(super) fn forget_faults(&self) -> Result<(), InstanceError> {
        files::remove(&self.rewinding)?;
        files::remove(&self.rewound)?;
        files::remove(&self.distrusted)
    }
}

/// The message in which PostgreSQL says that its storage failed it. It ends itself for nothing else that concerns what
/// was flushed: a full disk is none, because what was flushed before is there.
pub fn storage_failure(log: &str) -> Option<&str> {
    const SIGNS: [&str; 3] = ["could not fsync", "could not fdatasync", "Input/output error"];
    let (_, message) = log
        .lines()
        .filter_map(|line| line.split_once(" PANIC: "))
        .find(|(_, message)| SIGNS.iter().any(|sign| message.contains(sign)))?;
    Some(message.trim())
}

/// Whether the last attempts to stream were refused because the log is not there any more.
fn asks_in_vain(end_of_log: &str) -> bool {
    const TIMES: usize = 3;
    const SIGN: &str = "has already been removed";
    end_of_log.lines().filter(|line| line.contains(" FATAL: ") && line.contains(SIGN)).count() >= TIMES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_flush_is_told_from_a_full_disk_and_from_what_a_client_sends() {
        let log = "2026-01-01 UTC [7] LOG:  checkpoint starting\n\
            2026-01-01 UTC [9] PANIC:  could not fdatasync file \"000000010000000000000003\": Input/output error\n\
            2026-01-01 UTC [8] FATAL:  terminating connection due to unexpected postmaster exit\n";
        let found = storage_failure(log);
        assert_eq!(found, Some("could not fdatasync file \"000000010000000000000003\": Input/output error"));
        let full = "x [9] PANIC:  could not write to file \"pg_wal/xlogtemp.9\": No space left on device\n";
        assert_eq!(storage_failure(full), None);
        let error = "x [9] ERROR:  could not fsync file \"base/5/1\": Input/output error\n";
        assert_eq!(storage_failure(error), None, "the server itself goes on");
    }
}
