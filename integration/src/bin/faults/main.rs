//! `faults`: N random faults against a real cluster under load, with the ledger. Ends with 1 when an acknowledged
//! commit was lost, a read was stale, a fault did not happen, or the cluster did not heal.

use anyhow::Context;
use clap::Parser;
use quorate_integration::faults::{self, Kind};
use quorate_integration::long_records::LongRecords;
use quorate_integration::{Cluster, Options};

#[derive(Debug, Parser)]
#[command(about = "Random faults against a real cluster, with a ledger of what clients were told")]
struct Args {
    /// How many.
    #[arg(long, env = "N", default_value_t = 20)]
    count: usize,
    /// Of an earlier run, to have its sequence of faults again.
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Only these kinds; all of them by default.
    #[arg(long = "kind")]
    kinds: Vec<Kind>,
    /// A client writes records of the log that are nearly as long as a segment, all the while.
    #[arg(long)]
    long_records: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The cluster's processes die with the thread that started them: this one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let kinds = if args.kinds.is_empty() { Kind::ALL.to_vec() } else { args.kinds.clone() };
    println!("seed {seed}");
    let options = Options { links: true, ..Options::default() };
    let mut cluster = Cluster::start(options).await.context("starting the cluster")?;
    eprintln!("cluster ready in {}", cluster.directory().display());
    let port = cluster.nodes().first().map(|node| node.app()).filter(|_| args.long_records);
    let _writes = port.map(LongRecords::begin);
    match faults::run(&mut cluster, &faults::random(seed, args.count, &kinds)).await {
        Ok(report) => {
            println!("{report}\nseed {seed}");
            cluster.stop().await
        }
        Err(error) => {
            cluster.show_logs();
            println!("failed; seed {seed}");
            Err(error)
        }
    }
}
