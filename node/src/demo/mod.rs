//! `quorate demo`: a cluster on one machine, ready to be tried and broken.

mod layout;
mod nodes;
mod setup;

use anyhow::Context;
use clap::Args;
use layout::Layout;
use nodes::Nodes;
pub use nodes::pid_line;
use quorate_reconfig_agent::instance::OsUser;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// A cluster that is not ready after this is given up.
const START_LIMIT: Duration = Duration::from_secs(120);

#[derive(Args)]
pub struct Options {
    /// How many nodes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(3..=9))]
    nodes: u16,
    /// Where everything is kept. Started again on the same directory, the demo resumes with its data.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The client port of the first node; admin ports are 100, peer ports 200, http ports 300 above.
    #[arg(long, default_value_t = 6432)]
    base_port: u16,
    /// Delete what an earlier demo left in the directory.
    #[arg(long)]
    fresh: bool,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let began = Instant::now();
    let progress = |text: &str| eprintln!("[{:5.1} s] {text}", began.elapsed().as_secs_f64());
    let directory = match options.dir {
        Some(given) => std::path::absolute(given)?,
        None => layout::default_directory()?,
    };
    // Before anything is made or deleted there.
    if let Some(there) = directory.ancestors().find(|ancestor| ancestor.is_dir()) {
        OsUser::for_instances()?.check_reaches(there)?;
    }
    let layout = Layout::prepare(&directory, options.nodes, options.base_port, options.fresh)
        .with_context(|| format!("the demo cannot be laid out in {}", directory.display()))?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    layout.forget_json()?;
    nodes::end_former(&layout, &progress).await?;
    layout.check_ports()?;
    progress(&format!("starting {} nodes in {}", options.nodes, directory.display()));
    let mut nodes = Nodes::start(&layout)?;
    let ready = async {
        nodes.wait_ready(&layout).await?;
        progress("all nodes are ready");
        setup::bring_up(&layout, &progress).await?;
        nodes.write_json(&layout)?;
        Ok(true)
    };
    let outcome = tokio::select! {
        ready = tokio::time::timeout(START_LIMIT, ready) => match ready {
            Ok(ready) => ready,
            Err(_) => Err(anyhow::anyhow!(
                "the demo was not ready after {} s; hint: see the nodes' logs, {}/n*/log",
                START_LIMIT.as_secs(),
                directory.display()
            )),
        },
        _ = interrupt.recv() => Ok(false),
        _ = terminate.recv() => Ok(false),
    };
    match outcome {
        Ok(true) => {}
        stopped => {
            nodes.stop().await;
            return stopped.map(|_| ());
        }
    }
    progress("the database is open");
    println!("{}", setup::welcome(&layout, &nodes));
    println!("ready");
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            ended = nodes.next_end() => eprintln!(
                "{} ended ({}); to start it again: {}",
                ended.name,
                ended.status,
                layout.start_command(&ended.name)
            ),
        }
    }
    progress("stopping");
    let forgotten = layout.forget_json();
    nodes.stop().await;
    // Nodes that were started again by hand belong to the demo as well.
    nodes::end_former(&layout, &progress).await?;
    progress("stopped; the data stays");
    forgotten
}
