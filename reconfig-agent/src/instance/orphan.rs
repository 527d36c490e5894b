//! Processes that an earlier postmaster left on a data directory.
//!
//! An earlier daemon may have died with its postmaster stopped, or the postmaster may have been killed while its
//! backends still run. Both hold shared memory, and a new postmaster refuses to start beside them. Every process
//! of PostgreSQL works in its data directory: that, together with the name of its program, is how they are known.
//! A number in a file alone is never believed, because numbers are used again.

use super::error::InstanceError;
use super::files;
use super::paths::{Paths, SOCKET_NAME};
use rustix::process::{Pid, Signal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a live postmaster has to shut down at once before it is killed.
const QUIT_GRACE: Duration = Duration::from_millis(1000);
/// How long killed processes have to go; one in an uninterruptible wait for its disk does not.
const KILL_GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// Ends every PostgreSQL process on `paths.data`, then removes stale lock files. Blocking, bounded by
/// `QUIT_GRACE` + `KILL_GRACE`.
pub fn clear(paths: &Paths) -> Result<(), InstanceError> {
    let Ok(data) = paths.data.canonicalize() else { return Ok(()) };
    let postmaster = postmaster_pid(&data);
    if let Some(pid) = postmaster.filter(|pid| works_on(*pid, &data)) {
        tracing::warn!(pid, data = %data.display(), "a postmaster of an earlier daemon is stopped");
        if !u32::try_from(pid).is_ok_and(is_stopped) {
            signal(pid, Signal::QUIT);
            wait_until_gone(&data, QUIT_GRACE, &[]);
        }
    }
    let left = wait_until_gone(&data, KILL_GRACE, &[Signal::KILL]);
    if !left.is_empty() {
        return Err(InstanceError::Leftovers { pids: left });
    }
    remove_stale_locks(paths, postmaster)
}

/// Kills what is left of an instance whose postmaster is gone. Blocking.
pub fn kill_all(data: &Path) -> Vec<i32> {
    match data.canonicalize() {
        Ok(data) => wait_until_gone(&data, KILL_GRACE, &[Signal::KILL]),
        Err(_) => Vec::new(),
    }
}

/// Stopped by a signal or a debugger: such a process reacts to nothing but SIGKILL.
pub fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // The name of the program, in parentheses, may hold anything; the state follows it.
    let state = stat
        .ok()
        .and_then(|text| text.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next()));
    matches!(state, Some('T' | 't'))
}

/// Sends the signals to all of them until none is left, and returns who is.
fn wait_until_gone(data: &Path, grace: Duration, signals: &[Signal]) -> Vec<i32> {
    let deadline = Instant::now() + grace;
    loop {
        let left = processes_on(data);
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        for pid in &left {
            for s in signals {
                signal(*pid, *s);
            }
        }
        std::thread::sleep(POLL);
    }
}

fn processes_on(data: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .filter(|pid| works_on(*pid, data))
        .collect()
}

/// A zombie has neither link and does not count: it holds nothing.
fn works_on(pid: i32, data: &Path) -> bool {
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).ok();
    link("cwd").is_some_and(|cwd| cwd == data) && link("exe").is_some_and(|exe| is_postgres(&exe))
}

/// A program that was replaced by an upgrade is shown with ` (deleted)` behind its name.
fn is_postgres(exe: &Path) -> bool {
    let name = exe.file_name().unwrap_or_default().to_string_lossy();
    matches!(name.strip_suffix(" (deleted)").unwrap_or(&name), "postgres" | "postmaster")
}

fn postmaster_pid(data: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 1)
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may be gone already.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A lock file whose number now belongs to some other process would stop the start. The one in the data directory
/// is left in place otherwise: PostgreSQL frees the shared memory that it names.
fn remove_stale_locks(paths: &Paths, postmaster: Option<i32>) -> Result<(), InstanceError> {
    let number_is_taken = postmaster.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
    if number_is_taken {
        files::remove(&paths.data.join("postmaster.pid"))?;
    }
    let socket: PathBuf = paths.sockets.join(SOCKET_NAME);
    files::remove(&socket)?;
    files::remove(&paths.sockets.join(format!("{SOCKET_NAME}.lock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_postgres_is_taken_for_postgres() {
        assert!(is_postgres(Path::new("/usr/lib/postgresql/15/bin/postgres")));
        assert!(is_postgres(Path::new("/usr/lib/postgresql/15/bin/postgres (deleted)")));
        assert!(!is_postgres(Path::new("/bin/bash")));
        assert!(!is_postgres(Path::new("/usr/bin/postgres_exporter")));
    }
}
