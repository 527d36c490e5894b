//! Processes as the kernel shows them in /proc: the only witness that a signal did what it was sent for.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a signal may take to show in /proc.
const EFFECT_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// R, S, D, T, Z, …
    pub state: char,
    /// Ticks since boot: with the pid it names one process for ever.
    pub started: u64,
    pub command: String,
    pub directory: Option<PathBuf>,
}

impl Process {
    pub fn of(pid: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (parent, state, started) = parse_stat(&stat)?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
        let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
        Some(Process { pid, parent, state, started, command, directory })
    }

    /// Whether it still runs code or could: a zombie cannot.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    fn now(&self) -> Option<Process> {
        Process::of(self.pid).filter(|p| p.started == self.started && p.is_alive())
    }
}

/// Fields 3 (state), 4 (parent) and 22 (start time); the name in field 2 may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(u32, char, u64)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some((parent, state, started))
}

/// Living processes that belong to something under `directory`: they work there or name it in their command.
pub fn under(directory: &Path) -> Vec<Process> {
    let me = std::process::id();
    let name = directory.to_string_lossy().into_owned();
    all()
        .into_iter()
        .filter(|p| p.pid != me && p.is_alive())
        .filter(|p| {
            p.directory.as_ref().is_some_and(|d| d.starts_with(directory)) || names(&p.command, &name)
        })
        .collect()
}

/// Whether a command line names the directory itself or something in it, not merely a longer name.
fn names(command: &str, directory: &str) -> bool {
    command.match_indices(directory).any(|(at, _)| {
        matches!(command[at + directory.len()..].chars().next(), None | Some('/' | ' ' | '\'' | '"'))
    })
}

/// Living processes whose working directory is exactly this: those of one PostgreSQL instance.
pub fn of_instance(data_directory: &Path) -> Vec<Process> {
    all().into_iter().filter(|p| p.is_alive() && p.directory.as_deref() == Some(data_directory)).collect()
}

pub fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|e| Process::of(e.file_name().to_str()?.parse().ok()?)).collect()
}

pub fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a pid")?;
    rustix::process::kill_process(target, signal).with_context(|| format!("{signal:?} to {pid}"))
}

/// SIGKILL to all, and back only when none of them lives.
pub fn kill(victims: &[Process]) -> anyhow::Result<()> {
    for victim in victims {
        if victim.now().is_some() {
            // It may end between the look and the signal.
            let _ = signal(victim.pid, Signal::KILL);
        }
    }
    wait_all(victims, "killed", |now| now.is_none())
}

/// SIGSTOP to all, and back only when /proc shows each of them stopped.
pub fn stop(victims: &[Process]) -> anyhow::Result<()> {
    for victim in victims {
        let _ = signal(victim.pid, Signal::STOP);
    }
    wait_all(victims, "stopped", |now| now.is_none_or(|p| matches!(p.state, 'T' | 't')))
}

/// SIGCONT to all, and back only when none of them is stopped.
pub fn resume(victims: &[Process]) -> anyhow::Result<()> {
    for victim in victims {
        let _ = signal(victim.pid, Signal::CONT);
    }
    wait_all(victims, "continued", |now| now.is_none_or(|p| !matches!(p.state, 'T' | 't')))
}

/// Those of `processes` that live and are not stopped: empty while a pause lasts.
pub fn not_stopped(processes: &[Process]) -> Vec<Process> {
    processes.iter().filter_map(Process::now).filter(|p| !matches!(p.state, 'T' | 't')).collect()
}

/// Those of `processes` that still live.
pub fn living(processes: &[Process]) -> Vec<Process> {
    processes.iter().filter_map(Process::now).collect()
}

fn wait_all(
    victims: &[Process],
    what: &str,
    reached: impl Fn(Option<&Process>) -> bool,
) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let left: Vec<String> = victims
            .iter()
            .filter_map(|v| {
                let now = v.now();
                (!reached(now.as_ref())).then(|| format!("{} ({}) {}", v.pid, v.state, v.command))
            })
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > EFFECT_LIMIT {
            bail!("not {what} after {EFFECT_LIMIT:?}: {}", left.join("; "));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn reads_a_name_with_parentheses() {
        let stat = "42 (a) b) S 7 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 99 0";
        assert_eq!(parse_stat(stat), Some((7, 'S', 99)));
    }

    #[test]
    fn a_longer_name_is_another_directory() {
        assert!(names("quorate node --config /tmp/q-1/n1/node.toml", "/tmp/q-1"));
        assert!(names("quorate demo --dir /tmp/q-1 --nodes 4", "/tmp/q-1"));
        assert!(!names("quorate demo --dir /tmp/q-12", "/tmp/q-1"));
    }

    #[test]
    fn stops_continues_and_kills_with_proof() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(directory.path()).spawn().unwrap();
        let found = under(directory.path());
        assert_eq!(found.len(), 1);
        // Whether it runs or sleeps may differ between two looks.
        let pids = |found: &[Process]| found.iter().map(|p| p.pid).collect::<Vec<_>>();
        assert_eq!(pids(&found), pids(&of_instance(&std::fs::canonicalize(directory.path()).unwrap())));
        stop(&found).unwrap();
        assert!(not_stopped(&found).is_empty());
        resume(&found).unwrap();
        assert_eq!(not_stopped(&found).len(), 1);
        kill(&found).unwrap();
        assert!(living(&found).is_empty());
        child.wait().unwrap();
    }
}
