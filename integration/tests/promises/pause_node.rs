//! Promise: SIGSTOP of the primary's node for 30 s and then SIGCONT loses no acknowledged commit, and no result from
//! the old primary leaves after the new one opened.
//!
//! Four kinds of client are tied to the paused node itself. Each asked, or asks, the old primary something whose
//! honest answer changed while it was stopped: a query in flight, a query sent into the pause, a session in a
//! transaction, an idle session. After SIGCONT each may get an error, or the new value; never the old one.

use anyhow::{Context, bail, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::nemesis::Pause;
use quorate_integration::sql::tell;
use quorate_integration::{
    Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, Session, copies, nemesis, with_cluster,
};
use std::time::{Duration, Instant};

const GAP_LIMIT: Duration = Duration::from_secs(20);
/// For an answer after SIGCONT: longer than a client is held.
const ANSWER_LIMIT: Duration = Duration::from_secs(45);
/// How much of a query in flight is still to come when the pause begins. The daemon must not have its result yet;
/// its backend, if it runs on, has it long before SIGCONT.
const IN_FLIGHT: &str = "2";

#[test]
fn nothing_stale_leaves_a_node_that_was_paused() {
    with_cluster(Options::default(), async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        ports[0]
            .session()
            .await?
            .run("CREATE TABLE counter (value int); INSERT INTO counter VALUES (0)")
            .await?;
        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        // The daemon alone: Postgres goes on working and its answers pile up in front of the gate.
        pause(cluster, &ledger, Pause::Daemon, Duration::from_secs(30))
            .await
            .context("the daemon paused for 30 s")?;
        // All of it: Postgres itself goes on after SIGCONT as if nothing had happened.
        pause(cluster, &ledger, Pause::Whole, Duration::from_secs(10))
            .await
            .context("the whole node paused for 10 s")?;
        copies::close(cluster, ledger).await.map(drop)
    });
}

pub async fn pause(
    cluster: &mut Cluster,
    ledger: &Ledger,
    kind: Pause,
    length: Duration,
) -> anyhow::Result<()> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let paused = before.primary()?.node.clone();
    let tied = cluster.node(&paused)?.app();
    let others = cluster.others(&paused);
    let other = others[0].app();
    let old = counter(&other.session().await?).await?;

    let idle = tied.session().await?;
    ensure!(counter(&idle).await? == old);
    let open = tied.session().await?;
    open.run("BEGIN").await?;
    ensure!(counter(&open).await? == old);
    let late = tied.session().await?;
    ensure!(counter(&late).await? == old);
    let asking = tied.session().await?;
    let sql = format!("SELECT value FROM counter, pg_sleep({IN_FLIGHT})");
    let in_flight = tokio::spawn(async move { asking.value(&sql).await });
    // On its way to Postgres; its result is far away.
    tokio::time::sleep(Duration::from_millis(500)).await;

    let harm = nemesis::pause_node(cluster, &paused, kind)?;
    // Sent into the pause: it lies in the kernel's buffer until SIGCONT.
    let sent_late = tokio::spawn(async move { counter(&late).await });
    let after = cluster.failed_over(DEMO_DATABASE, &paused, GAP_LIMIT).await?;
    eprintln!("{paused} paused ({kind:?}); open on {} after {:?}", after.primary()?.node, harm.at.elapsed());
    other.session().await?.run("UPDATE counter SET value = value + 1").await?;
    let new = counter(&other.session().await?).await?;
    ensure!(new == old + 1, "the counter went from {old} to {new}");
    ledger.progress(200, GAP_LIMIT).await?;
    tokio::time::sleep_until((harm.at + length).into()).await;
    ensure!(harm.broken().is_empty(), "the pause did not hold: {:?}", harm.broken());
    ensure!(!in_flight.is_finished() && !sent_late.is_finished(), "a paused node answered");

    harm.undo()?;
    let continued = Instant::now();
    // At once, while the node has not looked around yet, and again until it has.
    let (idle_told, open_told) = tokio::join!(ask(&idle), ask(&open));
    judge("an idle session", idle_told?, old, new)?;
    judge("a session in a transaction", open_told?, old, new)?;
    let told =
        tokio::time::timeout(ANSWER_LIMIT, sent_late).await.context("the late query was not answered")??;
    judge("a query sent into the pause", told.map_err(|e| format!("{e:#}")), old, new)?;
    let told = tokio::time::timeout(ANSWER_LIMIT, in_flight)
        .await
        .context("the query in flight was not answered")??;
    let told = match told {
        Ok(value) => Ok(value.and_then(|v| v.parse().ok()).context("no value")?),
        Err(error) => Err(tell(&error)),
    };
    judge("the query in flight", told, old, new)?;
    let mut asked = 0;
    while continued.elapsed() < Duration::from_secs(3) {
        let told = ask(&tied.session().await?).await?;
        ensure!(told == Ok(new), "new session {asked} at the paused node was told {told:?}, not {new}");
        asked += 1;
    }
    eprintln!("  {asked} new sessions: the new value");
    ledger.progress(200, GAP_LIMIT).await?;
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await.context("after SIGCONT")?;
    eprintln!("whole again {:?} after SIGCONT", continued.elapsed());
    Ok(())
}

pub async fn counter(session: &Session) -> anyhow::Result<i64> {
    let value =
        session.value("SELECT value FROM counter").await.map_err(|e| anyhow::anyhow!("{}", tell(&e)))?;
    value.and_then(|v| v.parse().ok()).context("no counter")
}

/// A value, or what was said instead of one. No answer at all is a failure of the test.
async fn ask(session: &Session) -> anyhow::Result<Result<i64, String>> {
    let told = tokio::time::timeout(ANSWER_LIMIT, counter(session)).await;
    Ok(told.with_context(|| format!("no answer within {ANSWER_LIMIT:?}"))?.map_err(|e| format!("{e:#}")))
}

fn judge(who: &str, told: Result<i64, String>, old: i64, new: i64) -> anyhow::Result<()> {
    match told {
        Ok(value) if value == new => eprintln!("  {who}: the new value"),
        Ok(value) if value == old => {
            bail!("{who} was told {old}, the old primary's value, after the new one had {new}")
        }
        Ok(value) => bail!("{who} was told {value}, which is neither {old} nor {new}"),
        Err(reason) => eprintln!("  {who}: {reason}"),
    }
    Ok(())
}
