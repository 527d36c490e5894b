//! `bench-proxy`: what it costs to come to PostgreSQL through Quorate, beside no proxy, PgBouncer and HAProxy, in one run and
//! interleaved. A report, not a test.

mod load;
mod logins;
mod peers;
mod report;

use anyhow::{Context, ensure};
use clap::Parser;
use load::{Mode, Run};
use peers::{Proxies, Side};
use quorate_integration::admin::Admin;
use quorate_integration::cluster::{HEAL_LIMIT, set_number};
use quorate_integration::peer::PlainCluster;
use quorate_integration::{Cluster, DEMO_DATABASE, Options, document, pgbench};
use report::{Report, Sample};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Debug, Parser)]
#[command(about = "Measures the cost of the proxy, beside PgBouncer and HAProxy")]
struct Args {
    /// Seconds of one run.
    #[arg(long, env = "T", default_value_t = 3)]
    seconds: u64,
    /// Runs of each; their medians are compared.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Clients, each number a row.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 100, 200])]
    clients: Vec<usize>,
    /// Clients that do nothing, for the memory that each takes.
    #[arg(long, default_value_t = 10_000)]
    idle_clients: usize,
    /// pgbench's scale.
    #[arg(long, default_value_t = 5)]
    scale: u32,
    /// Puts the tables between the marks in this file.
    #[arg(long)]
    document: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // What it starts dies with the thread that started it: this one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

/// How often a failover may move the primary, on a host that does not keep up, until the bench is given up.
const MAX_MOVES: u32 = 5;

/// Where the primary is to be while it is measured.
struct Watch<'a> {
    cluster: &'a Cluster,
    primary: &'a str,
    moves: u32,
}

impl Watch<'_> {
    /// Whether what was measured by this side is not what its name says: the primary was at another node. It is back then.
    async fn moved(&mut self, side: &Side) -> anyhow::Result<bool> {
        if !side.is_quorate() {
            return Ok(false);
        }
        let admin = Admin::open(self.cluster.nodes()).await?;
        let now = admin.database(DEMO_DATABASE).await?.primary()?.node.clone();
        if now == self.primary {
            return Ok(false);
        }
        let events = admin.rows("SHOW EVENTS").await?;
        let latest = &events[events.len().saturating_sub(4)..];
        eprintln!("{}: the primary moved to {now}, and it is measured again: {latest:?}", side.name);
        self.moves += 1;
        ensure!(self.moves <= MAX_MOVES, "the primary does not stay where it is measured");
        self.cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let back = format!("SWITCHOVER DATABASE {DEMO_DATABASE} TO {}", self.primary);
        admin.carry_out(&back, HEAL_LIMIT).await?;
        Ok(true)
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut cluster = Cluster::start(Options::default()).await.context("starting the cluster")?;
    cluster.stop_demo().await?;
    for node in cluster.nodes() {
        let text = std::fs::read_to_string(&node.config)?;
        // Logins are to be as fast as they can be, and as many sessions have a place as with plain PostgreSQL.
        let text = set_number(&text, "max_logins_per_second_per_server", 1_000_000)?;
        std::fs::write(&node.config, set_number(&text, "max_connections", peers::MAX_CONNECTIONS)?)?;
    }
    cluster.start_demo().await?;
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let primary = cluster.node(&view.primary()?.node)?.clone();
    let other = cluster.others(&primary.name).into_iter().next().context("another node")?;
    let settings = peers::settings_of(&primary.app()).await?;
    let plain = PlainCluster::start(&settings).await.context("starting plain PostgreSQL")?;
    let proxies = Proxies::start(&plain).await.context("starting the other proxies")?;
    pgbench::fill(&plain.url(), args.scale).await?;
    pgbench::fill(&primary.app().url(), args.scale).await?;

    let mut sides = vec![Side::new("no proxy", plain.endpoint(), &[])];
    sides.extend(proxies.sides());
    let here = |name, mode| Side::quorate(name, primary.app(), primary.admin, mode, &[primary.pid]);
    let there = |name, mode| Side::quorate(name, other.app(), other.admin, mode, &[primary.pid, other.pid]);
    sides.push(here("Quorate, primary's node", "session"));
    sides.push(here("Quorate, primary's node, transaction", "transaction"));
    sides.push(there("Quorate, another node", "session"));
    sides.push(there("Quorate, another node, transaction", "transaction"));

    let mut report = Report { idle_us_per_second: idle(&sides).await?, ..Report::default() };
    let mut watch = Watch { cluster: &cluster, primary: &primary.name, moves: 0 };
    for mode in Mode::ALL {
        for clients in &args.clients {
            for side in &sides {
                if side.takes(mode) {
                    load::run(side, mode, *clients, args.seconds).await.with_context(|| side.name)?;
                }
            }
            for repeat in 1..=args.repeats {
                for side in sides.iter().filter(|side| side.takes(mode)) {
                    let run = loop {
                        let run = load::run(side, mode, *clients, args.seconds).await.context(side.name)?;
                        if !watch.moved(side).await? {
                            break run;
                        }
                    };
                    eprintln!("{} {clients} clients, run {repeat}, {}: {run}", mode.name(), side.name);
                    report.add(Sample { mode: mode.name(), clients: *clients, side: side.name }, run);
                }
            }
        }
    }
    for repeat in 1..=args.repeats {
        for side in &sides {
            let rate = loop {
                let rate = load::copy_out(side).await.context(side.name)?;
                if !watch.moved(side).await? {
                    break rate;
                }
            };
            eprintln!("COPY out, run {repeat}, {}: {rate:.0} MB/s", side.name);
            report.copies.entry(side.name).or_default().push(rate);
        }
    }
    for repeat in 1..=args.repeats {
        for side in sides.iter().filter(|side| side.has_proxy()) {
            let logins = loop {
                side.prepare().await?;
                let logins = logins::rate(side, args.seconds).await.context(side.name)?;
                if !watch.moved(side).await? {
                    break logins;
                }
            };
            eprintln!(
                "logins, run {repeat}, {}: {:.0} a second, proxy {:.0} us of CPU each",
                side.name, logins.a_second, logins.cpu_us
            );
            report.logins.entry(side.name).or_default().push(logins);
        }
    }
    for side in sides.iter().filter(|side| side.has_pool() && side.is_one_process() && args.idle_clients > 0)
    {
        let bytes = loop {
            side.prepare().await?;
            let bytes = logins::idle_bytes(side, args.idle_clients).await.context(side.name)?;
            if !watch.moved(side).await? {
                break bytes;
            }
        };
        eprintln!("{} idle clients, {}: {bytes:.0} bytes each", args.idle_clients, side.name);
        report.idle_clients.push((side.name, args.idle_clients, bytes));
    }
    ensure!(!report.is_empty(), "nothing was measured");
    println!("{report}");
    if let Some(path) = &args.document {
        document::write(path, "bench-proxy", &report.to_string(), &proxies.versions(), began.elapsed())?;
        println!("written to {}", path.display());
    }
    drop(proxies);
    cluster.stop().await
}

/// What each side's proxy uses when nobody comes, microseconds of CPU a second.
async fn idle(sides: &[Side]) -> anyhow::Result<Vec<(&'static str, f64)>> {
    const TIME: Duration = Duration::from_secs(3);
    let before: Vec<Duration> = sides.iter().map(Side::cpu).collect::<anyhow::Result<_>>()?;
    tokio::time::sleep(TIME).await;
    let used = |(side, before): (&Side, Duration)| {
        let cpu = side.cpu()?.saturating_sub(before);
        Ok((side.name, cpu.as_micros() as f64 / TIME.as_secs_f64()))
    };
    sides.iter().zip(before).filter(|(side, _)| side.has_proxy()).map(used).collect()
}

/// For the messages of [`Run`].
impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} tps, p50 {:.0} us, proxy {:.1} us of CPU each", self.tps, self.p50_us, self.cpu_us)
    }
}
