//! What becomes of a commit whose answer is lost with its primary.
//!
//! The second server is no copy of the first one: what its log would say of a transaction id is made up by handing out ids
//! there, and by the horizon that its promotion recorded.
use crate::common::raw::{RawClient, message};
use crate::common::*;
use std::time::Duration;

/// The reign in which the first server is primary, as [`Cluster`] begins.
const FIRST: (i64, i64) = (0, 1);

async fn maintenance(postgres: &Postgres) -> tokio_postgres::Client {
    let mut config = tokio_postgres::Config::new();
    config.host_path(postgres.socket()).user("quorate").dbname("postgres");
    connect(&config).await.unwrap()
}

/// What a primary writes down of its reign.
async fn reigns(postgres: &Postgres, rows: &[(i64, i64, Option<i64>)]) {
    let client = maintenance(postgres).await;
    client
        .batch_execute(
            "create schema if not exists quorate; create table if not exists quorate.reigns \
             (data_loss int8, primary_epoch int8, timeline int8, horizon int8); truncate quorate.reigns",
        )
        .await
        .unwrap();
    for (data_loss, primary, horizon) in rows {
        let horizon = horizon.map_or("null".to_owned(), |h| h.to_string());
        let insert = format!("insert into quorate.reigns values ({data_loss}, {primary}, 1, {horizon})");
        client.batch_execute(&insert).await.unwrap();
    }
}

/// Hands out ids up to that one, whose transaction ends so; the ones before it commit.
async fn hand_out(postgres: &Postgres, id: i64, commits: bool) {
    let client = maintenance(postgres).await;
    while number(&client, "select pg_snapshot_xmax(pg_current_snapshot())").await.unwrap() < id {
        number(&client, "select pg_current_xact_id()").await.unwrap();
    }
    client.batch_execute("begin").await.unwrap();
    assert_eq!(number(&client, "select pg_current_xact_id()").await.unwrap(), id);
    client.batch_execute(if commits { "commit" } else { "rollback" }).await.unwrap();
}

async fn next_id(postgres: &Postgres) -> i64 {
    number(&maintenance(postgres).await, "select pg_snapshot_xmax(pg_current_snapshot())").await.unwrap()
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat())
}

fn bind(name: &str) -> Vec<u8> {
    message(b'B', &[b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat())
}

fn execute() -> Vec<u8> {
    message(b'E', &[0; 5])
}

fn describe() -> Vec<u8> {
    message(b'D', b"P\0")
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

/// A way to commit an insertion: what is sent and answered before, what commits, and the tags of its answer.
struct Way {
    name: &'static str,
    before: Vec<Vec<u8>>,
    last: Vec<u8>,
    answer: &'static [u8],
}

fn ways() -> Vec<Way> {
    // It takes a while, for what happens to its session meanwhile.
    let insert = "insert into t select 1 from pg_sleep(0.2)";
    vec![
        Way {
            name: "simple",
            before: vec![query("begin"), query(insert)],
            last: query("commit"),
            answer: b"CZ",
        },
        Way {
            name: "extended",
            before: vec![query("begin"), query(insert)],
            last: [parse("", "END"), bind(""), describe(), execute(), sync()].concat(),
            answer: b"12nCZ",
        },
        Way {
            name: "prepared",
            before: vec![[parse("c", "commit"), sync()].concat(), query("begin"), query(insert)],
            last: [bind("c"), execute(), sync()].concat(),
            answer: b"2CZ",
        },
        Way {
            name: "implicit",
            before: vec![query("select 1")],
            last: [parse("", insert), bind(""), execute(), sync()].concat(),
            answer: b"12CZ",
        },
        Way {
            name: "pipelined",
            before: vec![query("select 1")],
            last: [
                [parse("", "begin"), bind(""), execute()].concat(),
                [parse("", insert), bind(""), execute()].concat(),
                [parse("", "commit"), bind(""), execute(), sync()].concat(),
            ]
            .concat(),
            answer: b"12C12C12CZ",
        },
    ]
}

async fn send(raw: &mut RawClient, bytes: &[u8]) {
    tokio::io::AsyncWriteExt::write_all(&mut raw.0, bytes).await.unwrap();
}

/// The messages up to ReadyForQuery, but for what says nothing of the request.
async fn answer(raw: &mut RawClient) -> Vec<(u8, Vec<u8>)> {
    let all = raw.messages_until_ready().await;
    all.into_iter().filter(|(tag, _)| !matches!(tag, b'S' | b'N')).collect()
}

fn tags(messages: &[(u8, Vec<u8>)]) -> Vec<u8> {
    messages.iter().map(|(tag, _)| *tag).collect()
}

fn code_of(messages: &[(u8, Vec<u8>)]) -> Option<String> {
    let (_, error) = messages.iter().find(|(tag, _)| *tag == b'E')?;
    let text = String::from_utf8_lossy(error);
    text.split('\0').find_map(|field| field.strip_prefix('C')).map(str::to_owned)
}

/// Has the first server lost in the middle of a commit; the second one, with what `prepare` makes it say, is the next.
async fn lose(way: &Way, entry: usize, prepare: impl AsyncFnOnce(&Postgres, i64)) -> Vec<(u8, Vec<u8>)> {
    lose_lapsed(way, entry, false, prepare).await
}

/// As [`lose`]. `lapsed`: nobody vouches any more for what the server says, so nothing of it has left.
async fn lose_lapsed(
    way: &Way,
    entry: usize,
    lapsed: bool,
    prepare: impl AsyncFnOnce(&Postgres, i64),
) -> Vec<(u8, Vec<u8>)> {
    let (mut first, second) = (Postgres::start().await, Postgres::start().await);
    first.admin().await.batch_execute("create table t (a int); grant all on t to demo").await.unwrap();
    let cluster = Cluster::start().await;
    cluster.open(1, &first);
    let mut raw = RawClient::log_in(&cluster, entry).await;
    first.sync_names("ANY 1 (nobody)").await;
    // The next transaction of this server is the client's.
    let id = next_id(&first).await;
    for request in &way.before {
        send(&mut raw, request).await;
        answer(&mut raw).await;
    }
    send(&mut raw, &way.last).await;
    if lapsed {
        // It is at the server: a request that begins without a lease waits.
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.gate(1).set_lease(0);
    }
    let admin = first.admin().await;
    let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    soon(async {
        while number(&admin, waits).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    prepare(&second, id).await;
    first.kill();
    cluster.gate(1).close("its Postgres died");
    cluster.elect();
    cluster.promote(2);
    cluster.open(2, &second);
    let told = answer(&mut raw).await;
    // The session goes on.
    send(&mut raw, &query("select 7")).await;
    assert_eq!(tags(&answer(&mut raw).await), b"TDCZ", "{}", way.name);
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_next_primary_has_is_answered_as_it_would_have_been() {
    for way in ways() {
        for entry in [1, 2] {
            let told = lose(&way, entry, async |second, id| {
                hand_out(second, id, true).await;
                reigns(second, &[(FIRST.0, FIRST.1, None), (0, 2, Some(id + 1))]).await;
            })
            .await;
            assert_eq!(tags(&told), way.answer, "{}", way.name);
            let last = &told[told.len() - 2].1;
            let tag = if way.name == "implicit" { &b"INSERT 0 1\0"[..] } else { b"COMMIT\0" };
            assert_eq!(last, tag, "{}", way.name);
        }
    }
}

/// What the server said and nobody vouched for is not lost on us: its id is there, and so is what came before it.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_might_not_leave_is_learnt_all_the_same() {
    for way in ways().iter().filter(|way| matches!(way.name, "implicit" | "pipelined")) {
        for entry in [1, 2] {
            let told = lose_lapsed(way, entry, true, async |second, id| {
                hand_out(second, id, true).await;
                reigns(second, &[(FIRST.0, FIRST.1, None), (0, 2, Some(id + 1))]).await;
            })
            .await;
            assert_eq!(tags(&told), way.answer, "{} by {entry}", way.name);
            let told = lose_lapsed(way, entry, true, async |second, id| {
                hand_out(second, id, true).await;
                reigns(second, &[(FIRST.0, FIRST.1, None), (0, 2, Some(id))]).await;
            })
            .await;
            assert_eq!(code_of(&told).as_deref(), Some("40001"), "{} by {entry}", way.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_it_does_not_have_is_a_failure_to_be_retried() {
    for way in ways() {
        // Rolled back there, or never heard of: somebody else has its number.
        for (commits, beyond) in [(false, 1), (true, 0)] {
            let told = lose(&way, 2, async |second, id| {
                hand_out(second, id, commits).await;
                reigns(second, &[(FIRST.0, FIRST.1, None), (0, 2, Some(id + beyond))]).await;
            })
            .await;
            assert_eq!(code_of(&told).as_deref(), Some("40001"), "{}", way.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_told_is_unknown_and_the_session_goes_on() {
    let ways = ways();
    let way = &ways[0];
    // Nothing is known of the reign; of its end; of any reign.
    for rows in [Some(vec![(0, 2, Some(1_000_000))]), Some(vec![(0, 1, None), (0, 2, Some(-1))]), None] {
        let told = lose(way, 1, async |second, id| {
            hand_out(second, id, true).await;
            if let Some(rows) = &rows {
                reigns(second, rows).await;
            }
        })
        .await;
        assert_eq!(code_of(&told).as_deref(), Some("08007"), "{rows:?}");
    }
}

/// Every promotion since counts, not only the last one.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_lost_two_promotions_ago_stays_lost() {
    let ways = ways();
    let told = lose(&ways[0], 1, async |second, id| {
        hand_out(second, id, true).await;
        reigns(second, &[(0, 1, None), (0, 2, Some(id)), (0, 3, None), (0, 4, Some(id + 9))]).await;
    })
    .await;
    assert_eq!(code_of(&told).as_deref(), Some("40001"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_has_written_nothing_is_retried() {
    let way = Way {
        name: "read",
        before: vec![query("begin"), query("select 1")],
        last: query("commit"),
        answer: b"",
    };
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let mut raw = RawClient::log_in(&cluster, entry).await;
        for request in &way.before {
            send(&mut raw, request).await;
            answer(&mut raw).await;
        }
        // Its answer is held back by a lease that has lapsed, so both are lost.
        cluster.gate(1).set_lease(0);
        send(&mut raw, &way.last).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.gate(1).close("fenced");
        cluster.elect();
        cluster.promote(2);
        cluster.open(2, &second);
        let told = answer(&mut raw).await;
        assert_eq!(code_of(&told).as_deref(), Some("40001"));
    }
}

/// A backend that is told to end in the wait for the quorum has committed here alone: the answer waits for the quorum.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_a_session_that_was_ended_is_answered_behind_a_barrier() {
    let postgres = Postgres::start().await;
    postgres.admin().await.batch_execute("create table t (a int); grant all on t to demo").await.unwrap();
    reigns(&postgres, &[(FIRST.0, FIRST.1, None)]).await;
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &postgres);
        let client = soon(cluster.connect(entry)).await;
        let pid = number(&client, "select pg_backend_pid()").await.unwrap();
        client.batch_execute("begin; insert into t values (1)").await.unwrap();
        postgres.sync_names("ANY 1 (nobody)").await;
        let committing = tokio::spawn(async move {
            let told = client.batch_execute("commit").await;
            (told, number(&client, "select 8").await)
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let admin = postgres.admin().await;
        admin.batch_execute(&format!("select pg_terminate_backend({pid})")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!committing.is_finished(), "nobody knows yet that it is on a quorum");
        postgres.sync_names("").await;
        let (told, after) = soon(committing).await.unwrap();
        told.unwrap();
        assert_eq!(after.unwrap(), 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_question_is_not_seen() {
    let postgres = Postgres::start().await;
    postgres
        .admin()
        .await
        .batch_execute("create table t (a int primary key); grant all on t to demo")
        .await
        .unwrap();
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    let requests = [
        query("begin"),
        query("insert into t values (1)"),
        query("commit"),
        query("end"),
        // A transaction that has failed says so at its end.
        query("begin"),
        query("insert into t values (1)"),
        query("commit"),
        // Several at once, without waiting.
        [query("begin"), query("insert into t values (2)"), query("commit"), query("select 3")].concat(),
        [parse("c", "commit"), sync()].concat(),
        [bind("c"), execute(), sync()].concat(),
        [parse("", "insert into t values (4)"), bind(""), execute(), sync()].concat(),
        // It fails, and everything up to the Sync is skipped.
        [parse("", "insert into t values (4)"), bind(""), execute(), sync(), query("select 5")].concat(),
        [
            [parse("", "insert into t values (6)"), bind(""), execute()].concat(),
            [parse("", "commit"), bind(""), execute()].concat(),
            [parse("", "insert into t values (7)"), bind(""), execute(), sync()].concat(),
        ]
        .concat(),
        [
            parse("", "begin"),
            bind(""),
            execute(),
            parse("", "insert into t values (8)"),
            bind(""),
            execute(),
            sync(),
        ]
        .concat(),
        [query("select count(*) from pg_prepared_statements"), query("select count(*) from pg_cursors")]
            .concat(),
        query("commit and chain"),
        query("commit"),
        query("select count(*) from t"),
    ];
    let mut direct = RawClient::direct(&postgres).await;
    let mut expected = Vec::new();
    let count = |bytes: &[u8]| {
        let mut rest = bytes;
        let mut ready = 0;
        while let [tag, a, b, c, d, ..] = *rest {
            ready += usize::from(matches!(tag, b'Q' | b'S'));
            rest = &rest[1 + u32::from_be_bytes([a, b, c, d]) as usize..];
        }
        ready
    };
    for request in &requests {
        tokio::io::AsyncWriteExt::write_all(&mut direct.0, request).await.unwrap();
        for _ in 0..count(request) {
            expected.extend(direct.messages_until_ready().await);
        }
    }
    for entry in [1, 2] {
        postgres.admin().await.batch_execute("truncate t").await.unwrap();
        let mut raw = RawClient::log_in(&cluster, entry).await;
        let mut got = Vec::new();
        for request in &requests {
            send(&mut raw, request).await;
            for _ in 0..count(request) {
                got.extend(raw.messages_until_ready().await);
            }
        }
        assert_eq!(got, expected);
    }
}
