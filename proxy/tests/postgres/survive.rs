//! What sessions see when their server is lost, moved or held.
use crate::common::raw::{RawClient, message};
use crate::common::*;
use quorate_model::{DatabaseOption, GateReport, PoolMode};
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

/// A failover to the other node's Postgres: with the old gate closed, or without a word from it.
async fn fail_over(cluster: &Cluster, to: usize, postgres: &Postgres, close: bool) {
    if close {
        cluster.gate(3 - to).close("its Postgres died");
    }
    cluster.elect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.promote(to as u64);
    cluster.open(to, postgres);
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_block_in_which_nothing_was_done_is_opened_at_the_next_primary() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    second.admin().await.batch_execute("create table t (a int); grant all on t to demo").await.unwrap();
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let client = soon(cluster.connect(entry)).await;
        client.batch_execute("select 1").await.unwrap();
        cluster.gate(1).close("its Postgres died");
        cluster.elect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        // There is no primary, and none is needed for this.
        soon(client.batch_execute("begin")).await.unwrap();
        cluster.promote(2);
        cluster.open(2, &second);
        soon(client.batch_execute("insert into t values (1)")).await.unwrap();
        soon(client.batch_execute("rollback")).await.unwrap();
        let admin = second.admin().await;
        assert_eq!(number(&admin, "select count(*) from t").await.unwrap(), 0, "it was in the block");
        soon(client.batch_execute("begin")).await.unwrap();
        soon(client.execute("insert into t values (2)", &[])).await.unwrap();
        soon(client.batch_execute("commit")).await.unwrap();
        assert_eq!(number(&admin, "select count(*) from t where a = 2").await.unwrap(), 1);
        admin.batch_execute("truncate t").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_in_which_nothing_is_sent_is_open_at_its_server_soon() {
    let postgres = Postgres::start().await;
    let admin = postgres.admin().await;
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &postgres);
        let client = soon(cluster.connect(entry)).await;
        client.batch_execute("set application_name = 'waiting'; select 1").await.unwrap();
        client.batch_execute("begin").await.unwrap();
        let open = "select count(*) from pg_stat_activity where application_name = 'waiting' \
                    and state = 'idle in transaction'";
        let until = Instant::now() + 10 * SECOND;
        while number(&admin, open).await.unwrap() == 0 {
            assert!(Instant::now() < until, "its block is not opened");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let ago = "select now() < clock_timestamp() - interval '300 ms'";
        assert!(client.query_one(ago, &[]).await.unwrap().get::<_, bool>(0), "its time is that of its BEGIN");
        client.batch_execute("select nothing").await.unwrap_err();
        assert_eq!(code(&client.batch_execute("select 1").await.unwrap_err()), "25P02");
        client.batch_execute("commit; select 1").await.unwrap();
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

/// A client that does not look at what it is told (a script, a queue of requests) must not have the rest of a lost block
/// committed piece by piece: the block has failed until the client ends it, as with any error.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_lost_has_failed_until_it_is_ended() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for postgres in [&first, &second] {
        postgres.admin().await.batch_execute("create table t (a int); grant all on t to demo").await.unwrap();
    }
    let query = |text: &str| message(b'Q', &[text.as_bytes(), b"\0"].concat());
    let extended = |text: &str| {
        let parse = message(b'P', &[b"\0", text.as_bytes(), b"\0\0\0"].concat());
        [parse, message(b'B', &[0; 8]), message(b'E', &[0; 5]), message(b'S', &[])].concat()
    };
    async fn said(raw: &mut RawClient, bytes: Vec<u8>) -> String {
        use tokio::io::AsyncWriteExt;
        raw.0.write_all(&bytes).await.unwrap();
        let mut said = String::new();
        for (tag, body) in raw.messages_until_ready().await {
            said.push(tag as char);
            let text = String::from_utf8_lossy(&body).into_owned();
            match tag {
                b'E' => said += text.split('\0').find_map(|field| field.strip_prefix('C')).unwrap(),
                b'C' => said += text.trim_end_matches('\0'),
                b'Z' => said += &text,
                _ => {}
            }
        }
        said
    }
    for (entry, mode) in [
        (1, PoolMode::Session),
        (2, PoolMode::Session),
        (1, PoolMode::Transaction),
        (2, PoolMode::Transaction),
    ] {
        let cluster = Cluster::start().await;
        cluster.set(DatabaseOption::PoolMode(mode));
        cluster.open(1, &first);
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut raw = RawClient::log_in(&cluster, entry).await;
            assert_eq!(said(&mut raw, query("begin")).await, "CBEGINZT");
            assert_eq!(said(&mut raw, query("insert into t values (1)")).await, "CINSERT 0 1ZT");
            clients.push(raw);
        }
        fail_over(&cluster, 2, &second, true).await;
        let [simple, other, commits, rolls_back, again] = &mut clients[..] else { panic!("five clients") };
        let insert = "insert into t values (2)";
        assert_eq!(said(simple, query(insert)).await, "E40001ZE");
        assert_eq!(said(simple, query(insert)).await, "E25P02ZE");
        assert_eq!(said(simple, query("commit")).await, "CROLLBACKZI", "nothing is left to be committed");
        assert_eq!(said(simple, query("insert into t values (3)")).await, "CINSERT 0 1ZI");
        // What cannot fail does not, and the error is for what can.
        assert_eq!(said(other, [message(b'C', b"Sx\0"), message(b'S', b"")].concat()).await, "3ZT");
        assert_eq!(said(other, extended(insert)).await, "E40001ZE");
        assert_eq!(said(other, extended(insert)).await, "E25P02ZE");
        assert_eq!(said(other, extended("rollback")).await, "12CROLLBACKZI");
        // What was to end the block has ended it, whatever it is told.
        assert_eq!(said(commits, extended("commit")).await, "E40001ZI");
        assert_eq!(said(rolls_back, query("rollback")).await, "E40001ZI");
        // Lost again before its end: that is known already.
        assert_eq!(said(again, query(insert)).await, "E40001ZE");
        fail_over(&cluster, 1, &first, true).await;
        assert_eq!(said(again, query(insert)).await, "E25P02ZE");
        assert_eq!(said(again, query("rollback")).await, "CROLLBACKZI");
        for client in [commits, rolls_back, again] {
            assert_eq!(said(client, query("begin")).await, "CBEGINZT");
            assert_eq!(said(client, extended("rollback")).await, "12CROLLBACKZI");
        }
        let lost = "select count(*) from t where a < 3";
        for postgres in [&first, &second] {
            assert_eq!(number(&postgres.admin().await, lost).await.unwrap(), 0);
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
async fn a_cancelled_wait_for_the_quorum_is_an_error_and_a_barrier_follows() {
    let postgres = Postgres::start().await;
    let admin = postgres.admin().await;
    admin.batch_execute("create table t (a int); grant all on t to demo").await.unwrap();
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &postgres);
        let client = soon(cluster.connect(entry)).await;
        let pid = number(&client, "select pg_backend_pid()").await.unwrap();
        postgres.sync_names("ANY 1 (nobody)").await;
        let token = client.cancel_token();
        let writing = tokio::spawn(async move {
            let first = client.batch_execute("insert into t values (1)").await;
            (first, number(&client, "select 9").await)
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The client's own cancel is held.
        let port = cluster.nodes[0].proxy.address().port();
        let cancelling = tokio::spawn(async move {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            token.cancel_query_raw(stream, tokio_postgres::NoTls).await
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!writing.is_finished(), "a cancel does not end the wait");
        // A superuser's is not seen by us: its effect is.
        admin.batch_execute(&format!("select pg_cancel_backend({pid})")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!writing.is_finished(), "the answer waits for a barrier");
        postgres.sync_names("").await;
        let (first, second) = soon(writing).await.unwrap();
        let error = first.unwrap_err();
        assert_eq!(code(&error), "40003");
        assert!(error.as_db_error().unwrap().hint().is_some());
        assert_eq!(second.unwrap(), 9, "the session goes on");
        soon(cancelling).await.unwrap().unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn malformed_streams_end_with_a_reason() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    for bytes in [&b"x\0\0\0\x04"[..], b"Q\0\0\0\x01", b"Q\xff\xff\xff\xff"] {
        let mut raw = RawClient::log_in(&cluster, 1).await;
        raw.0.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        soon(raw.0.read_to_end(&mut rest)).await.unwrap();
        assert!(String::from_utf8_lossy(&rest).contains("08P01"), "{bytes:?}: {rest:?}");
    }
    for bytes in
        [&b"\0\0\0\x04"[..], b"\0\0\xff\xff....", b"\0\0\0\x09\0\x02\0\0\0", b"GET / HTTP/1.1\r\n\r\n"]
    {
        let mut stream = tokio::net::TcpStream::connect(cluster.nodes[0].proxy.address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest.first(), Some(&b'E'), "{bytes:?}");
    }
    // Byte by byte, nothing is different.
    let mut raw = RawClient::log_in(&cluster, 1).await;
    for byte in b"Q\0\0\0\x0dselect 1\0" {
        raw.0.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let answer = raw.until_ready().await;
    assert!(answer.windows(8).any(|w| w == b"SELECT 1"));
}
