//! What the tunnel costs a commit. Run by hand: `cargo test --release -p quorate-reconfig-agent measure -- --ignored
//! --nocapture`. On a disk whose flushes vary it shows the disk; with `TMPDIR` on a memory file system it shows what the
//! relays add.

use super::nodes::eventually;
use super::postgres::program;
use super::replication::Pair;
use std::path::Path;

const SECONDS_PER_RUN: &str = "5";
const ROUNDS: usize = 6;

async fn pgbench(pair: &Pair, clients: &str) -> String {
    let mut bench = program("pgbench");
    bench
        .args(["-N", "-n", "-T", SECONDS_PER_RUN, "-c", clients, "-U", "quorate", "-h"])
        .arg(&pair.primary.socket_dir);
    bench.arg("postgres");
    let output = tokio::task::spawn_blocking(move || bench.output()).await.unwrap().unwrap();
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |word: &str| report.lines().find(|l| l.starts_with(word)).unwrap_or("?").to_owned();
    format!("{}, {}", line("latency average"), line("tps"))
}

async fn follow(pair: &Pair, host: &Path) {
    let conninfo = format!("host={} port=5432 user=quorate application_name=r2", host.display());
    pair.standby.set("primary_conninfo", &conninfo.replace('\'', "''")).await;
    let sender = "SELECT sender_host FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    eventually("it follows there", async || pair.standby.ask(sender).await.as_deref() == host.to_str()).await;
    pair.wait_for_standby().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn commits_through_the_tunnel_and_without() {
    let pair = Pair::start().await;
    let mut init = program("pgbench");
    init.args(["-i", "-q", "-s", "10", "-U", "quorate", "-h"]).arg(&pair.primary.socket_dir).arg("postgres");
    super::postgres::run(init).await;
    for round in 0..ROUNDS {
        for (name, host) in [("direct", &pair.primary.socket_dir), ("tunnel", &pair.tunnel_dir)] {
            follow(&pair, host).await;
            for clients in ["1", "16"] {
                println!("round {round} {name} -c {clients}: {}", pgbench(&pair, clients).await);
            }
        }
    }
}
