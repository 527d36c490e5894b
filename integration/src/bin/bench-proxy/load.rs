//! What the clients do: `pgbench -S` in its three modes, and one large COPY.

use super::peers::Side;
use anyhow::{Context, ensure};
use quorate_integration::{binaries, driver};
use std::time::{Duration, Instant};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(300);
const COPY_ROWS: u64 = 300_000;
const COPY_ROW_BYTES: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Simple,
    Extended,
    Prepared,
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::Simple, Mode::Extended, Mode::Prepared];

    pub fn name(self) -> &'static str {
        match self {
            Mode::Simple => "simple",
            Mode::Extended => "extended",
            Mode::Prepared => "prepared",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub tps: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of the proxy, a transaction.
    pub cpu_us: f64,
}

pub async fn fill(url: &str, scale: u32) -> anyhow::Result<()> {
    let mut command = pgbench()?;
    command.args(["-i", "-q", "-s", &scale.to_string(), url]);
    let said = driver::run(command, "", LIMIT).await?;
    ensure!(said.success, "pgbench -i: {}", said.err);
    Ok(())
}

/// Without TLS, which none of the others offers.
fn pgbench() -> anyhow::Result<Command> {
    let mut command = Command::new(binaries::postgres("pgbench")?);
    command.env("PGSSLMODE", "disable");
    Ok(command)
}

pub async fn run(side: &Side, mode: Mode, clients: usize, seconds: u64) -> anyhow::Result<Run> {
    let logs = tempfile::tempdir()?;
    let mut command = pgbench()?;
    let (count, jobs) = (clients.to_string(), clients.min(2).to_string());
    command.args(["-n", "-S", "-M", mode.name(), "-c", &count, "-j", &jobs, "-T", &seconds.to_string()]);
    command.args(["-l", "--sampling-rate", "0.1", &side.url]).current_dir(logs.path());
    let before = side.cpu()?;
    let said = driver::run(command, "", LIMIT).await?;
    let cpu = side.cpu()?.saturating_sub(before);
    ensure!(said.success, "pgbench: {}{}", said.out, said.err);
    let number = |name: &str| {
        said.out
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().split(' ').next()?.parse::<f64>().ok())
    };
    let done = number("number of transactions actually processed:").context("pgbench gave no number")?;
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
        tps: number("tps =").context("pgbench gave no tps")?,
        p50_us: at(0.5),
        p99_us: at(0.99),
        cpu_us: cpu.as_micros() as f64 / done.max(1.0),
    })
}

/// MB a second of one COPY TO STDOUT.
pub async fn copy_out(side: &Side) -> anyhow::Result<f64> {
    let mut command = Command::new(binaries::postgres("psql")?);
    command.env("PGSSLMODE", "disable").args(["-X", "-q", "-o", "/dev/null", &side.url, "-c"]);
    command.arg(format!(
        "COPY (SELECT repeat('x', {COPY_ROW_BYTES}) FROM generate_series(1, {COPY_ROWS})) TO STDOUT"
    ));
    let began = Instant::now();
    let said = driver::run(command, "", LIMIT).await?;
    ensure!(said.success, "psql: {}", said.err);
    Ok((COPY_ROWS * COPY_ROW_BYTES) as f64 / 1e6 / began.elapsed().as_secs_f64())
}
