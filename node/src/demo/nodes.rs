//! The demo's node processes: started, watched, stopped; and those that a killed demo left behind.

use super::layout::Layout;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A node's process that ended by itself.
pub struct Ended {
    pub name: String,
    pub status: String,
}

pub struct Nodes {
    pids: Vec<(String, u32)>,
    ends: mpsc::Receiver<Ended>,
    running: tokio_util::task::TaskTracker,
}

impl Nodes {
    pub fn start(layout: &Layout) -> anyhow::Result<Nodes> {
        let (sender, ends) = mpsc::channel(64);
        let running = tokio_util::task::TaskTracker::new();
        let mut pids = Vec::new();
        for config in &layout.nodes {
            let home = layout.home(config);
            let log = fs::OpenOptions::new().create(true).append(true).open(home.join("log"))?;
            let mut command = Command::new(std::env::current_exe()?);
            command
                .arg("node")
                .arg("--config")
                .arg(home.join("node.toml"))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .process_group(0);
            // SAFETY: one system call between fork and exec. The demo's end, however it comes, ends its nodes.
            unsafe {
                command.pre_exec(|| {
                    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                    Ok(())
                });
            }
            let mut child = spawn_on_main(command)?;
            let pid = child.id().context("the node ended at once")?;
            fs::write(home.join("pid"), pid_line(pid))?;
            pids.push((config.name.clone(), pid));
            let (sender, name) = (sender.clone(), config.name.clone());
            running.spawn(async move {
                let status = child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
                // Nobody listens any more when the demo is stopping.
                let _ = sender.send(Ended { name, status }).await;
            });
        }
        Ok(Nodes { pids, ends, running })
    }

    pub fn pid(&self, name: &str) -> Option<u32> {
        self.pids.iter().find(|(n, _)| n == name).map(|(_, pid)| *pid)
    }

    /// Returns when every node's /healthz says so.
    pub async fn wait_ready(&mut self, layout: &Layout) -> anyhow::Result<()> {
        for config in &layout.nodes {
            while !super::setup::is_healthy(config.listen.http).await {
                if let Ok(ended) = self.ends.try_recv() {
                    let log = layout.directory.join(&ended.name).join("log");
                    let text = fs::read_to_string(&log).unwrap_or_default();
                    let last: Vec<&str> = text.lines().rev().take(3).collect();
                    bail!(
                        "{} ended ({}): {}; hint: see {}",
                        ended.name,
                        ended.status,
                        last.into_iter().rev().collect::<Vec<_>>().join(" | "),
                        log.display()
                    );
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    pub async fn next_end(&mut self) -> Ended {
        match self.ends.recv().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// For scripts: where everything is. Written whole or not at all.
    pub fn write_json(&self, layout: &Layout) -> anyhow::Result<()> {
        let nodes: Vec<serde_json::Value> = layout
            .nodes
            .iter()
            .map(|c| {
                serde_json::json!({
                    "name": c.name,
                    "client": c.listen.client.to_string(),
                    "admin": c.listen.admin.to_string(),
                    "http": c.listen.http.to_string(),
                    "peer": c.listen.peer.to_string(),
                    "pid": self.pid(&c.name),
                    "data_dir": c.data_dir,
                })
            })
            .collect();
        let all = serde_json::json!({
            "url": layout.url(),
            "nodes": nodes,
            "admin_url": layout.admin_url(),
        });
        let path = layout.json();
        let temporary = layout.directory.join("demo.json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(&all)?)?;
        Ok(fs::rename(temporary, path)?)
    }

    /// SIGTERM, a bounded wait, SIGKILL; returns when no node is left.
    pub async fn stop(&mut self) {
        let signal = |name: &str, pid: u32, signal: Signal| {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                // It may have ended meanwhile.
                let _ = kill_process(pid, signal);
                tracing::debug!(name, ?signal, "signalled");
            }
        };
        // Children are reaped by this process only, so a pid cannot have become somebody else's while its
        // waiter is still running.
        self.running.close();
        if self.running.is_empty() {
            return;
        }
        let alive = self.alive();
        for (name, pid) in &alive {
            signal(name, *pid, Signal::TERM);
            // A stopped process (a fault that somebody is trying) could not end otherwise.
            signal(name, *pid, Signal::CONT);
        }
        if tokio::time::timeout(STOP_LIMIT, self.drain()).await.is_err() {
            for (name, pid) in self.alive() {
                signal(&name, pid, Signal::KILL);
            }
            self.drain().await;
        }
    }

    fn alive(&self) -> Vec<(String, u32)> {
        self.pids.iter().filter(|(_, pid)| is_quorate(*pid)).cloned().collect()
    }

    async fn drain(&mut self) {
        let Nodes { ends, running, .. } = self;
        tokio::select! {
            () = running.wait() => {}
            () = async { while ends.recv().await.is_some() {} } => {}
        }
    }
}

/// The death signal belongs to the thread that forks; `block_on` runs on the main thread, which lives longest.
fn spawn_on_main(mut command: Command) -> std::io::Result<Child> {
    command.spawn()
}

/// A pid file's line: the number alone could be somebody else's by the time it is read.
pub fn pid_line(pid: u32) -> String {
    format!("{pid} {}\n", start_time(pid).unwrap_or(0))
}

/// Field 22 of /proc/PID/stat: tells a process from a later one with the same number. A process that has ended and
/// waits for its parent counts as gone.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether this program runs under the pid, by whatever name it was installed.
fn is_quorate(pid: u32) -> bool {
    let name = |who: &str| fs::read_to_string(format!("/proc/{who}/comm")).ok();
    name(&pid.to_string()).is_some_and(|c| c.trim() == "quorate" || Some(&c) == name("self").as_ref())
}

/// Nodes of an earlier demo that still run, by their pid files; nobody else's process is ever named.
fn former(directory: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .flat_map(|e| [e.path().join("pid"), e.path().join("data/pid")])
        .filter_map(|path| fs::read_to_string(path).ok())
        .filter_map(|text| {
            let (pid, started) = text.trim().split_once(' ')?;
            let pid: u32 = pid.parse().ok()?;
            (start_time(pid)? == started.parse::<u64>().ok()? && is_quorate(pid)).then_some(pid)
        })
        .collect()
}

fn signal_all(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|p| Pid::from_raw(i32::try_from(*p).ok()?)) {
        let _ = kill_process(pid, signal);
    }
}

/// Before a directory is deleted.
pub fn kill_former(directory: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let left = former(directory);
        if left.is_empty() {
            return Ok(());
        }
        signal_all(&left, Signal::KILL);
        if began.elapsed() > STOP_LIMIT {
            bail!("nodes of an earlier demo do not end: {left:?}");
        }
        std::thread::sleep(POLL);
    }
}

/// A demo that was killed leaves nodes that are about to end: waits for them, then helps.
pub async fn end_former(layout: &Layout, progress: &impl Fn(&str)) -> anyhow::Result<()> {
    let left = former(&layout.directory);
    if left.is_empty() {
        return Ok(());
    }
    progress(&format!("ending {} nodes that an earlier demo left", left.len()));
    signal_all(&left, Signal::TERM);
    signal_all(&left, Signal::CONT);
    let began = Instant::now();
    while began.elapsed() < STOP_LIMIT {
        if former(&layout.directory).is_empty() {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    kill_former(&layout.directory)
}
