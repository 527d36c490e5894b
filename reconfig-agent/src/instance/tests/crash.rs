//! Postmasters that die, hang, or outlive their daemon.

use super::fixture::*;
use crate::instance::{Process, StopMode};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_is_noticed_and_starts_as_a_standby() {
    let world = World::new();
    let primary = world.primary(1).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 10000) n").await.unwrap();
    // Backends that do not look up soon: they outlive the postmaster.
    let busy = connect(&primary, "app").await;
    let work = tokio::spawn(async move {
        busy.batch_execute("SELECT count(*) FROM generate_series(1, 2000000000)").await
    });
    let admin = connect(&primary, "postgres").await;
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%2000000000)' AND state = 'active'";
    eventually("the backend is busy", || async { value(&admin, active).await != "0" }).await;
    let flushed = primary.progress().await.unwrap().flush_lsn;

    let pid = primary.process().borrow().pid().unwrap();
    let begin = Instant::now();
    kill(pid, Signal::KILL);
    let state = wait_for(&primary, |state| !state.is_live()).await;
    let noticed = begin.elapsed();
    println!("TIMING death noticed: {:.1} ms", noticed.as_secs_f64() * 1e3);
    assert!(noticed < Duration::from_millis(250), "{noticed:?}");
    assert!(matches!(&state, Process::Exited { reason, .. } if reason.contains("signal: 9")), "{state:?}");

    timed("start (after kill -9, backends around)", primary.start()).await.unwrap();
    assert!(work.await.unwrap().is_err());
    let progress = primary.progress().await.unwrap();
    assert!(progress.in_recovery);
    let end = timed("position (after a crash)", primary.position()).await.unwrap();
    assert!(end.lsn >= flushed);
    assert_eq!(end.epoch, EPOCH);
    primary.start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_postmaster_is_hung_and_recovers_or_is_killed() {
    let world = World::new();
    let primary = world.primary(1).await;
    let pid = primary.process().borrow().pid().unwrap();
    let begin = Instant::now();
    kill(pid, Signal::STOP);
    assert_eq!(wait_for(&primary, |s| *s == Process::Hung { pid }).await, Process::Hung { pid });
    println!("TIMING hang noticed: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    kill(pid, Signal::CONT);
    wait_for(&primary, |s| *s == Process::Running { pid }).await;
    kill(pid, Signal::STOP);
    timed("stop of a stopped postmaster", primary.stop(StopMode::Fast, WAIT)).await.unwrap();
    assert_eq!(*primary.process().borrow(), Process::Down);
    primary.start().await.unwrap();
}

/// The daemon died and left its postmaster, running or stopped: the next daemon takes the directory over.
#[tokio::test(flavor = "multi_thread")]
async fn an_orphaned_postmaster_is_replaced() {
    let world = World::new();
    let first = world.primary(1).await;
    for stopped in [false, true] {
        let earlier = if stopped { world.instance(1) } else { first.clone() };
        if stopped {
            stop(&first).await;
            earlier.start().await.unwrap();
        }
        let pid = earlier.process().borrow().pid().unwrap();
        if stopped {
            kill(pid, Signal::STOP);
        }
        let next = world.instance(1);
        timed("start (orphan there)", next.start()).await.unwrap();
        assert_ne!(next.process().borrow().pid(), Some(pid));
        wait_for(&earlier, |s| matches!(s, Process::Exited { .. })).await;
        assert!(next.progress().await.unwrap().in_recovery);
        stop(&next).await;
    }
}

/// A number in a stale lock file that belongs to some other process by now is not believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_lock_file_with_a_live_number_is_no_obstacle() {
    let world = World::new();
    let primary = world.primary(1).await;
    stop(&primary).await;
    let paths = primary.paths();
    let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    for path in [paths.data.join("postmaster.pid"), paths.sockets.join(".s.PGSQL.5432.lock")] {
        let text = format!("{}\n{}\n", other.id(), paths.data.display());
        std::fs::write(path, text).unwrap();
    }
    let started = primary.start().await;
    assert!(other.try_wait().unwrap().is_none(), "the other process was not touched");
    other.kill().unwrap();
    other.wait().unwrap();
    started.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_says_why() {
    let world = World::new();
    let primary = world.primary(1).await;
    stop(&primary).await;
    std::fs::remove_file(primary.paths().data.join("global/pg_control")).unwrap();
    let error = primary.start().await.unwrap_err().to_string();
    assert!(error.contains("control file") || error.contains("pg_control"), "{error}");
}
