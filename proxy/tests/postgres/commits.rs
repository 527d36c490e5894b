//! No commit is told as a success that is not on a quorum, whatever a tenant sets, hides, cancels or terminates.
use crate::common::*;
use quorate_proxy::Commits;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const NOBODY: &str = "ANY 1 (nobody)";
/// Turns synchronous commits off, by a name that no text shows.
const WEAK: &str = "create function weak() returns void language plpgsql as \
    $$ begin perform set_config('synchronous' || '_commit', 'off', false); end $$";

async fn table(postgres: &Postgres) -> Client {
    let admin = postgres.admin().await;
    let sql = "create table t (a int); grant all on t to demo; grant create on schema public to demo";
    admin.batch_execute(sql).await.unwrap();
    admin
}

fn writing(client: Client, sql: &'static str) -> JoinHandle<(Result<(), tokio_postgres::Error>, Client)> {
    tokio::spawn(async move { (client.batch_execute(sql).await, client) })
}

async fn is_held<T>(task: &JoinHandle<T>) -> bool {
    tokio::time::sleep(Duration::from_millis(600)).await;
    !task.is_finished()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_roles_and_databases_do_not_reach_sessions() {
    let postgres = Postgres::start().await;
    let admin = table(&postgres).await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    // The audit may find them before they are looked at here: then answers wait for evidence.
    let _receiver = Receiver::start(&postgres).await;
    *cluster.witness.receiver.lock().await = Some(postgres.admin().await);
    admin.batch_execute("alter role demo set synchronous_commit = off").await.unwrap();
    admin.batch_execute("alter database app set synchronous_commit = local").await.unwrap();
    admin.batch_execute("alter role demo in database app set synchronous_commit = local").await.unwrap();
    // Without the gate's own value they do take effect.
    let mut around = tokio_postgres::Config::new();
    around.host_path(postgres.socket()).user("demo").dbname("app");
    let shown = async |client: &Client| {
        let row = client.query_one("select current_setting('synchronous_commit')", &[]).await.unwrap();
        row.get::<_, String>(0)
    };
    assert_eq!(shown(&connect(&around).await.unwrap()).await, "local");
    for entry in [1, 2] {
        let client = soon(cluster.connect(entry)).await;
        assert_eq!(shown(&client).await, "on");
        for reset in ["reset all", "reset synchronous_commit", "discard all"] {
            client.batch_execute(reset).await.unwrap();
            assert_eq!(shown(&client).await, "on", "{reset}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_finds_what_could_weaken_commits_and_makes_the_gate_strict() {
    let postgres = Postgres::start().await;
    let admin = table(&postgres).await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    let gate = cluster.gate(1);
    gate.audit("app").await;
    assert_eq!(gate.commits(), Commits::Guarded);
    for (make, unmake) in [
        ("alter role demo set synchronous_commit = off", "alter role demo reset synchronous_commit"),
        ("alter database app set synchronous_commit = local", "alter database app reset synchronous_commit"),
        ("alter role demo set client_min_messages = error", "alter role demo reset client_min_messages"),
        (
            "create function f() returns int language sql set synchronous_commit = off as 'select 1'",
            "drop function f()",
        ),
    ] {
        admin.batch_execute(make).await.unwrap();
        gate.audit("app").await;
        assert_eq!(gate.commits(), Commits::Strict, "{make}");
        admin.batch_execute(unmake).await.unwrap();
        gate.audit("app").await;
        assert_eq!(gate.commits(), Commits::Guarded, "{unmake}");
    }
}

/// A proxy looks by itself, when a gate opens.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_opens_is_audited() {
    let postgres = Postgres::start().await;
    let admin = table(&postgres).await;
    admin.batch_execute("alter role demo set synchronous_commit = off").await.unwrap();
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    let until = Instant::now() + 10 * SECOND;
    while cluster.gate(1).commits() != Commits::Strict {
        assert!(Instant::now() < until, "the setting is found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_gate_acknowledges_only_what_the_quorum_has() {
    let postgres = Postgres::start().await;
    let admin = table(&postgres).await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    admin.batch_execute(WEAK).await.unwrap();
    let write =
        "create function write_one() returns int language sql as 'insert into t values (7) returning a'";
    admin.batch_execute(write).await.unwrap();
    postgres.sync_names(NOBODY).await;
    for entry in [1, 2] {
        // What strictness is for: the guard cannot see this.
        cluster.gate(1).set_commits(Commits::Guarded);
        let weak = soon(cluster.connect(entry)).await;
        soon(weak.batch_execute("select weak(); insert into t values (1)")).await.unwrap();
        let texts = [
            "insert into t values (2)",
            "begin; insert into t values (3); commit",
            "insert into t values (4); select 1",
            "do $$ begin insert into t values (5); commit; end $$",
            "select count(*) from (values (write_one())) v",
        ];
        let mut clients = Vec::new();
        for _ in 0..=texts.len() {
            let client = soon(cluster.connect(entry)).await;
            soon(client.batch_execute("select weak()")).await.unwrap();
            clients.push(client);
        }
        cluster.gate(1).set_commits(Commits::Strict);
        // By the extended protocol the commit is told by ReadyForQuery alone.
        let extended = clients.pop().unwrap();
        let extended = tokio::spawn(async move { extended.execute("insert into t values (6)", &[]).await });
        let held: Vec<_> = clients.into_iter().zip(texts).map(|(c, sql)| (sql, writing(c, sql))).collect();
        for (sql, task) in &held {
            assert!(is_held(task).await, "{sql}");
        }
        assert!(is_held(&extended).await);
        let receiver = Receiver::start(&postgres).await;
        *cluster.witness.receiver.lock().await = Some(postgres.admin().await);
        for (sql, task) in held {
            soon(task).await.unwrap().0.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        assert_eq!(soon(extended).await.unwrap().unwrap(), 1);
        drop(receiver);
        *cluster.witness.receiver.lock().await = None;
        postgres.sync_names(NOBODY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_hides_the_warning_is_told_only_what_the_quorum_has() {
    let postgres = Postgres::start().await;
    let admin = table(&postgres).await;
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &postgres);
        let receiver = Receiver::start(&postgres).await;
        *cluster.witness.receiver.lock().await = Some(postgres.admin().await);
        let mut quiet = cluster.config(entry);
        quiet.options("-c client_min_messages=error");
        let by_option = soon(connect(&quiet)).await.unwrap();
        let by_set = soon(cluster.connect(entry)).await;
        by_set.batch_execute("set client_min_messages = error").await.unwrap();
        let by_value = soon(cluster.connect(entry)).await;
        let set = "select set_config($1, 'error', false)";
        by_value.execute(set, &[&"client_min_messages"]).await.unwrap();
        // What the sessions hold now is asked for as by them, and its answer waits for the quorum too.
        asked(&postgres, 2).await;
        for client in [&by_set, &by_value] {
            soon(client.batch_execute("select 1")).await.unwrap();
        }
        drop(receiver);
        *cluster.witness.receiver.lock().await = None;
        postgres.sync_names(NOBODY).await;
        let mut held = Vec::new();
        for client in [by_option, by_set, by_value] {
            held.push(writing(client, "insert into t values (1)"));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let waiting =
            "select count(*) from pg_stat_activity where usename = 'demo' and wait_event = 'SyncRep'";
        assert_eq!(number(&admin, waiting).await.unwrap(), 3);
        let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity where usename = 'demo'";
        admin.batch_execute(cancel).await.unwrap();
        for task in &held {
            assert!(is_held(task).await, "without the warning, success would be told");
        }
        assert_eq!(number(&admin, waiting).await.unwrap(), 0, "the cancels took effect");
        let receiver = Receiver::start(&postgres).await;
        *cluster.witness.receiver.lock().await = Some(postgres.admin().await);
        for task in held {
            soon(task).await.unwrap().0.unwrap();
        }
        drop(receiver);
        postgres.sync_names("").await;
    }
}

/// What one writer was told of one insert.
struct Told {
    begun: Instant,
    ended: Instant,
    outcome: Result<(), String>,
}

async fn write_until(cluster: &Cluster, kind: usize, done: &AtomicBool) -> Vec<Told> {
    let mut config = cluster.config(1 + kind % 2);
    if kind % 4 == 3 {
        config.options("-c client_min_messages=error");
    }
    let mut told = Vec::new();
    let mut client = None;
    while !done.load(Ordering::SeqCst) {
        let here = match client.take().filter(|c: &Client| !c.is_closed()) {
            Some(client) => client,
            // A login may be cut short by the storm.
            None => match connect(&config).await {
                Ok(client) => client,
                Err(_) => continue,
            },
        };
        let begun = Instant::now();
        let written = match kind % 3 {
            0 => here.batch_execute("insert into t values (1)").await,
            1 => here.execute("insert into t values ($1)", &[&1]).await.map(drop),
            _ => match here.batch_execute("begin; insert into t values (1)").await {
                Ok(()) => here.batch_execute("commit").await,
                Err(error) => Err(error),
            },
        };
        told.push(Told { begun, ended: Instant::now(), outcome: written.map_err(|e| code(&e)) });
        client = Some(here);
    }
    told
}

/// Hundreds of cancels and terminations, by SQL of the same tenant and by cancel requests, while the only standby
/// stands still every other moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_cancels_never_makes_a_success_that_is_not_on_a_quorum() {
    let postgres = Postgres::start().await;
    let admin = table(&postgres).await;
    let cluster = Arc::new(Cluster::start().await);
    cluster.open(1, &postgres);
    let receiver = Receiver::start(&postgres).await;
    *cluster.witness.receiver.lock().await = Some(postgres.admin().await);
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..12)
        .map(|kind| {
            let (cluster, done) = (Arc::clone(&cluster), Arc::clone(&done));
            tokio::spawn(async move { write_until(&cluster, kind, &done).await })
        })
        .collect();
    let cancels = Arc::new(AtomicU64::new(0));
    let storm = tokio::spawn({
        let (cluster, done, cancels) = (Arc::clone(&cluster), Arc::clone(&done), Arc::clone(&cancels));
        async move {
            let mut round = 0;
            while !done.load(Ordering::SeqCst) {
                round += 1;
                // The tenant's own session: what it may do to others of the same role.
                let Ok(client) = connect(&cluster.config(1)).await else { continue };
                let end = if round % 5 == 0 { "pg_terminate_backend" } else { "pg_cancel_backend" };
                let sql = format!(
                    "select count({end}(pid)) from pg_stat_activity \
                     where usename = 'demo' and pid <> pg_backend_pid() and wait_event = 'SyncRep'"
                );
                cancels.fetch_add(number(&client, &sql).await.unwrap_or(0).max(0) as u64, Ordering::SeqCst);
            }
        }
    });
    let mut stopped = Vec::new();
    // On a slow machine it takes longer until there were enough.
    for round in 0..60 {
        if round >= 14 && cancels.load(Ordering::SeqCst) >= 300 {
            break;
        }
        receiver.stop();
        let from = Instant::now();
        tokio::time::sleep(Duration::from_millis(400)).await;
        stopped.push((from, Instant::now()));
        receiver.go_on();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    done.store(true, Ordering::SeqCst);
    soon(storm).await.unwrap();
    let mut told = Vec::new();
    for writer in writers {
        told.extend(soon(writer).await.unwrap());
    }
    let cancels = cancels.load(Ordering::SeqCst);
    let count = |wanted: &str| told.iter().filter(|t| t.outcome == Err(wanted.to_owned())).count();
    let successes = told.iter().filter(|t| t.outcome.is_ok()).count();
    println!(
        "{cancels} cancels; {successes} successes, {} times 40003, {} times 08007, {} times 57014",
        count("40003"),
        count("08007"),
        count("57014")
    );
    assert!(cancels >= 200 && count("40003") >= 50 && count("08007") > 0 && successes >= 50);
    // Nothing that began after the standby stood still can be on the quorum before it went on.
    for told in told.iter().filter(|t| t.outcome.is_ok()) {
        let lie = stopped.iter().any(|(from, to)| told.begun > *from && told.ended < *to);
        assert!(!lie, "told of a success while nobody else could have it");
    }
    let all = number(&admin, "select count(*) from t").await.unwrap();
    assert!(all as usize >= successes, "{all} rows, {successes} successes");
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
