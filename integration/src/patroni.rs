//! What a failover of Quorate is measured against: three nodes of Patroni on this machine, each with its PostgreSQL
//! and its member of etcd, quorum commit, and the same settings of PostgreSQL as far as they decide speed.
//!
//! Its clients know all three hosts and connect to the one that takes writes, as Patroni's documentation advises.

use crate::process::{self, Process};
use crate::sql::Endpoint;
use crate::{binaries, driver, ports, wait};
use anyhow::{Context, ensure};
use serde::Deserialize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NODES: usize = 3;
/// For three nodes to come up, and for a cluster to be whole again after a fault with Patroni's default times.
const WHOLE_LIMIT: Duration = Duration::from_secs(180);
const ORDER_LIMIT: Duration = Duration::from_secs(60);
/// Who its instances belong to when this runs as root, which PostgreSQL refuses to.
const ACCOUNT: &str = "postgres";
const SCOPE: &str = "bench";

/// Patroni's times, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    pub ttl: u32,
    pub loop_wait: u32,
    pub retry_timeout: u32,
}

impl Times {
    pub const DEFAULT: Times = Times { ttl: 30, loop_wait: 10, retry_timeout: 10 };
    /// The least that it takes.
    pub const MINIMUM: Times = Times { ttl: 20, loop_wait: 1, retry_timeout: 3 };
}

struct Node {
    name: String,
    directory: PathBuf,
    postgres: u16,
    rest: u16,
    etcd_client: u16,
    etcd_peer: u16,
}

pub struct Patroni {
    directory: PathBuf,
    nodes: Vec<Node>,
    settings: Vec<(String, String)>,
    starts: u32,
}

/// A member as `GET /cluster` shows it.
#[derive(Clone, Debug, Deserialize)]
struct Member {
    name: String,
    role: String,
    state: String,
}

#[derive(Debug, Deserialize)]
struct ClusterView {
    members: Vec<Member>,
}

impl Patroni {
    /// `settings`: of PostgreSQL, taken over into every instance, so that both sides have the same.
    pub async fn start(times: Times, settings: &[(String, String)]) -> anyhow::Result<Patroni> {
        let directory = tempfile::Builder::new().prefix("qpa-").tempdir_in("/tmp")?.keep();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        // Five kinds of port from one base, as far apart as the cluster's own are.
        let base = ports::free_base(u16::try_from(NODES)?)?;
        let nodes = (0..NODES).map(|i| {
            let i = u16::try_from(i)?;
            let name = format!("p{}", i + 1);
            Ok(Node {
                directory: directory.join(&name),
                name,
                postgres: base + i,
                rest: base + ports::OFFSETS[1] + i,
                etcd_client: base + ports::OFFSETS[2] + i,
                etcd_peer: base + ports::OFFSETS[3] + i,
            })
        });
        let nodes = nodes.collect::<anyhow::Result<Vec<Node>>>()?;
        let mut cluster = Patroni { directory, nodes, settings: settings.to_vec(), starts: 0 };
        for i in 0..NODES {
            cluster.prepare(i, times)?;
        }
        for i in 0..NODES {
            cluster.start_etcd(i)?;
        }
        for i in 0..NODES {
            cluster.start_patroni(i)?;
        }
        cluster.whole().await?;
        let super_user =
            Endpoint { user: "postgres".to_owned(), database: "postgres".to_owned(), ..cluster.app() };
        let session = super_user.session().await?;
        for sql in ["CREATE ROLE demo LOGIN PASSWORD 'demo'", "CREATE DATABASE app OWNER demo"] {
            session.run(sql).await?;
        }
        Ok(cluster)
    }

    /// The benchmark's database, on whichever of the three takes writes.
    pub fn app(&self) -> Endpoint {
        let mut all = self.nodes.iter().map(|n| n.postgres);
        let first = all.next().unwrap_or_default();
        Endpoint { others: all.collect(), ..Endpoint::new(first, "demo", "demo", "app") }
    }

    /// Clients, each of which begins with another host.
    pub fn clients(&self) -> Vec<Endpoint> {
        let ports: Vec<u16> = self.nodes.iter().map(|n| n.postgres).collect();
        (0..ports.len())
            .map(|i| {
                let mut turned = ports.clone();
                turned.rotate_left(i);
                Endpoint { port: turned[0], others: turned[1..].to_vec(), ..self.app() }
            })
            .collect()
    }

    /// Waits until one leads, the two others stream and count toward the quorum. Returns the leader's name.
    pub async fn whole(&self) -> anyhow::Result<String> {
        wait::until("Patroni whole", WHOLE_LIMIT, async || {
            let mut seen = Vec::new();
            for node in &self.nodes {
                let Ok((_, body)) = driver::http_get(node.rest, "/cluster").await else { continue };
                seen = serde_json::from_str::<ClusterView>(&body)?.members;
                break;
            }
            let leader = seen.iter().find(|m| m.role == "leader" && m.state == "running");
            let voters = seen.iter().filter(|m| m.role == "quorum_standby" && m.state == "streaming").count();
            Ok(match leader {
                Some(leader) if voters == NODES - 1 => Ok(leader.name.clone()),
                _ => Err(seen),
            })
        })
        .await
    }

    fn index(&self, name: &str) -> anyhow::Result<usize> {
        self.nodes.iter().position(|n| n.name == name).with_context(|| format!("no node is named {name}"))
    }

    /// `kill -9` of a node's postmaster.
    pub fn kill_postmaster(&self, name: &str) -> anyhow::Result<Instant> {
        let data = self.nodes[self.index(name)?].directory.join("data");
        let pid = std::fs::read_to_string(data.join("postmaster.pid"))?;
        let pid: u32 = pid.lines().next().and_then(|l| l.parse().ok()).context("no pid")?;
        let victim = Process::of(pid).filter(Process::is_alive).context("the postmaster does not run")?;
        ensure!(
            victim.directory == Some(std::fs::canonicalize(&data)?),
            "{pid} is not the postmaster of {name}"
        );
        let at = Instant::now();
        process::kill(&[victim])?;
        Ok(at)
    }

    /// `kill -9` of everything of a node: Patroni, its PostgreSQL, its member of etcd.
    pub fn kill_node(&self, name: &str) -> anyhow::Result<Instant> {
        let directory = &self.nodes[self.index(name)?].directory;
        let mut victims = process::under(directory);
        ensure!(victims.len() > 5, "a node is more than {} processes", victims.len());
        // Patroni first, so that it cannot react.
        victims.sort_by_key(|p| !p.command.contains("patroni.yml"));
        let at = Instant::now();
        while !victims.is_empty() {
            process::kill(&victims)?;
            victims = process::under(directory);
        }
        Ok(at)
    }

    /// Starts a node again that was killed.
    pub fn start_node(&mut self, name: &str) -> anyhow::Result<()> {
        let i = self.index(name)?;
        self.start_etcd(i)?;
        self.start_patroni(i)
    }

    /// `patronictl switchover` away from the leader, to whichever it chooses.
    pub async fn switch_over(&self, leader: &str) -> anyhow::Result<()> {
        self.order(&["switchover", SCOPE, "--leader", leader, "--force"]).await?;
        let now = self.whole().await?;
        ensure!(now != leader, "the leader stayed on {leader}");
        Ok(())
    }

    async fn order(&self, words: &[&str]) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::new(binaries::patroni()?.join("patronictl"));
        command.arg("-c").arg(self.nodes[0].directory.join("patroni.yml")).args(words);
        let said = driver::run(command, "", ORDER_LIMIT).await?;
        ensure!(said.success, "patronictl {words:?}: {}{}", said.out, said.err);
        Ok(())
    }

    fn prepare(&self, i: usize, times: Times) -> anyhow::Result<()> {
        let node = &self.nodes[i];
        std::fs::create_dir(&node.directory)?;
        let path = node.directory.join("patroni.yml");
        // JSON is YAML.
        std::fs::write(&path, serde_json::to_vec_pretty(&self.config(node, times)?)?)?;
        if binaries::is_root() {
            let status = Command::new("chown").args(["-R", ACCOUNT]).arg(&node.directory).status()?;
            ensure!(status.success(), "chown: {status}");
        }
        Ok(())
    }

    fn config(&self, node: &Node, times: Times) -> anyhow::Result<serde_json::Value> {
        // A directory of links holds some of its programs; Patroni needs the one that holds them all.
        let bin = std::fs::canonicalize(binaries::postgres("postgres")?)?;
        let bin = bin.parent().context("postgres lies in a directory")?;
        let etcd: Vec<String> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.etcd_client)).collect();
        let parameters: serde_json::Map<String, serde_json::Value> =
            self.settings.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        let login = |user: &str| serde_json::json!({ "username": user, "password": "demo" });
        let (rest, postgres) = (format!("127.0.0.1:{}", node.rest), format!("127.0.0.1:{}", node.postgres));
        Ok(serde_json::json!({
            "scope": SCOPE,
            "name": node.name,
            "restapi": { "listen": rest, "connect_address": rest },
            "etcd3": { "hosts": etcd },
            "bootstrap": {
                "dcs": {
                    "ttl": times.ttl,
                    "loop_wait": times.loop_wait,
                    "retry_timeout": times.retry_timeout,
                    "synchronous_mode": "quorum",
                    "postgresql": { "use_pg_rewind": true, "use_slots": true, "parameters": parameters },
                },
                "initdb": [{ "encoding": "UTF8" }, "data-checksums"],
            },
            "postgresql": {
                "listen": postgres,
                "connect_address": postgres,
                "data_dir": node.directory.join("data"),
                "bin_dir": bin,
                "pgpass": node.directory.join("pgpass"),
                "remove_data_directory_on_rewind_failure": true,
                "remove_data_directory_on_diverged_timelines": true,
                "authentication": {
                    "superuser": login("postgres"),
                    "replication": login("replicator"),
                    "rewind": login("rewinder"),
                },
                "parameters": { "unix_socket_directories": node.directory },
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 scram-sha-256",
                    "host replication replicator 127.0.0.1/32 scram-sha-256",
                ],
            },
        }))
    }

    fn start_etcd(&mut self, i: usize) -> anyhow::Result<()> {
        let node = &self.nodes[i];
        let members: Vec<String> =
            self.nodes.iter().map(|n| format!("{}=http://127.0.0.1:{}", n.name, n.etcd_peer)).collect();
        let client = format!("http://127.0.0.1:{}", node.etcd_client);
        let peer = format!("http://127.0.0.1:{}", node.etcd_peer);
        let mut words = vec!["--name".to_owned(), node.name.clone(), "--data-dir".to_owned()];
        words.push(node.directory.join("etcd").display().to_string());
        for (name, value) in [
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &members.join(",")),
        ] {
            words.extend([name.to_owned(), value.clone()]);
        }
        self.spawn(i, &binaries::system("etcd")?, &words)
    }

    fn start_patroni(&mut self, i: usize) -> anyhow::Result<()> {
        let config = self.nodes[i].directory.join("patroni.yml").display().to_string();
        self.spawn(i, &binaries::patroni()?.join("patroni"), &[config])
    }

    /// Starts a program as who it must be run as, with its words in a file, bound to this process.
    fn spawn(&mut self, i: usize, program: &Path, words: &[String]) -> anyhow::Result<()> {
        self.starts += 1;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = self.directory.join(format!("{}-{name}-{}.log", self.nodes[i].name, self.starts));
        let out = std::fs::File::create(log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if binaries::is_root() {
            command.args(["--reuid", ACCOUNT, "--regid", ACCOUNT, "--init-groups"]);
        }
        command.arg(program).args(words).current_dir(&self.nodes[i].directory);
        command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        // Reaped when it ends, whoever ends it.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// The directory with its logs stays.
    pub fn show_logs(&self) {
        crate::logs::show(&self.directory);
    }
}

impl Drop for Patroni {
    /// No process outlives a benchmark, whatever became of it.
    fn drop(&mut self) {
        for _ in 0..10 {
            let all = process::under(&self.directory);
            if all.is_empty() {
                break;
            }
            if let Err(error) = process::kill(&all) {
                eprintln!("{}: {error:#}", self.directory.display());
            }
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
