//! What sessions see when their server is lost, moved or held.
use crate::common::raw::{RawClient, message};
use crate::common::*;
use quorate_model::GateReport;
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_between_transactions_go_on_at_another_primary() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for postgres in [&first, &second] {
        postgres.admin().await.batch_execute("create table t (a int); grant all on t to demo").await.unwrap();
    }
    for close in [true, false] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let clients = [soon(cluster.connect(1)).await, soon(cluster.connect(2)).await];
        for client in &clients {
            client.batch_execute("insert into t values (1)").await.unwrap();
        }
        let fails = [soon(cluster.connect(1)).await, soon(cluster.connect(2)).await];
        for client in &fails {
            client.batch_execute("begin; insert into t values (2)").await.unwrap();
        }
        let stateful = [soon(cluster.connect(1)).await, soon(cluster.connect(2)).await];
        for client in &stateful {
            client.batch_execute("create temp table mine (a int)").await.unwrap();
        }
        fail_over(&cluster, 2, &second, close).await;
        for client in &clients {
            // Simple and extended, on the same connection.
            soon(client.batch_execute("insert into t values (3)")).await.unwrap();
            let row = soon(client.query_one("select count(*) from t where a = 3", &[])).await.unwrap();
            assert!(row.get::<_, i64>(0) > 0);
        }
        for client in &fails {
            let error = soon(client.batch_execute("insert into t values (2)")).await.unwrap_err();
            assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error}");
            assert!(error.as_db_error().unwrap().hint().is_some());
            let error = soon(client.batch_execute("insert into t values (2)")).await.unwrap_err();
            assert_eq!(code(&error), "25P02", "the block has failed, and is not over");
            soon(client.batch_execute("rollback; insert into t values (4)")).await.unwrap();
        }
        for client in &stateful {
            let until = Instant::now() + 10 * SECOND;
            while !client.is_closed() {
                assert!(Instant::now() < until, "a session with state ends");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let admin = second.admin().await;
        assert_eq!(number(&admin, "select count(*) from t where a = 2").await.unwrap(), 0);
        admin.batch_execute("truncate t").await.unwrap();
    }
}

/// As libpq does in pipelines: a Flush behind the Sync, which begins nothing and is answered by nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_behind_a_sync_is_not_a_request() {
    use tokio::io::AsyncWriteExt;
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    let batch = |sql: &str| {
        let parse = message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat());
        let bind = message(b'B', &[0; 8]);
        [parse, bind, message(b'E', &[0; 5]), message(b'S', &[]), message(b'H', &[])].concat()
    };
    let tags = |all: Vec<(u8, Vec<u8>)>| all.into_iter().map(|(tag, _)| tag).collect::<Vec<_>>();
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let (mut idle, mut open) =
            (RawClient::log_in(&cluster, entry).await, RawClient::log_in(&cluster, entry).await);
        for (raw, sql) in [(&mut idle, "select 1"), (&mut open, "begin")] {
            raw.0.write_all(&batch(sql)).await.unwrap();
            raw.messages_until_ready().await;
        }
        fail_over(&cluster, 2, &second, true).await;
        open.send(b'H', &[]).await;
        idle.0.write_all(&batch("select 2")).await.unwrap();
        assert_eq!(tags(idle.messages_until_ready().await), b"12DCZ");
        for (sql, expected) in
            [("select 2", &b"EZ"[..]), ("select 2", b"EZ"), ("rollback", b"12CZ"), ("select 2", b"12DCZ")]
        {
            open.0.write_all(&batch(sql)).await.unwrap();
            assert_eq!(tags(open.messages_until_ready().await), expected);
        }
    }
}

/// As Go's pq does: Parse, a look at the answer, and then Bind.
#[tokio::test(flavor = "multi_thread")]
async fn an_unnamed_statement_is_bound_at_another_primary() {
    use tokio::io::AsyncWriteExt;
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let mut raw = RawClient::log_in(&cluster, entry).await;
        raw.0.write_all(&[message(b'P', b"\0select 7\0\0\0"), message(b'S', &[])].concat()).await.unwrap();
        raw.until_ready().await;
        fail_over(&cluster, 2, &second, true).await;
        let rest = [message(b'B', &[0; 8]), message(b'E', &[0; 5]), message(b'S', &[])].concat();
        raw.0.write_all(&rest).await.unwrap();
        let tags: Vec<u8> = raw.messages_until_ready().await.into_iter().map(|(tag, _)| tag).collect();
        assert_eq!(tags, b"2DCZ");
    }
}

async fn text(client: &tokio_postgres::Client, sql: &str) -> String {
    soon(client.query_one(sql, &[])).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_holds_is_made_anew_at_another_primary() {
    for entry in [1, 2] {
        let (first, second) = (Postgres::start().await, Postgres::start().await);
        for postgres in [&first, &second] {
            postgres.admin().await.batch_execute(
                "create role reader; grant reader to demo; create function quiet() returns text language sql as \
                 $$ select set_config('statement_timeout', '50s', false) $$",
            ).await.unwrap();
        }
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let (idle, open) = (soon(cluster.connect(entry)).await, soon(cluster.connect(entry)).await);
        let mut statements = Vec::new();
        for client in [&idle, &open] {
            client
                .batch_execute(
                    // A function sets one that no text names.
                    "select quiet(); set work_mem = '7MB'; set app.who = 'O''Hara \\'; set timezone = 'Asia/Tokyo'; listen \"a \"\"b\"; \
                     prepare p as select 40 + $1::int; set local_preload_libraries = ''; set role reader",
                )
                .await
                .unwrap();
            statements.push(soon(client.prepare("select $1::int + 1")).await.unwrap());
        }
        asked(&first, 2).await;
        open.batch_execute(
            "begin; set work_mem = '1MB'; set app.who = 'nobody'; unlisten *; create temp table t (a int)",
        )
        .await
        .unwrap();
        answered(&idle).await;
        fail_over(&cluster, 2, &second, true).await;
        let error = soon(open.batch_execute("select 1")).await.unwrap_err();
        assert_eq!(code(&error), "40001", "what the transaction did is undone, so nothing is lost");
        soon(open.batch_execute("rollback")).await.unwrap();
        for (client, statement) in [(&idle, &statements[0]), (&open, &statements[1])] {
            assert_eq!(text(client, "show work_mem").await, "7MB");
            assert_eq!(text(client, "show statement_timeout").await, "50s");
            assert_eq!(text(client, "show timezone").await, "Asia/Tokyo");
            assert_eq!(text(client, "select current_setting('app.who')").await, "O'Hara \\");
            assert_eq!(text(client, "select current_user::text").await, "reader");
            assert_eq!(text(client, "select c from pg_listening_channels() c").await, "a \"b");
            assert_eq!(soon(client.query_one(statement, &[&41])).await.unwrap().get::<_, i32>(0), 42);
            soon(client.batch_execute("execute p(2)")).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_by_itself_does_not_hold_a_session() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    let cluster = Cluster::start().await;
    cluster.open(1, &first);
    let client = soon(cluster.connect(2)).await;
    client
        .batch_execute(
            "create temp table t (a int); select pg_advisory_lock(7); set search_path to pg_catalog",
        )
        .await
        .unwrap();
    asked(&first, 1).await;
    client.batch_execute("drop table pg_temp.t").await.unwrap();
    client.batch_execute("select pg_advisory_unlock(7)").await.unwrap();
    asked(&first, 1).await;
    let gone = soon(client.prepare("select 1")).await.unwrap();
    drop(gone);
    let twice = soon(client.prepare("select 3")).await.unwrap();
    soon(client.batch_execute("deallocate all")).await.unwrap();
    asked(&first, 1).await;
    answered(&client).await;
    fail_over(&cluster, 2, &second, true).await;
    assert_eq!(text(&client, "show search_path").await, "pg_catalog");
    let error = soon(client.query(&twice, &[])).await.unwrap_err();
    assert_eq!(code(&error), "26000", "it was deallocated, and is not made anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_names_what_was_kept() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    first.admin().await.batch_execute("create role reader; grant reader to demo").await.unwrap();
    for (sql, what) in [
        ("create temp table mine (a int)", "the temporary object \"mine\""),
        ("select pg_advisory_lock(1, 2)", "the advisory lock \"1, 2\""),
        ("begin; declare c cursor with hold for select 1; commit", "the cursor \"c\""),
        // There is no such role at the second one.
        ("set role reader", "its settings (role)"),
    ] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        // A raw client, to see the words of a session that is idle.
        let mut raw = RawClient::log_in(&cluster, 2).await;
        raw.send(b'Q', &[sql.as_bytes(), b"\0"].concat()).await;
        raw.until_ready().await;
        asked(&first, 1).await;
        raw.send(b'S', b"").await;
        raw.until_ready().await;
        fail_over(&cluster, 2, &second, true).await;
        raw.send(b'Q', b"select 1\0").await;
        let rest = String::from_utf8_lossy(&raw.rest().await).into_owned();
        assert!(rest.contains("57P01") && rest.contains(what), "{sql}: {rest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_in_flight_ends_as_what_is_known_of_it() {
    for entry in [1, 2] {
        let (mut first, second) = (Postgres::start().await, Postgres::start().await);
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let (outside, inside, committing) = (
            soon(cluster.connect(entry)).await,
            soon(cluster.connect(entry)).await,
            soon(cluster.connect(entry)).await,
        );
        inside.batch_execute("begin; select 1").await.unwrap();
        committing.batch_execute("begin; create table c (a int)").await.unwrap();
        let outside = tokio::spawn(async move { outside.batch_execute("select pg_sleep(60)").await });
        let inside = tokio::spawn(async move {
            let result = inside.batch_execute("select pg_sleep(60)").await;
            inside.batch_execute("rollback").await.unwrap();
            (result, number(&inside, "select 8").await)
        });
        first
            .admin()
            .await
            .batch_execute("alter system set synchronous_standby_names = 'ANY 1 (nobody)'")
            .await
            .unwrap();
        first.admin().await.batch_execute("select pg_reload_conf()").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let committing = tokio::spawn(async move { committing.batch_execute("commit").await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        first.kill();
        fail_over(&cluster, 2, &second, true).await;
        let error = soon(outside).await.unwrap().unwrap_err();
        assert_eq!(code(&error), "08007");
        assert!(error.as_db_error().unwrap().detail().unwrap().contains("unknown"));
        let error = soon(committing).await.unwrap().unwrap_err();
        assert_eq!(code(&error), "08007");
        assert!(error.as_db_error().unwrap().detail().unwrap().contains("unknown"));
        let (result, after) = soon(inside).await.unwrap();
        assert_eq!(code(&result.unwrap_err()), "40001");
        assert_eq!(after.unwrap(), 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_gate_holds_requests_and_a_remote_one_gives_them_back() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let client = soon(cluster.connect(entry)).await;
        cluster.gate(1).hold();
        let asking = tokio::spawn(async move {
            let first = number(&client, "select 1").await;
            (first, client)
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!asking.is_finished());
        cluster.open(1, &first);
        let (answer, client) = soon(asking).await.unwrap();
        assert_eq!(answer.unwrap(), 1);
        // Held again, and then closed: the request was never seen by Postgres and is retried elsewhere.
        cluster.gate(1).hold();
        let asking = tokio::spawn(async move { client.batch_execute("select 2").await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!asking.is_finished());
        fail_over(&cluster, 2, &second, true).await;
        soon(asking).await.unwrap().unwrap();
    }
}

/// The map is faster than the gate: what the gate has not delivered is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_word_of_a_former_gate_is_waited_for_and_not_for_long() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for speaks in [true, false] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let client = soon(cluster.connect(2)).await;
        // Its Postgres has ended; the request that comes before the map knows stays in the gate.
        cluster.gate(1).hold();
        let asking = tokio::spawn(async move { number(&client, "select 7").await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let moved = Instant::now();
        cluster.elect();
        cluster.promote(2);
        cluster.open(2, &second);
        if speaks {
            tokio::time::sleep(Duration::from_millis(50)).await;
            cluster.gate(1).close("another replica is primary now");
            assert_eq!(soon(asking).await.unwrap().unwrap(), 7);
        } else {
            assert_eq!(code(&soon(asking).await.unwrap().unwrap_err()), "08007");
            assert!(moved.elapsed() < SECOND);
        }
    }
}

/// Found by the ledger: a COMMIT that a former gate never delivered was sent to the new primary, which knew of no
/// transaction and answered it with success. Nothing of that transaction was anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_never_delivered_is_no_success_elsewhere() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for last in ["commit", "select 7"] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let client = soon(cluster.connect(2)).await;
        soon(client.batch_execute("begin; select 1")).await.unwrap();
        cluster.gate(1).hold();
        let asking = tokio::spawn(async move { client.batch_execute(last).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!asking.is_finished(), "it waits at the former gate");
        cluster.elect();
        cluster.promote(2);
        cluster.open(2, &second);
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.gate(1).close("another replica is primary now");
        let told = soon(asking).await.unwrap();
        assert!(told.is_err(), "{last}: told success of a transaction that is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_wait_for_the_lease() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let client = soon(cluster.connect(entry)).await;
        // The lease lapses while the statement runs.
        let lapse = async |lease: u64| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            cluster.gate(1).set_lease(lease);
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        let ask = |client: tokio_postgres::Client| {
            cluster.gate(1).set_lease(OPEN_LEASE);
            tokio::spawn(async move { (number(&client, "select 6 from pg_sleep(0.3)").await, client) })
        };
        let held = ask(client);
        lapse(lease_for(Duration::from_millis(1))).await;
        assert!(!held.is_finished(), "a lapsed lease holds results back");
        cluster.gate(1).set_lease(lease_for(60 * SECOND));
        let (answer, client) = soon(held).await.unwrap();
        assert_eq!(answer.unwrap(), 6);
        // Held results of a gate that closes are never seen.
        let held = ask(client);
        lapse(0).await;
        assert!(!held.is_finished());
        cluster.gate(1).close("fenced");
        assert_eq!(code(&soon(held).await.unwrap().0.unwrap_err()), "08007");
    }
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let client = soon(cluster.connect(entry)).await;
        // A request that comes when the lease has lapsed has not begun: another primary answers it.
        cluster.gate(1).drop_lease();
        let asking = tokio::spawn(async move { number(&client, "select 7").await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!asking.is_finished());
        fail_over(&cluster, 2, &second, true).await;
        assert_eq!(soon(asking).await.unwrap().unwrap(), 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parking_moves_idle_sessions_and_waits_for_transactions() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    let cluster = Cluster::start().await;
    cluster.open(1, &first);
    let mut clients = Vec::new();
    for entry in [1, 2] {
        let (idle, short, long) = (
            soon(cluster.connect(entry)).await,
            soon(cluster.connect(entry)).await,
            soon(cluster.connect(entry)).await,
        );
        // One that has only been opened would move.
        short.batch_execute("begin; select 1").await.unwrap();
        long.batch_execute("begin; select 1").await.unwrap();
        clients.push((idle, short, long));
    }
    let gate = cluster.gate(1);
    let parking = tokio::spawn(async move { gate.park(Duration::from_millis(500)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut waiting = Vec::new();
    for (idle, short, _) in &clients {
        soon(short.batch_execute("select 1; commit")).await.unwrap();
        waiting.push(idle.batch_execute("select 1"));
    }
    let parked = soon(parking).await.unwrap();
    assert_eq!((parked.kept, parked.cut), (4, 2));
    assert_eq!(cluster.gate(1).report(), GateReport::Held);
    fail_over(&cluster, 2, &second, true).await;
    for request in waiting {
        soon(request).await.unwrap();
    }
    for (idle, short, long) in &clients {
        soon(idle.batch_execute("select 1")).await.unwrap();
        soon(short.batch_execute("select 1")).await.unwrap();
        let error = soon(long.query("select 1", &[])).await.unwrap_err();
        assert_eq!(code(&error), "40001");
        soon(long.batch_execute("rollback")).await.unwrap();
        soon(long.query("select 1", &[])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_says_goodbye() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    let mut raw = RawClient::log_in(&cluster, 1).await;
    cluster.stop.cancel();
    let mut rest = Vec::new();
    soon(tokio::io::AsyncReadExt::read_to_end(&mut raw.0, &mut rest)).await.unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("57P01"));
}
