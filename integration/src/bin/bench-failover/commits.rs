//! `pgbench -N` against plain PostgreSQL with two plain standbys and the same `ANY 1`, and against Quorate by the
//! primary's node and by another: interleaved, so that whatever else the machine does falls on all alike.

use anyhow::Context;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::peer::{self, PlainCluster};
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, pgbench};
use serde::Serialize;

const CLIENTS: [usize; 2] = [1, 16];
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
        pgbench::fill(url, scale).await.context(*side)?;
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
            pgbench::run(url, &["-N"], clients, WARM_SECONDS).await?;
        }
        for repeat in 0..repeats {
            for (result, (side, url)) in results.iter_mut().zip(&sides) {
                let run = pgbench::run(url, &["-N"], clients, seconds).await.context(*side)?;
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
    peer::settings_of(port, SETTINGS).await
}
