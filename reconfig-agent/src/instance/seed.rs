//! A copy of a database from another replica, through a tunnel: pg_basebackup with the log streamed beside it.

use super::error::InstanceError;
use super::files::blocking;
use super::lifecycle::Role;
use super::session::lock;
use super::settings::{SUPERUSER, conninfo_value};
use super::{Instance, process, spawn, tool};
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use rustix::process::Signal;
use std::path::Path;
use std::time::Duration;

/// A base backup of a large database takes hours; one that takes longer than this is given up and tried again.
const SEED_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// Bytes of the data directory, as pg_basebackup counts them, about once a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeedProgress {
    pub done_bytes: u64,
    /// An estimate from the source; zero while it is not known.
    pub total_bytes: u64,
}

impl Instance {
    /// Copies the database from whoever answers on the socket in `tunnel_dir`. Wipes what was there. Can be
    /// dropped at any time, which ends the copy, and run again. The instance is not started.
    pub async fn seed(&self, tunnel_dir: &Path) -> Result<(), InstanceError> {
        let _only_one = self.inner.lifecycle.lock().await;
        if self.inner.process.borrow().is_live() {
            return Err(InstanceError::AlreadyRunning);
        }
        process::stop(&self.inner, super::StopMode::Immediate, Duration::ZERO).await?;
        self.inner.wipe().await?;
        self.inner.seed.send_replace(SeedProgress::default());
        let user = self.inner.user.clone();
        let from = tunnel_dir.to_owned();
        blocking("checking the tunnel's directory", move || user.check_reaches(&from)).await?;

        let command = self.base_backup(tunnel_dir);
        let mut line = String::new();
        tool::run("pg_basebackup", command, SEED_DEADLINE, |text| {
            if let Some(progress) = last_progress(&mut line, text) {
                self.inner.seed.send_replace(progress);
            }
        })
        .await?;

        *lock(&self.inner.sync_names) = SENTINEL_SYNC_NAMES.to_owned();
        self.inner.prepare(Role::Standby).await?;
        self.inner.mark_complete("base backup").await
    }

    fn base_backup(&self, tunnel_dir: &Path) -> tokio::process::Command {
        let inner = &self.inner;
        let mut command = spawn::command(&inner.pg.bin("pg_basebackup"), &inner.user, Signal::KILL);
        let connection = format!(
            "host={} port=5432 user={SUPERUSER} application_name=pg_basebackup sslmode=disable gssencmode=disable",
            conninfo_value(&tunnel_dir.to_string_lossy()),
        );
        command
            .arg("-D")
            .arg(&inner.paths.data)
            .arg("-d")
            .arg(connection)
            // Without a name, the slot that holds the log for the copy is a temporary one.
            .args(["--checkpoint=fast", "-X", "stream", "--no-password", "--no-manifest"])
            // Flushed once, before the mark is set.
            .args(["--no-sync", "--progress"]);
        if let Some(rate) = inner.limits.seed_rate_kib_per_s {
            command.arg(format!("--max-rate={rate}k"));
        }
        command
    }
}

/// Reads lines such as `  12345/67890 kB (18%), 0/1 tablespace`, which end in a carriage return or a newline and
/// may come in pieces, and returns the last one that is whole.
fn last_progress(pending: &mut String, text: &str) -> Option<SeedProgress> {
    /// No line of progress is longer; a message may be.
    const LINE_LIMIT_BYTES: usize = 4096;
    pending.push_str(text);
    let end = pending.rfind(['\r', '\n'])?;
    let found = pending[..end].rsplit(['\r', '\n']).find_map(parse_progress);
    pending.drain(..=end);
    if pending.len() > LINE_LIMIT_BYTES {
        pending.clear();
    }
    found
}

fn parse_progress(line: &str) -> Option<SeedProgress> {
    let (done, rest) = line.trim_start().split_once('/')?;
    let (total, _) = rest.split_once(" kB")?;
    let bytes = |kib: &str| kib.trim().parse::<u64>().ok().map(|n| n.saturating_mul(1024));
    Some(SeedProgress { done_bytes: bytes(done)?, total_bytes: bytes(total)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_comes_in_pieces() {
        let mut pending = String::new();
        assert_eq!(last_progress(&mut pending, "waiting for checkpoint\n    0/307"), None);
        assert_eq!(
            last_progress(&mut pending, "20 kB (0%), 0/1 tablespace\r 15360/30720 kB (50%), 0/1 t"),
            Some(SeedProgress { done_bytes: 0, total_bytes: 30720 * 1024 })
        );
        assert_eq!(
            last_progress(&mut pending, "ablespace\r"),
            Some(SeedProgress { done_bytes: 15360 * 1024, total_bytes: 30720 * 1024 })
        );
    }
}
