//! Watching a postmaster: its end is noticed at once, its silence within a second or so, and that its log does not get
//! to the disk within three ([`super::stall`]).

use super::error::InstanceError;
use super::session::{Purpose, Session, lock};
use super::stall::{self, LogProgress, Stall};
use super::{Inner, files, orphan, spawn};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::process::Child;

/// While it starts, the instance is asked this often.
const STARTING_POLL: Duration = Duration::from_millis(3);
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// An instance that does not answer for this long is hung.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
const PROBE_RETRY: Duration = Duration::from_millis(20);
/// A kept connection is answered by its backend even while the postmaster is stuck: every so often a probe makes
/// a new one.
const PROBES_PER_CONNECTION: u32 = 8;
/// The log of earlier runs is kept up to this size, then moved aside once.
const LOG_LIMIT_BYTES: u64 = 8 * 1024 * 1024;
/// Read back from the log's end to say why the postmaster ended.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// The state of an instance's postmaster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Process {
    /// It was never started here, or was stopped as ordered.
    Down,
    /// It runs and does not answer queries yet.
    Starting { pid: u32 },
    /// It answers.
    Running { pid: u32 },
    /// It is there and misses its probes: it does not answer, or what it writes does not get to the disk.
    Hung { pid: u32 },
    /// It ended without an order.
    Exited { reason: String, at: Instant },
}

impl Process {
    pub fn pid(&self) -> Option<u32> {
        match self {
            Process::Starting { pid } | Process::Running { pid } | Process::Hung { pid } => Some(*pid),
            Process::Down | Process::Exited { .. } => None,
        }
    }

    pub fn is_live(&self) -> bool {
        self.pid().is_some()
    }
}

/// A postmaster of ours that was not reaped yet. The descriptor names this process and no later one with its
/// number.
pub struct Postmaster {
    pid: u32,
    descriptor: OwnedFd,
    /// Whether its end was ordered.
    pub stopping: AtomicBool,
}

impl Postmaster {
    fn new(pid: u32) -> Result<Postmaster, InstanceError> {
        let open = || {
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let raw = raw.ok_or(std::io::ErrorKind::InvalidInput)?;
            Ok(rustix::process::pidfd_open(raw, PidfdFlags::empty())?)
        };
        let descriptor =
            open().map_err(|source| InstanceError::Spawn { program: "postgres".to_owned(), source })?;
        Ok(Postmaster { pid, descriptor, stopping: AtomicBool::new(false) })
    }

    pub fn signal(&self, signal: Signal) {
        // It may have ended meanwhile, which the watcher tells.
        let _ = rustix::process::pidfd_send_signal(&self.descriptor, signal);
    }

    fn is_stopped(&self) -> bool {
        orphan::is_stopped(self.pid)
    }
}

/// The watcher's hold on its child: when the runtime goes down under it, the postmaster is told to quit.
struct Leash(Arc<Postmaster>);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.signal(Signal::QUIT);
    }
}

/// Starts `postgres` and a task that watches it. The data directory is ready and nobody else uses it.
pub async fn launch(inner: &Arc<Inner>) -> Result<(), InstanceError> {
    let log = open_log(&inner.paths.log)?;
    let mut command = spawn::command(&inner.pg.bin("postgres"), &inner.user, Signal::QUIT);
    command.arg("-D").arg(&inner.paths.data);
    spawn::output_to(&mut command, &log).map_err(InstanceError::file("opening", &inner.paths.log))?;
    let log_from = log.metadata().map(|meta| meta.len()).unwrap_or(0);
    let child = spawn::spawn(command).await?;
    let pid = child.id().ok_or(InstanceError::NotRunning)?;
    let postmaster = Arc::new(Postmaster::new(pid).inspect_err(|_| spawn::kill_group(Some(pid)))?);
    *lock(&inner.postmaster) = Some(postmaster.clone());
    inner.timeline.clear();
    *lock(&inner.sync_names_in_force) = None;
    inner.process.send_replace(Process::Starting { pid });
    tracing::info!(database = %inner.database, replica = %inner.replica, pid, "postmaster started");
    tokio::spawn(watch(inner.clone(), postmaster, child, log_from));
    Ok(())
}

async fn watch(inner: Arc<Inner>, postmaster: Arc<Postmaster>, mut child: Child, log_from: u64) {
    let leash = Leash(postmaster.clone());
    let status = tokio::select! {
        biased;
        status = child.wait() => status,
        never = probe_forever(&inner, &postmaster) => match never {},
    };
    // Reaped: the descriptor names nobody any more, and a signal through it fails.
    drop(leash);
    *lock(&inner.postmaster) = None;
    inner.sessions.clear();
    let failure = end_of_log(&inner.paths.log, log_from, super::trust::LOG_SEARCH_BYTES)
        .and_then(|text| super::trust::storage_failure(&text).map(str::to_owned));
    if let Some(failure) = &failure {
        tracing::error!(database = %inner.database, replica = %inner.replica, failure, "the storage failed; the replica is not started again");
        // Before anybody hears of the end, and could start it again.
        if let Err(error) = inner.paths.mark_distrusted(failure) {
            tracing::error!(replica = %inner.replica, %error, "the mark of it could not be written");
        }
    }
    let (database, replica, pid) = (inner.database, inner.replica, postmaster.pid);
    if postmaster.stopping.load(Ordering::Acquire) {
        tracing::info!(%database, %replica, pid, "postmaster stopped");
        inner.process.send_replace(Process::Down);
        return;
    }
    let status = match status {
        Ok(status) => status.to_string(),
        Err(e) => e.to_string(),
    };
    let at = Instant::now();
    let reason = match failure.or_else(|| last_words(&inner.paths.log, log_from)) {
        Some(words) => format!("{status}: {words}"),
        None => status,
    };
    tracing::warn!(%database, %replica, pid, reason, "postmaster ended");
    inner.process.send_replace(Process::Exited { reason, at });
}

enum Never {}

async fn probe_forever(inner: &Arc<Inner>, postmaster: &Postmaster) -> Never {
    let pid = postmaster.pid;
    let mut session = loop {
        match first_answer(&inner.paths.sockets).await {
            Some(session) => break Some(session),
            None => tokio::time::sleep(STARTING_POLL).await,
        }
    };
    inner.process.send_replace(Process::Running { pid });
    let mut probes = 0u32;
    let mut stall = Stall::default();
    loop {
        tokio::time::sleep(PROBE_INTERVAL).await;
        probes = probes.wrapping_add(1);
        if probes.is_multiple_of(PROBES_PER_CONNECTION) {
            session = None;
        }
        let answer = match postmaster.is_stopped() {
            true => None,
            false => {
                let asked = answer(&inner.paths.sockets, &mut session);
                tokio::time::timeout(PROBE_DEADLINE, asked).await.ok()
            }
        };
        if answer.is_none() {
            session = None;
        }
        let writes = match answer.flatten() {
            Some(progress) => stall.writes(progress, &inner.paths.sockets).await,
            None => !stall.is_known(),
        };
        let answers = answer.is_some() && writes;
        let now = if answers { Process::Running { pid } } else { Process::Hung { pid } };
        inner.process.send_if_modified(|state| {
            let changed = *state != now;
            if changed {
                tracing::warn!(database = %inner.database, replica = %inner.replica, pid, answers, writes, "probe");
                *state = now;
            }
            changed
        });
    }
}

async fn first_answer(sockets: &Path) -> Option<Session> {
    let ask = async {
        let session = Session::open(sockets, Purpose::Quick).await?;
        session.rows("probe", stall::PROBE).await?;
        Ok::<_, InstanceError>(session)
    };
    tokio::time::timeout(PROBE_DEADLINE, ask).await.ok()?.ok()
}

/// Returns when the instance answered, if only to refuse; the caller bounds the wait. Of a primary, how far its log is.
async fn answer(sockets: &Path, kept: &mut Option<Session>) -> Option<LogProgress> {
    loop {
        let session = match kept.take() {
            Some(session) if !session.is_closed() => Ok(session),
            _ => Session::open(sockets, Purpose::Quick).await,
        };
        let outcome = match session {
            Ok(session) => session.row("probe", stall::PROBE).await.map(|row| (session, row)),
            Err(e) => Err(e),
        };
        match outcome {
            Ok((session, row)) => {
                *kept = Some(session);
                return LogProgress::read(&row);
            }
            Err(e) if e.is_answer() => return None,
            Err(_) => tokio::time::sleep(PROBE_RETRY).await,
        }
    }
}

/// Ends the postmaster and everything below it within `deadline`, plus what killing takes.
pub async fn stop(
    inner: &Arc<Inner>,
    mode: super::StopMode,
    deadline: Duration,
) -> Result<(), InstanceError> {
    /// After a polite request was not followed in time.
    const QUIT_GRACE: Duration = Duration::from_millis(1000);
    /// For a process that cannot even be killed: its disk is stuck.
    const KILL_GRACE: Duration = Duration::from_secs(10);
    let running = lock(&inner.postmaster).clone();
    let Some(postmaster) = running else {
        inner.process.send_if_modified(|state| {
            let changed = matches!(state, Process::Exited { .. });
            if changed {
                *state = Process::Down;
            }
            changed
        });
        return Ok(());
    };
    postmaster.stopping.store(true, Ordering::Release);
    let steps = match mode {
        super::StopMode::Fast => {
            vec![(Signal::INT, deadline), (Signal::QUIT, QUIT_GRACE), (Signal::KILL, KILL_GRACE)]
        }
        super::StopMode::Immediate => {
            vec![(Signal::QUIT, deadline.min(QUIT_GRACE)), (Signal::KILL, KILL_GRACE)]
        }
    };
    let mut ended = false;
    for (signal, grace) in steps {
        if signal != Signal::KILL && postmaster.is_stopped() {
            continue;
        }
        postmaster.signal(signal);
        ended = ends_within(inner, &postmaster, signal, grace).await;
        if ended {
            break;
        }
        tracing::warn!(database = %inner.database, replica = %inner.replica, pid = postmaster.pid, ?signal, "the postmaster does not stop in time");
    }
    if !ended {
        return Err(InstanceError::Timeout { what: "stopping the instance", after: deadline });
    }
    let data = inner.paths.data.clone();
    let pids = files::blocking("stopping the instance", move || Ok(orphan::kill_all(&data))).await?;
    if pids.is_empty() { Ok(()) } else { Err(InstanceError::Leftovers { pids }) }
}

/// Waits for the end; not for a process that was stopped meanwhile and cannot hear anything but SIGKILL.
async fn ends_within(inner: &Inner, postmaster: &Postmaster, signal: Signal, grace: Duration) -> bool {
    const LOOK_INTERVAL: Duration = Duration::from_millis(100);
    let mut process = inner.process.subscribe();
    let deadline = tokio::time::Instant::now() + grace;
    loop {
        let look = deadline.min(tokio::time::Instant::now() + LOOK_INTERVAL);
        let gone = process.wait_for(|state| !state.is_live());
        if tokio::time::timeout_at(look, gone).await.is_ok() {
            return true;
        }
        let deaf = signal != Signal::KILL && postmaster.is_stopped();
        if deaf || tokio::time::Instant::now() >= deadline {
            return false;
        }
    }
}

fn open_log(path: &Path) -> Result<std::fs::File, InstanceError> {
    let open = || OpenOptions::new().create(true).append(true).open(path);
    let log = open().map_err(InstanceError::file("opening", path))?;
    if log.metadata().is_ok_and(|meta| meta.len() > LOG_LIMIT_BYTES) {
        std::fs::rename(path, path.with_extension("log.1"))
            .map_err(InstanceError::file("moving aside", path))?;
        return open().map_err(InstanceError::file("opening", path));
    }
    Ok(log)
}

/// The last fatal message that this run wrote.
fn last_words(path: &Path, from: u64) -> Option<String> {
    let text = end_of_log(path, from, LOG_TAIL_BYTES)?;
    let fatal = |line: &&str| line.contains(" FATAL: ") || line.contains(" PANIC: ");
    let said = |line: &&str| !line.trim().is_empty();
    let line = text.lines().rfind(fatal).or_else(|| text.lines().rfind(said))?;
    Some(line.split_once("] ").map_or(line, |(_, message)| message).to_owned())
}

/// What this run wrote, its last `limit` bytes.
pub fn end_of_log(path: &Path, from: u64, limit: u64) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(limit)))).ok()?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
