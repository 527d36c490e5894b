//! pgbench, and what it measured.

use crate::{binaries, driver};
use anyhow::{Context, ensure};
use std::time::Duration;
use tokio::process::Command;

/// A run may take this much longer than it was asked to.
const GRACE: Duration = Duration::from_secs(60);
const FILL_LIMIT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub transactions: f64,
    pub tps: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Makes its tables.
pub async fn fill(url: &str, scale: u32) -> anyhow::Result<()> {
    let mut command = command()?;
    command.args(["-i", "-q", "-s", &scale.to_string(), url]);
    let said = driver::run(command, "", FILL_LIMIT).await?;
    ensure!(said.success, "pgbench -i: {}", said.err);
    Ok(())
}

/// Without TLS: Quorate offers it and its peers do not, and what is compared is the path of a statement.
fn command() -> anyhow::Result<Command> {
    let mut command = Command::new(binaries::postgres("pgbench")?);
    command.env("PGSSLMODE", "disable");
    Ok(command)
}

/// `words`: what is run, `-S` and the like.
pub async fn run(url: &str, words: &[&str], clients: usize, seconds: u64) -> anyhow::Result<Run> {
    let logs = tempfile::tempdir()?;
    let mut command = command()?;
    let (count, jobs) = (clients.to_string(), clients.min(2).to_string());
    command.args(["-n", "-c", &count, "-j", &jobs, "-T", &seconds.to_string(), "-l"]);
    command.args(words).arg(url).current_dir(logs.path());
    let said = driver::run(command, "", Duration::from_secs(seconds) + GRACE).await?;
    ensure!(said.success, "pgbench: {}{}", said.out, said.err);
    let number = |name: &str| {
        let found =
            said.out.lines().find_map(|line| line.strip_prefix(name)?.trim().split(' ').next()?.parse().ok());
        // It has nothing to say of a run in which no transaction ended (`printResults` in pgbench.c).
        found.with_context(|| {
            format!("pgbench says no \"{name}\" of its {seconds} s: {}{}", said.out, said.err)
        })
    };
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(logs.path())? {
        // client, transaction, latency in microseconds, …
        let text = std::fs::read_to_string(entry?.path())?;
        latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
    }
    latencies.sort_by(f64::total_cmp);
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    Ok(Run {
        transactions: number("number of transactions actually processed:")?,
        tps: number("tps =")?,
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}
