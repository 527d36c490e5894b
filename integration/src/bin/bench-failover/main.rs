//! `bench-failover`: how long nobody can commit when the primary's postmaster, or its whole node, is killed; and what
//! a commit costs beside plain PostgreSQL. A report, not a test: it ends with 0 whatever it measures, unless an
//! acknowledged commit was lost.

mod commits;
mod report;
mod rounds;

use anyhow::Context;
use clap::Parser;
use quorate_integration::{Cluster, Options};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(about = "Measures failover and the cost of a commit on a cluster of its own")]
pub struct Args {
    /// Rounds of each kind of kill; 0 leaves them out.
    #[arg(long, env = "N", default_value_t = 30)]
    rounds: u32,
    /// Writing clients.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// How long a client rests after each answer, milliseconds.
    #[arg(long, default_value_t = 1)]
    pace: u64,
    /// Seconds of one pgbench run; 0 leaves pgbench out.
    #[arg(long, env = "T", default_value_t = 10)]
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
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The cluster's processes die with the thread that started them: this one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await.context("starting the cluster")?;
    eprintln!("cluster ready in {}", cluster.directory().display());
    let measured = measure(&mut cluster, &args).await;
    if measured.is_err() {
        cluster.show_logs();
    }
    let report = measured?;
    println!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
        println!("written to {}", path.display());
    }
    cluster.stop().await?;
    report.nothing_lost()
}

async fn measure(cluster: &mut Cluster, args: &Args) -> anyhow::Result<report::Report> {
    let mut report = report::Report::default();
    let pace = Duration::from_millis(args.pace);
    if args.rounds > 0 {
        for kind in [rounds::Kind::Postmaster, rounds::Kind::Node] {
            let rounds = rounds::measure(cluster, kind, args.rounds, args.clients, pace).await;
            report.failovers.insert(kind.name(), rounds.with_context(|| kind.name())?);
        }
    }
    if args.seconds > 0 {
        report.commits =
            commits::measure(cluster, args.seconds, args.repeats, args.scale).await.context("pgbench")?;
    }
    Ok(report)
}
