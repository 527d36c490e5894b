//! `bench-failover`: how long nobody can commit when the primary's postmaster is killed, its node is lost, or the
//! primary is moved on purpose, beside Patroni in the same run; and what a commit costs beside plain PostgreSQL. A
//! report, not a test: it ends with 0 whatever it measures, unless Quorate lost an acknowledged commit.

mod commits;
mod report;
mod rounds;

use anyhow::Context;
use clap::Parser;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::patroni::{Patroni, Times};
use quorate_integration::{Cluster, DEMO_DATABASE, Options, binaries, document};
use report::{Report, Series};
use rounds::{Kind, Load};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(Debug, Parser)]
#[command(about = "Measures failover, beside Patroni, and the cost of a commit on clusters of its own")]
pub struct Args {
    /// Rounds of each kind; 0 leaves Quorate out.
    #[arg(long, env = "N", default_value_t = 100)]
    rounds: u32,
    /// Rounds of each kind for Patroni, with its default times and again with its shortest; 0 leaves it out.
    #[arg(long, env = "PATRONI_N", default_value_t = 0)]
    patroni_rounds: u32,
    /// Writing clients.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// How long a client rests after each answer, milliseconds.
    #[arg(long, default_value_t = 1)]
    pace: u64,
    /// Seconds of one pgbench run; 0 leaves pgbench out.
    #[arg(long, env = "T", default_value_t = 0)]
    seconds: u64,
    /// Runs of each side; their medians are compared.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// pgbench's scale.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Writes everything measured to this file as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Puts the tables between the marks in this file.
    #[arg(long)]
    document: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The cluster's processes die with the thread that started them: this one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut cluster = Cluster::start(Options::default()).await.context("starting the cluster")?;
    eprintln!("cluster ready in {}", cluster.directory().display());
    let measured = measure(&mut cluster, &args).await;
    if measured.is_err() {
        cluster.show_logs();
    }
    let (mut report, settings) = measured?;
    // Stopped first: the two sides must not share the machine.
    cluster.stop().await?;
    // What was measured before is shown, whatever becomes of the other side.
    let mut beside = Ok(());
    if args.patroni_rounds > 0 {
        beside = measure_patroni(&settings, &args).await.map(|series| report.series.extend(series));
    }
    println!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
        println!("written to {}", path.display());
    }
    if let Some(path) = &args.document {
        let patroni = binaries::patroni();
        let patroni = patroni.map(|p| document::said(Command::new(p.join("patroni")).arg("--version")));
        let beside = patroni.unwrap_or_else(|_| "without Patroni".to_owned());
        document::write(path, "bench-failover", &report.to_string(), &beside, began.elapsed())?;
        println!("written to {}", path.display());
    }
    report.nothing_lost()?;
    beside
}

fn load(args: &Args) -> Load {
    Load { clients: args.clients, pace: Duration::from_millis(args.pace) }
}

/// The figures, and PostgreSQL's settings, which the other side gets too.
async fn measure(cluster: &mut Cluster, args: &Args) -> anyhow::Result<(Report, Vec<(String, String)>)> {
    let mut report = Report::default();
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let settings = commits::settings_of(&cluster.node(&view.primary()?.node)?.app()).await?;
    if args.rounds > 0 {
        for kind in Kind::ALL {
            let rounds = rounds::quorate(cluster, kind, args.rounds, load(args)).await?;
            report.series.push(Series { side: report::QUORATE, kind, rounds });
        }
    }
    if args.seconds > 0 {
        report.commits =
            commits::measure(cluster, args.seconds, args.repeats, args.scale).await.context("pgbench")?;
    }
    Ok((report, settings))
}

/// Both at the same time: nearly all of it is waiting for Patroni's clocks, and one after the other would double it.
async fn measure_patroni(settings: &[(String, String)], args: &Args) -> anyhow::Result<Vec<Series>> {
    let mut usual = Patroni::start(Times::DEFAULT, settings).await.context("starting Patroni")?;
    let mut tuned = Patroni::start(Times::MINIMUM, settings).await.context("starting Patroni, tuned")?;
    let (mut series, more) = tokio::try_join!(
        patroni_side(&mut usual, report::PATRONI, args),
        patroni_side(&mut tuned, report::PATRONI_TUNED, args),
    )?;
    series.extend(more);
    Ok(series)
}

async fn patroni_side(cluster: &mut Patroni, side: &'static str, args: &Args) -> anyhow::Result<Vec<Series>> {
    let mut series = Vec::new();
    for kind in Kind::OF_PATRONI {
        let rounds = rounds::patroni(cluster, side, kind, args.patroni_rounds, load(args)).await;
        if rounds.is_err() {
            cluster.show_logs();
        }
        series.push(Series { side, kind, rounds: rounds? });
    }
    Ok(series)
}
