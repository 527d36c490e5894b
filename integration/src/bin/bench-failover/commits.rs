//! `pgbench -N` against plain PostgreSQL with two plain standbys and the same `ANY 1`, and against Quorate by the
//! primary's node and by another: interleaved, so that whatever else the machine does falls on all alike.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::peer::PlainCluster;
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, binaries, driver};
use serde::Serialize;
use std::time::Duration;
use tokio::process::Command;

const CLIENTS: [usize; 2] = [1, 16];
const LOAD_LIMIT: Duration = Duration::from_secs(300);
/// Runs before the first that counts, seconds.
const WARM_SECONDS: u64 = 2;

/// Settings that decide the speed of a commit: the peer gets Quorate's.
const SETTINGS: &[&str] = &[
    "shared_buffers",
    "wal_buffers",
    "max_wal_size",
    "min_wal_size",
    "checkpoint_timeout",
    "checkpoint_completion_target",
    "wal_compression",
    "wal_log_hints",
    "full_page_writes",
    "fsync",
    "synchronous_commit",
    "commit_delay",
    "wal_sync_method",
    "wal_writer_delay",
    "max_connections",
    "work_mem",
    "maintenance_work_mem",
    "autovacuum",
    "jit",
    "wal_keep_size",
    "max_wal_senders",
    "max_replication_slots",
    "max_worker_processes",
    "max_prepared_transactions",
    "wal_recycle",
    "wal_init_zero",
    "bgwriter_delay",
    "hot_standby_feedback",
    "huge_pages",
    "wal_retrieve_retry_interval",
    "wal_receiver_status_interval",
];

#[derive(Clone, Debug, Serialize)]
pub struct Commits {
    pub clients: usize,
    pub side: &'static str,
    pub tps: Vec<f64>,
    pub p50_us: Vec<f64>,
    pub p99_us: Vec<f64>,
}

impl Commits {
    pub fn median(values: &[f64]) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

pub const PLAIN: &str = "plain PostgreSQL";
pub const LOCAL: &str = "Quorate, primary's node";
pub const REMOTE: &str = "Quorate, another node";

pub async fn measure(
    cluster: &Cluster,
    seconds: u64,
    repeats: usize,
    scale: u32,
) -> anyhow::Result<Vec<Commits>> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let primary = &view.primary()?.node;
    let local = cluster.node(primary)?.app();
    let remote = cluster.others(primary).first().context("another node")?.app();
    let settings = settings_of(&local).await?;
    eprintln!("the peer takes over: {settings:?}");
    let plain = PlainCluster::start(&settings).await.context("starting plain PostgreSQL")?;
    let sides = [(PLAIN, plain.url()), (LOCAL, local.url()), (REMOTE, remote.url())];
    for (side, url) in &sides[..2] {
        eprintln!("loading {side}");
        let mut load = Command::new(binaries::postgres("pgbench")?);
        load.args(["-i", "-q", "-s", &scale.to_string(), url]);
        let said = driver::run(load, "", LOAD_LIMIT).await?;
        ensure!(said.success, "{side}: {}", said.err);
    }
    let mut all = Vec::new();
    for clients in CLIENTS {
        let mut results: Vec<Commits> = sides
            .iter()
            .map(|(side, _)| Commits {
                clients,
                side,
                tps: Vec::new(),
                p50_us: Vec::new(),
                p99_us: Vec::new(),
            })
            .collect();
        for (_, url) in &sides {
            pgbench(url, clients, WARM_SECONDS).await?;
        }
        for repeat in 0..repeats {
            for (result, (side, url)) in results.iter_mut().zip(&sides) {
                let run = pgbench(url, clients, seconds).await.context(*side)?;
                eprintln!(
                    "{clients} clients, run {}, {side}: {:.0} tps, p50 {:.0} us",
                    repeat + 1,
                    run.tps,
                    run.p50_us
                );
                result.tps.push(run.tps);
                result.p50_us.push(run.p50_us);
                result.p99_us.push(run.p99_us);
            }
        }
        all.extend(results);
    }
    Ok(all)
}

pub async fn settings_of(port: &Endpoint) -> anyhow::Result<Vec<(String, String)>> {
    let names: Vec<String> = SETTINGS.iter().map(|name| format!("'{name}'")).collect();
    let sql = format!("SELECT name, setting FROM pg_settings WHERE name IN ({})", names.join(", "));
    let rows = port.session().await?.rows(&sql).await?;
    Ok(rows.into_iter().filter_map(|row| Some((row.first()?.clone()?, row.get(1)?.clone()?))).collect())
}

struct Run {
    tps: f64,
    p50_us: f64,
    p99_us: f64,
}

async fn pgbench(url: &str, clients: usize, seconds: u64) -> anyhow::Result<Run> {
    let logs = tempfile::tempdir()?;
    let mut command = Command::new(binaries::postgres("pgbench")?);
    let (clients, jobs) = (clients.to_string(), clients.min(2).to_string());
    // Quorate offers TLS and the peer does not: what is compared is the path of a commit, on both sides in the clear.
    command.env("PGSSLMODE", "disable");
    command.args(["-n", "-N", "-c", &clients, "-j", &jobs, "-T", &seconds.to_string(), "-l", url]);
    command.current_dir(logs.path());
    let said = driver::run(command, "", Duration::from_secs(seconds + 60)).await?;
    ensure!(said.success, "pgbench: {}{}", said.out, said.err);
    let tps = said.out.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(logs.path())? {
        // client, transaction, latency in microseconds, …
        let text = std::fs::read_to_string(entry?.path())?;
        latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
    }
    latencies.sort_by(f64::total_cmp);
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    Ok(Run { tps: tps.context("pgbench gave no tps")?, p50_us: at(0.5), p99_us: at(0.99) })
}
