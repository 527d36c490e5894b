//! How long the steps of a failover take here. A report, not a test: run it alone, on a quiet machine, with
//! `cargo test --release -p quorate-reconfig-agent instance::tests::timings -- --ignored --nocapture`.

use super::fixture::*;
use crate::instance::{Process, StopMode};
use quorate_model::Epoch;
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

const ROUNDS: u64 = 9;

#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<Duration>>);

impl Times {
    async fn take<T>(&mut self, what: &'static str, work: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let result = work.await;
        self.0.entry(what).or_default().push(begin.elapsed());
        result
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a report"]
async fn steps() {
    let world = World::new();
    let mut times = Times::default();
    let primary = world.instance(1);
    times.take("bootstrap", primary.bootstrap(&wanted(SENTINEL_SYNC_NAMES))).await.unwrap();
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let second = world.instance(2);
    times.take("seed", second.seed(&primary.paths().sockets)).await.unwrap();
    times.take("seed", second.seed(&primary.paths().sockets)).await.unwrap();
    let (third, mut relay) = world.standby(3, &primary).await;
    for round in 0..ROUNDS {
        app.batch_execute("INSERT INTO t SELECT generate_series(1, 5000)").await.unwrap();
        relay.cut();
        times.take("position, just cut", third.position()).await.unwrap();
        times.take("position, asked again", third.position()).await.unwrap();
        times.take("position of the primary", primary.position()).await.unwrap();
        times.take("progress of a standby", third.progress()).await.unwrap();
        times.take("progress of the primary", primary.progress()).await.unwrap();
        let names = format!("ANY 1 (r{})", 10 + round);
        times.take("set_sync_names on a standby", third.set_sync_names(&names)).await.unwrap();
        times.take("set_sync_names on the primary", primary.set_sync_names(&names)).await.unwrap();
        let mode = if round % 2 == 0 { StopMode::Fast } else { StopMode::Immediate };
        let (stop, start) = match mode {
            StopMode::Fast => ("stop, fast", "start after a fast stop"),
            StopMode::Immediate => ("stop, immediate", "start after an immediate stop"),
        };
        times.take(stop, third.stop(mode, WAIT)).await.unwrap();
        times.take(start, third.start()).await.unwrap();
        relay = Relay::open(&third, &primary);
        times.take("attach and catch up", caught_up(&third, &primary)).await;
    }
    primary.set_sync_names("ANY 1 (r3)").await.unwrap();
    for round in 0..ROUNDS {
        times.take("barrier", primary.barrier(WAIT)).await.unwrap();
        let epoch = Epoch::new(0, 2 + round, 0);
        let uuid = Uuid::from_u128(1);
        times.take("write_epoch", primary.write_epoch(epoch, uuid, WAIT)).await.unwrap();
    }
    // Each is promoted in its turn.
    relay.cut();
    for _ in 0..ROUNDS {
        times.take("promote", third.promote()).await.unwrap();
        let pid = third.process().borrow().pid().unwrap();
        let begin = Instant::now();
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_for(&third, |state| matches!(state, Process::Exited { .. })).await;
        times.0.entry("kill -9 noticed").or_default().push(begin.elapsed());
        times.take("start after kill -9", third.start()).await.unwrap();
    }
    for (what, mut taken) in times.0 {
        taken.sort();
        let ms = |d: &Duration| d.as_secs_f64() * 1e3;
        let median = taken.get(taken.len() / 2).map(ms).unwrap_or_default();
        let worst = taken.last().map(ms).unwrap_or_default();
        println!("{what:32} n {:2}  p50 {median:8.1} ms  max {worst:8.1} ms", taken.len());
    }
}
