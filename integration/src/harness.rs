//! What every test of a promise does around its own steps.

use crate::cluster::{Cluster, Options};
use anyhow::Context;
use futures::FutureExt;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, Instant};

/// For one test's own steps, the start and the stop of its cluster not counted.
pub const BODY_LIMIT: Duration = Duration::from_secs(240);

/// Runs `body` against a cluster of its own. On failure prints why, where the logs are and how they end; in any
/// case nothing of the cluster lives on.
///
/// # Panics
/// When the body fails, takes longer than [`BODY_LIMIT`], or the cluster leaves a process behind.
pub fn with_cluster(options: Options, body: impl AsyncFnOnce(&mut Cluster) -> anyhow::Result<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime: {error}"),
    };
    let outcome = runtime.block_on(async {
        let started = Instant::now();
        let mut cluster = Cluster::start(options).await.context("starting the cluster")?;
        eprintln!(
            "cluster ready after {:.1} s in {}",
            started.elapsed().as_secs_f64(),
            cluster.directory().display()
        );
        let started = Instant::now();
        let steps = tokio::time::timeout(BODY_LIMIT, body(&mut cluster));
        match AssertUnwindSafe(steps).catch_unwind().await {
            Ok(Ok(Ok(()))) => {
                eprintln!("steps took {:.1} s", started.elapsed().as_secs_f64());
                let started = Instant::now();
                let stopped = cluster.stop().await.context("stopping the cluster");
                eprintln!("the stop took {:.1} s", started.elapsed().as_secs_f64());
                stopped
            }
            Ok(Ok(Err(error))) => {
                cluster.show_logs();
                Err(error)
            }
            Ok(Err(_)) => {
                cluster.show_logs();
                Err(anyhow::anyhow!("the steps did not end within {BODY_LIMIT:?}"))
            }
            Err(panic) => {
                cluster.show_logs();
                drop(cluster);
                resume_unwind(panic)
            }
        }
    });
    if let Err(error) = outcome {
        // The causes, without the stacks that `{:?}` would add.
        panic!("{error:#}");
    }
}
