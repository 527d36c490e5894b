//! Databases whose results are confirmed by voters instead of leased.
use crate::common::*;
use quorate_proxy::Reads;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The gate at node 1, open and confirming, with no lease at all: no clock can help.
async fn confirming(postgres: &Postgres) -> Cluster {
    let cluster = Cluster::start().await;
    let gate = cluster.gate(1);
    gate.set_reads(Reads::Confirm);
    gate.open(cluster.epoch(), postgres.socket());
    cluster.witness.confirms.store(true, Ordering::SeqCst);
    cluster
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(400)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_need_no_lease_when_voters_confirm_them() {
    let postgres = Postgres::start().await;
    let cluster = confirming(&postgres).await;
    for entry in [1, 2] {
        let client = soon(cluster.connect(entry)).await;
        assert_eq!(soon(number(&client, "select 41 + 1")).await.unwrap(), 42);
        let row = soon(client.query_one("select repeat('y', 3000000)", &[])).await.unwrap();
        assert_eq!(row.get::<_, String>(0).len(), 3_000_000);
        let sum: i64 = soon(client.query("select generate_series(1, 20000)::bigint", &[]))
            .await
            .unwrap()
            .iter()
            .map(|row| row.get::<_, i64>(0))
            .sum();
        assert_eq!(sum, 20_000 * 20_001 / 2);
        assert_eq!(code(&client.batch_execute("select 1/0").await.unwrap_err()), "22012");
    }
    // The same gate with leases answers nothing: there is none.
    let client = soon(cluster.connect(1)).await;
    cluster.gate(1).set_reads(Reads::Lease);
    let asking = tokio::spawn(async move { number(&client, "select 1").await });
    pause().await;
    assert!(!asking.is_finished());
    cluster.gate(1).set_reads(Reads::Confirm);
    assert_eq!(soon(asking).await.unwrap().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_nobody_confirms_releases_nothing() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for entry in [1, 2] {
        let cluster = confirming(&first).await;
        let client = soon(cluster.connect(entry)).await;
        // It is cut off while the statement runs: the result is there, and stays there.
        let running =
            tokio::spawn(async move { (number(&client, "select 6 from pg_sleep(0.2)").await, client) });
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.witness.confirms.store(false, Ordering::SeqCst);
        pause().await;
        assert!(!running.is_finished());
        cluster.witness.confirms.store(true, Ordering::SeqCst);
        let (answer, client) = soon(running).await.unwrap();
        assert_eq!(answer.unwrap(), 6);
        // A result that is never confirmed is never seen.
        let running = tokio::spawn(async move { number(&client, "select 6 from pg_sleep(0.2)").await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.witness.confirms.store(false, Ordering::SeqCst);
        pause().await;
        assert!(!running.is_finished());
        cluster.gate(1).close("fenced");
        assert_eq!(code(&soon(running).await.unwrap().unwrap_err()), "08007");
    }
    for entry in [1, 2] {
        let cluster = confirming(&first).await;
        let (seen, client) = (soon(cluster.connect(entry)).await, soon(cluster.connect(entry)).await);
        cluster.witness.confirms.store(false, Ordering::SeqCst);
        // Somebody's result finds out; the request that comes then has not begun, and another primary answers it.
        let found = tokio::spawn(async move { number(&seen, "select 1").await });
        pause().await;
        let asking = tokio::spawn(async move { number(&client, "select 7").await });
        pause().await;
        assert!(!asking.is_finished());
        cluster.gate(1).close("its Postgres died");
        cluster.elect();
        // The old gate's last word, that the request was never delivered, is on its way.
        pause().await;
        cluster.promote(2);
        cluster.open(2, &second);
        assert_eq!(soon(asking).await.unwrap().unwrap(), 7);
        assert!(soon(found).await.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_who_waits_shares_a_confirmation() {
    let postgres = Postgres::start().await;
    let cluster = confirming(&postgres).await;
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(soon(cluster.connect(1)).await);
    }
    cluster.witness.delay_ms.store(100, Ordering::SeqCst);
    let before = cluster.witness.confirmations.load(Ordering::SeqCst);
    let asking: Vec<_> =
        clients.into_iter().map(|c| tokio::spawn(async move { number(&c, "select 3").await })).collect();
    for answer in asking {
        assert_eq!(soon(answer).await.unwrap().unwrap(), 3);
    }
    let rounds = cluster.witness.confirmations.load(Ordering::SeqCst) - before;
    assert!((1..=6).contains(&rounds), "{rounds} rounds for 16 results");
}
