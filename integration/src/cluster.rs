//! A cluster of its own for a test: `quorate demo` in a fresh directory on free ports, ended with proof that it
//! left no process behind.

use crate::admin::{Admin, DatabaseView};
use crate::links::Links;
use crate::process::{self, Process};
use crate::sql::Endpoint;
use crate::{binaries, logs, ports, wait};
use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Four nodes, initdb, two base backups, on two slow cores.
pub const START_LIMIT: Duration = Duration::from_secs(120);
/// For a stop that was asked for politely.
pub const STOP_LIMIT: Duration = Duration::from_secs(40);
/// For a database to be whole again by itself: `replace_after` (15 s in the demo), a copy, and slack.
pub const HEAL_LIMIT: Duration = Duration::from_secs(90);

#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: u16,
    /// Whether nodes reach each other by ways that can be cut. Takes a second start.
    pub links: bool,
    /// Whether its daemons may be told to die at a step: see [`crate::failpoints`].
    pub failpoints: bool,
    /// Whether the daemons run as an ordinary user when the tests run as root; otherwise they run as whoever tests.
    pub ordinary: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { nodes: 4, links: false, failpoints: false, ordinary: false }
    }
}

/// `nobody`, by number everywhere.
const ORDINARY: u32 = 65534;

/// A node as `demo.json` names it.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub client: u16,
    pub admin: u16,
    pub http: u16,
    pub peer: u16,
    pub pid: u32,
    pub data_dir: PathBuf,
    /// As found in the running process's command line.
    pub config: PathBuf,
}

impl Node {
    /// The database `app` by this node's client port.
    pub fn app(&self) -> Endpoint {
        Endpoint::new(self.client, "demo", "demo", "app")
    }
}

/// Gives the directory to the ordinary user, with the daemon in it: the build may be where only root can go.
fn lend(directory: &Path, binary: &Path) -> anyhow::Result<PathBuf> {
    let copy = directory.join("quorate");
    std::fs::copy(binary, &copy).with_context(|| format!("copying {}", binary.display()))?;
    chown(directory, Some(ORDINARY), Some(ORDINARY))?;
    Ok(copy)
}

pub struct Cluster {
    /// What a test may look at; `demo` in it is the demo's own directory.
    directory: PathBuf,
    binary: PathBuf,
    /// The user of the daemons, where it is another.
    user: Option<u32>,
    base_port: u16,
    options: Options,
    demo: Option<Child>,
    /// Nodes that were started again one by one.
    restarted: BTreeMap<String, Child>,
    starts: u32,
    nodes: Vec<Node>,
    links: Option<Links>,
    pub url: String,
    pub admin_url: String,
    keep: bool,
}

impl Cluster {
    pub async fn start(options: Options) -> anyhow::Result<Cluster> {
        // Short, for the sake of Unix sockets' names; open to traversal, for instances that run as `postgres`.
        let directory =
            tempfile::Builder::new().prefix("q-").tempdir_in("/tmp").context("a directory in /tmp")?.keep();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        let as_other = options.ordinary && rustix::process::geteuid().is_root();
        let binary = binaries::quorate()?;
        let binary = if as_other { lend(&directory, &binary)? } else { binary };
        let mut cluster = Cluster {
            base_port: ports::free_base(options.nodes)?,
            directory,
            binary,
            user: as_other.then_some(ORDINARY),
            options,
            demo: None,
            restarted: BTreeMap::new(),
            starts: 0,
            nodes: Vec::new(),
            links: None,
            url: String::new(),
            admin_url: String::new(),
            keep: std::env::var_os("QUORATE_TEST_KEEP").is_some(),
        };
        if let Err(error) = cluster.start_first().await {
            cluster.show_logs();
            return Err(error);
        }
        Ok(cluster)
    }

    async fn start_first(&mut self) -> anyhow::Result<()> {
        self.start_demo().await?;
        if !self.options.links {
            return Ok(());
        }
        // Only a demo that has run once has configurations to change.
        self.stop_demo().await?;
        let peers: Vec<(String, u16)> = self.nodes.iter().map(|n| (n.name.clone(), n.peer)).collect();
        let links = Links::start(&peers).await?;
        for node in &self.nodes {
            links.reroute(&node.name, &node.config)?;
        }
        self.links = Some(links);
        self.start_demo().await
    }

    /// The ways between the nodes, if the cluster was started with them.
    pub fn links(&self) -> Option<&Links> {
        self.links.as_ref()
    }

    /// Starts the demo on this cluster's directory: the first time, and again after [`Cluster::stop_demo`].
    pub async fn start_demo(&mut self) -> anyhow::Result<()> {
        self.start_demo_with(&[]).await
    }

    /// As [`Cluster::start_demo`], with more words on its command line.
    pub async fn start_demo_with(&mut self, words: &[&str]) -> anyhow::Result<()> {
        ensure!(self.demo.is_none(), "the demo runs already");
        self.starts += 1;
        let log = self.directory.join(format!("demo-{}.out", self.starts));
        let mut command = self.demo_command(&self.demo_dir())?;
        command.args(words);
        self.demo = Some(spawn(command, &log)?);
        let started = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if said.lines().any(|line| line.trim() == "ready") {
                break;
            }
            let child = self.demo.as_mut().context("the demo was started")?;
            if let Some(status) = child.try_wait()? {
                self.demo = None;
                bail!("the demo ended with {status} before it was ready:\n{}", logs::tail(&said, 40));
            }
            if started.elapsed() > START_LIMIT {
                bail!("the demo was not ready within {START_LIMIT:?}:\n{}", logs::tail(&said, 40));
            }
            tokio::time::sleep(wait::POLL).await;
        }
        self.read_demo_file()
    }

    fn demo_command(&self, directory: &Path) -> anyhow::Result<Command> {
        let mut command = self.quorate()?;
        command.args(["demo", "--nodes", &self.options.nodes.to_string()]);
        command.args(["--base-port", &self.base_port.to_string()]);
        command.arg("--dir").arg(directory);
        Ok(command)
    }

    /// What a demo in this directory says before it gives up, which it must within `limit`.
    pub async fn refused_demo(&self, directory: &Path, limit: Duration) -> anyhow::Result<String> {
        let command = self.demo_command(directory)?;
        let said = crate::driver::run(command.into(), "", limit).await?;
        ensure!(!said.success, "a demo runs in {}", directory.display());
        Ok(said.err)
    }

    fn quorate(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.binary);
        if let Some(user) = self.user {
            command.uid(user).gid(user).env("HOME", &self.directory);
        }
        if self.options.failpoints {
            command.env("FAILPOINTS", "");
        }
        Ok(command)
    }

    fn read_demo_file(&mut self) -> anyhow::Result<()> {
        let path = self.demo_dir().join("demo.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let file: DemoFile = serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        self.nodes = file.nodes.iter().map(|n| n.node(&self.demo_dir())).collect::<anyhow::Result<_>>()?;
        ensure!(
            self.nodes.len() == usize::from(self.options.nodes),
            "demo.json names {} nodes",
            self.nodes.len()
        );
        self.url = file.url;
        self.admin_url = file.admin_url;
        Ok(())
    }

    pub fn demo_dir(&self) -> PathBuf {
        self.directory.join("demo")
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn demo_pid(&self) -> Option<u32> {
        self.demo.as_ref().map(Child::id)
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes.iter().find(|n| n.name == name).with_context(|| format!("no node is named {name}"))
    }

    /// All nodes but this one, in order.
    pub fn others(&self, name: &str) -> Vec<Node> {
        self.nodes.iter().filter(|n| n.name != name).cloned().collect()
    }

    /// The daemon's process and its instances', as they are now.
    pub fn processes_of(&self, name: &str) -> anyhow::Result<Vec<Process>> {
        let node = self.node(name)?;
        let mut all: Vec<Process> = Process::of(node.pid).filter(Process::is_alive).into_iter().collect();
        let data_dir = std::fs::canonicalize(&node.data_dir).unwrap_or_else(|_| node.data_dir.clone());
        all.extend(process::under(&data_dir).into_iter().filter(|p| {
            // The demo names every node's directory; a restarted daemon is found by its pid.
            p.pid != node.pid && Some(p.pid) != self.demo_pid()
        }));
        Ok(all)
    }

    /// An admin session on the first node that answers.
    pub async fn admin(&self) -> anyhow::Result<Admin> {
        Admin::open(&self.nodes).await
    }

    /// Waits until the database is stable and open with `copies` healthy copies and nothing left over.
    pub async fn whole(
        &self,
        database: &str,
        copies: usize,
        limit: Duration,
    ) -> anyhow::Result<DatabaseView> {
        let nodes: Vec<&Node> = self.nodes.iter().collect();
        Cluster::whole_by(&nodes, database, copies, limit).await
    }

    /// The same, and every secondary has what the primary had when this was asked: one that runs may still turn out
    /// to have a history of its own. Somebody has to write meanwhile.
    pub async fn following(
        &self,
        database: &str,
        copies: usize,
        limit: Duration,
    ) -> anyhow::Result<DatabaseView> {
        let first = self.whole(database, copies, limit).await?;
        let goal = first.primary()?.flushed()?;
        wait::until(&format!("every copy of {database} past {goal}"), limit, async || {
            let view = self.admin().await?.database(database).await?;
            let mut past = view.is_whole(copies);
            for replica in &view.replicas {
                past &= replica.flushed()? > goal;
            }
            Ok(if past { Ok(view) } else { Err(view) })
        })
        .await
    }

    /// The same as seen by some of the nodes.
    pub async fn whole_by(
        nodes: &[&Node],
        database: &str,
        copies: usize,
        limit: Duration,
    ) -> anyhow::Result<DatabaseView> {
        wait::until(&format!("{database} whole with {copies} copies"), limit, async || {
            let admin = Admin::open(nodes.iter().copied()).await?;
            let view = admin.database(database).await?;
            Ok(if view.is_whole(copies) { Ok(view) } else { Err(view) })
        })
        .await
    }

    /// Waits until `database` is open with its primary on another node than `former`, as the others see it.
    pub async fn failed_over(
        &self,
        database: &str,
        former: &str,
        limit: Duration,
    ) -> anyhow::Result<DatabaseView> {
        let others = self.others(former);
        wait::until(&format!("{database} open away from {former}"), limit, async || {
            let admin = Admin::open(&others).await?;
            let view = admin.database(database).await?;
            let moved = view.row.open && view.primary().is_ok_and(|p| p.node != former && p.is_healthy());
            Ok(if moved { Ok(view) } else { Err(view) })
        })
        .await
    }

    /// SIGTERM to a node, and back when it and its instances have ended.
    pub async fn end_node(&mut self, name: &str) -> anyhow::Result<()> {
        let pid = self.node(name)?.pid;
        ensure!(Process::of(pid).is_some_and(|p| p.is_alive()), "{name} does not run as {pid}");
        process::signal(pid, Signal::TERM)?;
        wait::until(&format!("{name} ended"), STOP_LIMIT, async || {
            let left = self.processes_of(name)?;
            Ok(if left.is_empty() { Ok(()) } else { Err(left) })
        })
        .await
    }

    /// Starts a node again whose process is gone.
    pub async fn start_node(&mut self, name: &str) -> anyhow::Result<()> {
        self.starts += 1;
        let log = self.directory.join(format!("{name}-{}.out", self.starts));
        let node = self.node(name)?.clone();
        ensure!(
            Process::of(node.pid).is_none_or(|p| !p.is_alive() || !p.command.contains("node")),
            "{name} still runs as {}",
            node.pid
        );
        let mut command = self.quorate()?;
        command.arg("node").arg("--config").arg(&node.config);
        let child = spawn(command, &log)?;
        let pid = child.id();
        if let Some(mut former) = self.restarted.insert(name.to_owned(), child) {
            // Reaped, so that it does not stay behind as a zombie.
            let _ = former.try_wait();
        }
        for known in &mut self.nodes {
            if known.name == name {
                known.pid = pid;
            }
        }
        let others = self.others(name);
        wait::until(&format!("{name} alive again"), Duration::from_secs(30), async || {
            let rows = Admin::open(&others).await?.nodes().await?;
            let state = rows.into_iter().find(|r| r.node == name).map(|r| r.state);
            let answers = Admin::endpoint(node.admin).connect().await.is_ok();
            Ok(if state.as_deref() == Some("alive") && answers { Ok(()) } else { Err((state, answers)) })
        })
        .await
    }

    /// Asks the demo to end and checks that nothing of it lives on.
    pub async fn stop_demo(&mut self) -> anyhow::Result<()> {
        self.end_demo_by(Signal::TERM).await
    }

    /// As [`Cluster::stop_demo`], by another signal: Ctrl-C is SIGINT, and of SIGKILL the demo itself hears nothing.
    pub async fn end_demo_by(&mut self, signal: Signal) -> anyhow::Result<()> {
        let left = self.end(signal).await?;
        ensure!(left.is_empty(), "left behind after the stop: {left:#?}");
        Ok(())
    }

    /// `kill -9` of the demo, every node and every instance at once, as a machine would lose power.
    pub fn kill_everything(&mut self) -> anyhow::Result<()> {
        // A supervisor may start something between the look and the signal: until a look finds nothing.
        for _ in 0..10 {
            let all = process::under(&self.directory);
            if all.is_empty() {
                break;
            }
            process::kill(&all)?;
        }
        let left = process::under(&self.directory);
        ensure!(left.is_empty(), "kill -9 left {left:#?}");
        self.reap();
        Ok(())
    }

    fn reap(&mut self) {
        for mut child in self.demo.take().into_iter().chain(std::mem::take(&mut self.restarted).into_values())
        {
            let _ = child.wait();
        }
    }

    /// Ends everything; what did not end by itself is returned, and killed.
    async fn end(&mut self, by: Signal) -> anyhow::Result<Vec<Process>> {
        let all = process::under(&self.directory);
        process::resume(&all)?;
        if let Some(child) = &self.demo {
            let _ = process::signal(child.id(), by);
        }
        for child in self.restarted.values() {
            let _ = process::signal(child.id(), Signal::TERM);
        }
        let ended = wait::until_true("the cluster ended", STOP_LIMIT, || {
            // As a shell would that started them: nobody else waits for these nodes.
            for child in self.demo.iter_mut().chain(self.restarted.values_mut()) {
                let _ = child.try_wait();
            }
            process::under(&self.directory).is_empty()
        });
        let _ = ended.await;
        let left = process::under(&self.directory);
        self.kill_everything()?;
        Ok(left)
    }

    /// Ends the cluster. The directory goes, unless it is to be kept.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let stopped = self.stop_demo().await;
        if stopped.is_err() {
            self.keep = true;
            logs::show(&self.directory);
        }
        stopped
    }

    /// Shows the logs and keeps the directory: something failed.
    pub fn show_logs(&mut self) {
        self.keep = true;
        logs::show(&self.directory);
    }
}

impl Drop for Cluster {
    /// No process outlives a test, whatever became of it.
    fn drop(&mut self) {
        if std::thread::panicking() && !self.keep {
            self.show_logs();
        }
        let all = process::under(&self.directory);
        let _ = process::resume(&all);
        if let Err(error) = self.kill_everything() {
            eprintln!("{}: {error:#}", self.directory.display());
        }
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// Starts a program with its words in a file, bound to this process: it must not outlive a test that was killed.
fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let out = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let err = out.try_clone()?;
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    // SAFETY: between fork and exec, prctl is a bare system call: no memory is allocated, no lock is taken.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(std::io::Error::from)
        });
    }
    command.spawn().with_context(|| format!("starting {command:?}"))
}

/// `demo.json`, whose form is an interface.
#[derive(Debug, Deserialize)]
struct DemoFile {
    url: String,
    admin_url: String,
    nodes: Vec<DemoNode>,
}

#[derive(Debug, Deserialize)]
struct DemoNode {
    name: String,
    client: String,
    admin: String,
    http: String,
    peer: String,
    pid: u32,
    data_dir: PathBuf,
}

impl DemoNode {
    fn node(&self, demo_dir: &Path) -> anyhow::Result<Node> {
        let process = Process::of(self.pid).filter(Process::is_alive);
        let process =
            process.with_context(|| format!("{}: pid {} of demo.json is not alive", self.name, self.pid))?;
        let named = process.command.split(' ').skip_while(|word| *word != "--config").nth(1);
        Ok(Node {
            name: self.name.clone(),
            client: port(&self.client)?,
            admin: port(&self.admin)?,
            http: port(&self.http)?,
            peer: port(&self.peer)?,
            pid: self.pid,
            data_dir: self.data_dir.clone(),
            config: named.map_or_else(|| demo_dir.join(&self.name).join("node.toml"), PathBuf::from),
        })
    }
}

fn port(address: &str) -> anyhow::Result<u16> {
    let (host, port) = address.rsplit_once(':').with_context(|| format!("{address:?} is not HOST:PORT"))?;
    ensure!(host == "127.0.0.1", "{address:?} is not on 127.0.0.1");
    port.parse().with_context(|| format!("{address:?} has no port number"))
}

/// Changes one number in a node's configuration.
pub fn set_number(text: &str, name: &str, value: u64) -> anyhow::Result<String> {
    let mut found = false;
    let lines = text.lines().map(|line| {
        if line.split('=').next().map(str::trim) == Some(name) {
            found = true;
            format!("{name} = {value}")
        } else {
            line.to_owned()
        }
    });
    let lines: Vec<String> = lines.collect();
    ensure!(found, "{name} is not in the configuration:\n{text}");
    Ok(lines.join("\n") + "\n")
}
