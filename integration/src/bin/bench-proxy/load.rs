//! What the clients do: `pgbench -S` in its three modes, and one large COPY.

use super::peers::Side;
use anyhow::ensure;
use quorate_integration::{binaries, driver, pgbench};
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

pub async fn run(side: &Side, mode: Mode, clients: usize, seconds: u64) -> anyhow::Result<Run> {
    side.prepare().await?;
    let before = side.cpu()?;
    let words = ["-S", "-M", mode.name(), "--sampling-rate", "0.1"];
    let run = pgbench::run(&side.port.url(), &words, clients, seconds).await?;
    let cpu = side.cpu()?.saturating_sub(before);
    Ok(Run {
        tps: run.tps,
        p50_us: run.p50_us,
        p99_us: run.p99_us,
        cpu_us: cpu.as_micros() as f64 / run.transactions.max(1.0),
    })
}

/// MB a second of one COPY TO STDOUT.
pub async fn copy_out(side: &Side) -> anyhow::Result<f64> {
    side.prepare().await?;
    let mut command = Command::new(binaries::postgres("psql")?);
    command.env("PGSSLMODE", "disable").args(["-X", "-q", "-o", "/dev/null", &side.port.url(), "-c"]);
    command.arg(format!(
        "COPY (SELECT repeat('x', {COPY_ROW_BYTES}) FROM generate_series(1, {COPY_ROWS})) TO STDOUT"
    ));
    let began = Instant::now();
    let said = driver::run(command, "", LIMIT).await?;
    ensure!(said.success, "psql: {}", said.err);
    Ok((COPY_ROWS * COPY_ROW_BYTES) as f64 / 1e6 / began.elapsed().as_secs_f64())
}
