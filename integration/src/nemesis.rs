//! Doing harm, and verifying in /proc that it was done. A test of survival that did not kill anything passes too.

use crate::admin::ReplicaRow;
use crate::cluster::Cluster;
use crate::process::{self, Process};
use anyhow::{Context, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

/// Rounds of looking for processes that appeared while others were being signalled.
const ROUNDS: usize = 20;

/// What was done to whom, and when.
#[derive(Debug)]
pub struct Harm {
    pub at: Instant,
    pub victims: Vec<Process>,
}

/// `kill -9` of a replica's postmaster.
pub fn kill_postmaster(replica: &ReplicaRow) -> anyhow::Result<Harm> {
    let victims = vec![postmaster(replica)?];
    let at = Instant::now();
    process::kill(&victims)?;
    Ok(Harm { at, victims })
}

/// The loss of a replica's disk: everything that was kept of it, its promise too, is gone, and its postmaster ended.
pub fn lose_disk(replica: &ReplicaRow) -> anyhow::Result<Harm> {
    let directory = Path::new(&replica.data_directory).parent().context("a replica's directory")?;
    let aside = directory.with_extension("lost");
    let mut victims = vec![postmaster(replica)?];
    let at = Instant::now();
    // At once for whoever looks by its name; the files go afterwards.
    std::fs::rename(directory, &aside).with_context(|| directory.display().to_string())?;
    process::kill(&victims)?;
    // Its children notice by themselves, but write until then.
    let children = process::of_instance(&std::fs::canonicalize(aside.join("data"))?);
    process::kill(&children)?;
    victims.extend(children);
    std::fs::remove_dir_all(&aside).with_context(|| aside.display().to_string())?;
    Ok(Harm { at, victims })
}

/// The process that SHOW REPLICAS gives the pid of, once it is proven to be that replica's postmaster.
fn postmaster(replica: &ReplicaRow) -> anyhow::Result<Process> {
    let pid = replica.pid.with_context(|| format!("SHOW REPLICAS gives no pid for {}", replica.replica))?;
    let found = Process::of(pid).filter(Process::is_alive);
    let found = found.with_context(|| format!("no process {pid}, the postmaster of {}", replica.replica))?;
    let directory = std::fs::canonicalize(&replica.data_directory)?;
    ensure!(
        found.directory.as_deref() == Some(directory.as_path()),
        "{pid} works in {:?}, not in {}",
        found.directory,
        directory.display()
    );
    let first = std::fs::read_to_string(directory.join("postmaster.pid"))?;
    ensure!(
        first.lines().next() == Some(&pid.to_string()),
        "{pid} is not the postmaster of {}",
        directory.display()
    );
    Ok(found)
}

/// `kill -9` of a node: its daemon first, so that it cannot react, then every process of its instances.
pub fn kill_node(cluster: &Cluster, name: &str) -> anyhow::Result<Harm> {
    let mut victims = cluster.processes_of(name)?;
    let daemon = cluster.node(name)?.pid;
    ensure!(victims.iter().any(|p| p.pid == daemon), "the daemon of {name}, {daemon}, does not run");
    victims.sort_by_key(|p| p.pid != daemon);
    let at = Instant::now();
    process::kill(&victims)?;
    for _ in 0..ROUNDS {
        let more = cluster.processes_of(name)?;
        if more.is_empty() {
            return Ok(Harm { at, victims });
        }
        process::kill(&more)?;
        victims.extend(more);
    }
    anyhow::bail!("processes of {name} keep appearing: {:?}", cluster.processes_of(name)?)
}

/// What of a node a pause stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The daemon; its instances run on.
    Daemon,
    /// The daemon and every process of its instances.
    Whole,
}

/// SIGSTOP.
pub fn pause_node(cluster: &Cluster, name: &str, pause: Pause) -> anyhow::Result<Harm> {
    let daemon = cluster.node(name)?.pid;
    let at = Instant::now();
    let mut victims: Vec<Process> = Process::of(daemon).filter(Process::is_alive).into_iter().collect();
    ensure!(!victims.is_empty(), "the daemon of {name}, {daemon}, does not run");
    process::stop(&victims)?;
    if pause == Pause::Whole {
        stop_all(&mut victims, || cluster.processes_of(name))?;
    }
    ensure!(process::not_stopped(&victims).is_empty(), "{name} is not stopped");
    Ok(Harm { at, victims })
}

/// SIGSTOP to every process of these instances.
pub fn stop_instances<'a>(replicas: impl IntoIterator<Item = &'a ReplicaRow>) -> anyhow::Result<Harm> {
    let at = Instant::now();
    let mut victims = Vec::new();
    for replica in replicas {
        let directory = std::fs::canonicalize(&replica.data_directory)?;
        let before = victims.len();
        stop_all(&mut victims, || Ok(process::of_instance(&directory)))?;
        ensure!(victims.len() > before, "{} has no process in {}", replica.replica, directory.display());
    }
    Ok(Harm { at, victims })
}

/// SIGSTOP to a postmaster alone: its sessions go on, and nobody gets a new one.
pub fn stop_postmaster(replica: &ReplicaRow) -> anyhow::Result<Harm> {
    let victim = postmaster(replica)?;
    stop_one(victim)
}

/// SIGSTOP to what receives a secondary's log.
pub fn stop_walreceiver(replica: &ReplicaRow) -> anyhow::Result<Harm> {
    let directory = std::fs::canonicalize(&replica.data_directory)?;
    let receiver = process::of_instance(&directory).into_iter().find(|p| p.command.contains("walreceiver"));
    stop_one(receiver.with_context(|| format!("{} has no walreceiver", replica.replica))?)
}

/// SIGKILL to the first process of this program that names `directory`, as soon as it is there, within `limit`. Blocks.
pub fn kill_as_it_starts(program: &str, directory: &Path, limit: Duration) -> anyhow::Result<Harm> {
    let (directory, began) = (directory.to_string_lossy(), Instant::now());
    loop {
        ensure!(began.elapsed() < limit, "{program} did not run on {directory} within {limit:?}");
        let is_it = |p: &Process| p.command.contains(program) && p.command.contains(&*directory);
        let victims: Vec<Process> =
            process::all().into_iter().filter(|p| p.is_alive() && is_it(p)).take(1).collect();
        if !victims.is_empty() {
            let at = Instant::now();
            process::kill(&victims)?;
            return Ok(Harm { at, victims });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// SIGSTOP to what writes a replica's checkpoints.
pub fn stop_checkpointer(replica: &ReplicaRow) -> anyhow::Result<Harm> {
    let directory = std::fs::canonicalize(&replica.data_directory)?;
    let found = process::of_instance(&directory).into_iter().find(|p| p.command.contains("checkpointer"));
    stop_one(found.with_context(|| format!("{} has no checkpointer", replica.replica))?)
}

fn stop_one(victim: Process) -> anyhow::Result<Harm> {
    let at = Instant::now();
    let victims = vec![victim];
    process::stop(&victims)?;
    ensure!(process::living(&victims).len() == 1, "it ended instead of stopping: {victims:?}");
    Ok(Harm { at, victims })
}

/// Stops what `look` finds, until a look finds nothing that runs.
fn stop_all(
    victims: &mut Vec<Process>,
    look: impl Fn() -> anyhow::Result<Vec<Process>>,
) -> anyhow::Result<()> {
    for _ in 0..ROUNDS {
        let running = process::not_stopped(&look()?);
        if running.is_empty() {
            return Ok(());
        }
        process::stop(&running)?;
        victims.extend(running);
    }
    anyhow::bail!("processes keep appearing: {:?}", look()?)
}

impl Harm {
    /// SIGCONT to whoever was stopped and still lives.
    pub fn undo(&self) -> anyhow::Result<()> {
        process::resume(&self.victims)
    }

    /// Says which of those stopped run or are gone: empty while the pause holds.
    pub fn broken(&self) -> Vec<String> {
        let running = process::not_stopped(&self.victims);
        let living = process::living(&self.victims);
        // One without a command line had ended already when it was found: nobody had collected it yet.
        let gone = self.victims.iter().filter(|v| {
            !v.command.is_empty() && !living.contains(v) && !living.iter().any(|l| l.pid == v.pid)
        });
        let running = running.iter().map(|p| format!("{} runs: {}", p.pid, p.command));
        running.chain(gone.map(|p| format!("{} is gone: {}", p.pid, p.command))).collect()
    }
}

impl Drop for Harm {
    /// A test that fails in the middle leaves nothing stopped.
    fn drop(&mut self) {
        let stopped: Vec<Process> =
            process::living(&self.victims).into_iter().filter(|p| matches!(p.state, 'T' | 't')).collect();
        let _ = process::resume(&stopped);
    }
}
