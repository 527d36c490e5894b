//! What orders answer, and what they change.

use super::fake::primary_report;
use super::protocol::{Port, admin, port};
use crate::admin::AdminContext;
use quorate_model::*;
use std::time::Duration;
use tokio_postgres::{AsyncMessage, Client, NoTls};

async fn with_app() -> (Port, Client) {
    let port = port().await;
    let client = admin(&port).await;
    client.batch_execute("CREATE SERVER demo ADMIN demo PASSWORD 'demo'").await.unwrap();
    client.batch_execute("CREATE DATABASE demo.app").await.unwrap();
    port.cluster.settle("app");
    let report = primary_report(&port.cluster.map(), "app");
    port.cluster.reports.lock().unwrap().push(report);
    (port, client)
}

async fn columns(client: &Client, order: &str) -> Vec<String> {
    let statement = client.prepare(order).await.unwrap();
    statement.columns().iter().map(|c| c.name().to_owned()).collect()
}

/// Columns are an interface.
#[tokio::test]
async fn columns_are_as_promised() {
    let port = port().await;
    let client = admin(&port).await;
    for (order, promised) in [
        (
            "SHOW NODES",
            "node, address, state, fault_domain, update_domain, raft, primaries, secondaries, version",
        ),
        (
            "SHOW DATABASES",
            "server, database, phase, epoch, primary, secondaries, k, open, sessions, size_bytes, reads, commits, outcomes, pool_mode, pool_size",
        ),
        (
            "SHOW REPLICAS",
            "server, database, replica, node, role, state, epoch, flush_lsn, lag_bytes, pid, data_directory, socket",
        ),
        ("SHOW RING", "position, node, predecessor, successor, state, last_heartbeat_ms, reported_by"),
        ("SHOW POOLS", "server, database, size, used, idle, waiting, longest_wait_ms, pinned, pinned_by"),
        ("SHOW EVENTS", "id, time, database, event, epoch, reason, reported_by, from, to, total_ms, steps"),
        (
            "SHOW OPERATIONS",
            "operation, kind, database, state, step, error, started, updated, attempt, owner, key",
        ),
        (
            "EXPLAIN FAILOVER a.b",
            "replica, node, role, state, position, counts_in, would_cover, could_lead, why",
        ),
        ("SHOW FAILPOINTS", "name"),
        ("CREATE DATABASE a.b", "operation"),
        ("DROP DATABASE a.b", "operation"),
        ("SWITCHOVER DATABASE a.b", "operation"),
        ("MOVE REPLICA a.b FROM n1 TO n2", "operation"),
    ] {
        assert_eq!(columns(&client, order).await.join(", "), promised, "{order}");
    }
}

#[tokio::test]
async fn reports_join_the_map_with_what_nodes_say() {
    let (port, client) = with_app().await;
    port.cluster.usable.lock().unwrap().remove(&NodeId(4));
    let row = client.query_one("SHOW DATABASES", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>("epoch"), "0.1.0");
    assert_eq!(row.get::<_, String>("primary"), "n1");
    assert_eq!(row.get::<_, String>("secondaries"), "n2,n3");
    assert_eq!((row.get::<_, i64>("k"), row.get::<_, bool>("open")), (1, true));
    assert_eq!((row.get::<_, i64>("sessions"), row.get::<_, i64>("size_bytes")), (3, 7_000_000));
    let rows = client.query("SHOW REPLICAS", &[]).await.unwrap();
    let told: Vec<(String, String, Option<i64>)> =
        rows.iter().map(|r| (r.get("role"), r.get("state"), r.get("pid"))).collect();
    assert_eq!(told[0], ("primary".to_owned(), "running".to_owned(), Some(4711)));
    assert_eq!(told[1], ("secondary".to_owned(), "unreachable".to_owned(), None));
    let rows = client.query("SHOW NODES", &[]).await.unwrap();
    let told: Vec<(String, i64, i64)> =
        rows.iter().map(|r| (r.get("state"), r.get("primaries"), r.get("secondaries"))).collect();
    assert_eq!(told[0], ("alive".to_owned(), 1, 0));
    assert_eq!(told[1], ("alive".to_owned(), 0, 1));
    assert_eq!(told[3], ("suspect".to_owned(), 0, 0));
    let rows = client.query("SHOW RING", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i64>("position"), 0);
    assert_eq!(rows[1].get::<_, Option<i64>>("last_heartbeat_ms"), None);
    assert_eq!(rows[3].get::<_, Option<String>>("reported_by").as_deref(), Some("n2"));
}

#[tokio::test]
async fn while_a_primary_is_elected_none_is_shown() {
    let (port, client) = with_app().await;
    let map = port.cluster.map();
    let database = map.databases_called("app").next().unwrap();
    let change = Change::Elect { coordinator: NodeId(2) };
    port.cluster
        .apply(Command::Reconfigure { database: database.id, version: database.version, change })
        .unwrap();
    let row = client.query_one("SHOW DATABASES", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>("phase"), "electing");
    assert_eq!(row.get::<_, Option<String>>("primary"), None);
    assert!(!row.get::<_, bool>("open"));
    let rows = client.query("SHOW REPLICAS", &[]).await.unwrap();
    assert!(rows.iter().all(|r| r.get::<_, String>("role") == "secondary"));
}

#[tokio::test]
async fn events_are_told_with_their_steps() {
    let (port, client) = with_app().await;
    let event = Event {
        id: 0,
        at_ms: 1_772_348_709_042,
        database: DatabaseId(2),
        target: "demo.app".to_owned(),
        kind: EventKind::Failover,
        epoch: Epoch::new(0, 2, 0),
        reason: "postmaster of r3 exited with signal 9".to_owned(),
        reported_by: Some(NodeId(2)),
        from: Some(ReplicaId(3)),
        to: Some(ReplicaId(4)),
        steps: vec![StepTime { name: "detect".to_owned(), micros: 12_100 }],
    };
    port.cluster.apply(Command::Record(event)).unwrap();
    let row = client.query_one("SHOW EVENTS", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>("id"), 1);
    assert_eq!(row.get::<_, String>("time"), "2026-03-01T07:05:09.042Z");
    assert_eq!(row.get::<_, String>("event"), "failover");
    assert_eq!(
        (row.get::<_, String>("from"), row.get::<_, String>("to")),
        ("r3".to_owned(), "r4".to_owned())
    );
    assert_eq!(row.get::<_, f64>("total_ms"), 12.1);
    assert_eq!(row.get::<_, String>("steps"), "detect 12.1 ms");
}

async fn refused(client: &Client, order: &str) -> (String, String) {
    let error = client.simple_query(order).await.err().unwrap_or_else(|| panic!("{order} was taken"));
    let db = error.as_db_error().unwrap();
    (db.code().code().to_owned(), format!("{} {}", db.message(), db.hint().unwrap_or_default()))
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let (port, client) = with_app().await;
    port.cluster.usable.lock().unwrap().remove(&NodeId(3));
    let before = port.cluster.map();
    for (order, code, says) in [
        ("CREATE SERVER demo ADMIN d PASSWORD 'x'", "42710", "already exists"),
        ("CREATE SERVER \"Demo\" ADMIN d PASSWORD 'x'", "42602", "not usable"),
        ("CREATE SERVER s ADMIN postgres PASSWORD 'x'", "42602", "reserved"),
        ("CREATE SERVER s ADMIN d PASSWORD ''", "22023", "password"),
        ("CREATE DATABASE demo.app", "42P04", "already exists"),
        ("CREATE DATABASE dmeo.x", "42704", "Did you mean \"demo\"?"),
        ("CREATE DATABASE demo.postgres", "42602", "reserved"),
        ("DROP SERVER demo", "2BP01", "still has databases"),
        ("DROP DATABASE demo.ap", "3D000", "Did you mean \"demo.app\"?"),
        ("SWITCHOVER DATABASE demo.app TO n1", "55000", "already holds the primary"),
        ("SWITCHOVER DATABASE demo.app TO n3", "55000", "not alive"),
        ("SWITCHOVER DATABASE demo.app TO n4", "55000", "holds no voter"),
        ("SWITCHOVER DATABASE demo.app TO n44", "42704", "Did you mean \"n4\"?"),
        ("MOVE REPLICA demo.app FROM n1 TO n4", "55000", "switch over to another node first"),
        ("MOVE REPLICA demo.app FROM n2 TO n3", "55000", "not alive"),
        ("MOVE REPLICA demo.app FROM n4 TO n4", "55000", "holds no replica"),
        ("WAIT OPERATION 999", "42704", "does not exist"),
    ] {
        let (found, text) = refused(&client, order).await;
        assert_eq!(found, code, "{order}: {text}");
        assert!(text.contains(says), "{order}: {text}");
    }
    *port.cluster.leaderless.lock().unwrap() = true;
    assert_eq!(refused(&client, "DROP DATABASE demo.app").await.0, "57P03");
    assert_eq!(before, port.cluster.map());
    // Reports go on without a leader.
    assert_eq!(client.query("SHOW DATABASES", &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_database_needs_three_fault_domains() {
    let port = port().await;
    let client = admin(&port).await;
    client.batch_execute("CREATE SERVER demo ADMIN demo PASSWORD 'demo'").await.unwrap();
    *port.cluster.usable.lock().unwrap() = [NodeId(1), NodeId(2)].into();
    let (code, text) = refused(&client, "CREATE DATABASE demo.app").await;
    assert_eq!(code, "53000");
    assert!(text.contains("3 nodes in different fault domains are needed, 2 are usable"), "{text}");
}

#[tokio::test]
async fn waiting_tells_each_step_to_the_end() {
    let port = port().await;
    let (client, mut connection) = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(port.address.port())
        .user("admin")
        .password("admin")
        .dbname("quorate")
        .connect(NoTls)
        .await
        .unwrap();
    let (notices, mut told) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message {
                let _ = notices.send(notice.message().to_owned()).await;
            }
        }
    });
    client.batch_execute("CREATE SERVER demo ADMIN demo PASSWORD 'demo'").await.unwrap();
    let operation: String = client.query_one("CREATE DATABASE demo.app", &[]).await.unwrap().get("operation");
    let mut next = async || tokio::time::timeout(Duration::from_secs(5), told.recv()).await.unwrap().unwrap();
    assert_eq!(
        next().await,
        format!("operation {operation} has begun; WAIT OPERATION {operation} follows it to its end")
    );
    let id = OperationId(operation.trim_start_matches("op").parse().unwrap());
    let order = format!("WAIT OPERATION {operation}");
    let waiting = client.query_one(&order, &[]);
    tokio::pin!(waiting);
    assert_eq!(
        tokio::select! { n = next() => n, _ = &mut waiting => panic!("ended early") },
        format!("{operation}: recorded")
    );
    let step = Step::Copying { ready: 1, of: 2 };
    let told_step = Command::Advance { operation: id, attempt: 0, step, change: None, now_ms: 2_000 };
    port.cluster.apply(told_step).unwrap();
    assert_eq!(
        tokio::select! { n = next() => n, _ = &mut waiting => panic!("ended early") },
        format!("{operation}: copying: 1 of 2 ready")
    );
    port.cluster.settle("app");
    let row = waiting.await.unwrap();
    assert_eq!((row.get::<_, String>("state"), row.get::<_, f64>("total_ms")), ("done".to_owned(), 4_000.0));
}

#[tokio::test]
async fn waiting_for_what_fails_is_an_error_with_the_reason() {
    let (port, client) = with_app().await;
    let operation: String = client.query_one("SWITCHOVER DATABASE demo.app TO n2", &[]).await.unwrap().get(0);
    let id = OperationId(operation.trim_start_matches("op").parse().unwrap());
    assert_eq!(refused(&client, "MOVE REPLICA demo.app FROM n2 TO n4").await.0, "55006");
    let state = OperationState::Failed("n2 is behind".to_owned());
    port.cluster.apply(Command::EndOperation { operation: id, attempt: 0, state, now_ms: 9 }).unwrap();
    let (code, text) = refused(&client, &format!("WAIT OPERATION {operation}")).await;
    assert_eq!(code, "58000");
    assert!(text.contains("switchover of demo.app") && text.contains("n2 is behind"), "{text}");
}

/// Ctrl-C in psql.
#[tokio::test]
async fn a_wait_can_be_cancelled() {
    let port = port().await;
    let client = admin(&port).await;
    client.batch_execute("CREATE SERVER demo ADMIN demo PASSWORD 'demo'").await.unwrap();
    let operation: String = client.query_one("CREATE DATABASE demo.app", &[]).await.unwrap().get(0);
    let cancel = client.cancel_token();
    let order = format!("WAIT OPERATION {operation}");
    let waiting = client.simple_query(&order);
    tokio::pin!(waiting);
    let error = loop {
        // A request that comes before the order has begun finds nothing to cancel, so it is repeated.
        cancel.cancel_query(NoTls).await.unwrap();
        if let Ok(result) = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await {
            break result.err().unwrap();
        }
    };
    assert_eq!(error.code().unwrap().code(), "57014");
    assert_eq!(client.query("SHOW OPERATIONS", &[]).await.unwrap().len(), 1);
}

/// A client that does not know whether its order arrived gives it again with its key.
#[tokio::test]
async fn a_key_begins_one_operation() {
    let port = port().await;
    let client = admin(&port).await;
    client.batch_execute("CREATE SERVER demo ADMIN demo PASSWORD 'demo'").await.unwrap();
    let order = "CREATE DATABASE demo.app KEY 'one'";
    let first: String = client.query_one(order, &[]).await.unwrap().get(0);
    // The nodes are gone meanwhile: what was placed once needs no place.
    port.cluster.usable.lock().unwrap().clear();
    let again: String = client.query_one(order, &[]).await.unwrap().get(0);
    assert_eq!(first, again);
    let (code, text) = refused(&client, "CREATE DATABASE demo.other KEY 'one'").await;
    assert_eq!(code, "42710", "{text}");
    let row = client.query_one("SHOW OPERATIONS", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>("key"), "one");
    assert_eq!((row.get::<_, i64>("attempt"), row.get::<_, Option<String>>("owner")), (0, None));
    assert_eq!(refused(&client, "CREATE DATABASE demo.x KEY ''").await.0, "42602");
}

#[tokio::test]
async fn what_is_under_way_can_be_cancelled_and_a_drop_cannot() {
    let (port, client) = with_app().await;
    let operation: String = client.query_one("SWITCHOVER DATABASE demo.app", &[]).await.unwrap().get(0);
    let cancelled: String =
        client.query_one(&format!("CANCEL OPERATION {operation}"), &[]).await.unwrap().get(0);
    assert_eq!(operation, cancelled);
    let row = client.query("SHOW OPERATIONS", &[]).await.unwrap().pop().unwrap();
    assert_eq!(row.get::<_, String>("state"), "cancelling");
    let id = OperationId(operation.trim_start_matches("op").parse().unwrap());
    let state = OperationState::Cancelled;
    port.cluster.apply(Command::EndOperation { operation: id, attempt: 0, state, now_ms: 9 }).unwrap();
    assert_eq!(refused(&client, &format!("WAIT OPERATION {operation}")).await.0, "57014");
    assert_eq!(refused(&client, &format!("CANCEL OPERATION {operation}")).await.0, "55000");
    let drop: String = client.query_one("DROP DATABASE demo.app", &[]).await.unwrap().get(0);
    let (code, text) = refused(&client, &format!("CANCEL OPERATION {drop}")).await;
    assert_eq!(code, "55000");
    assert!(text.contains("cannot be taken back"), "{text}");
}

#[tokio::test]
async fn nothing_is_given_up_that_is_not_lost() {
    let (port, client) = with_app().await;
    let force = "FORCE RECOVER DATABASE demo.app ACCEPT DATA LOSS";
    assert_eq!(refused(&client, "FORCE RECOVER DATABASE demo.app").await.0, "42601");
    let (code, text) = refused(&client, force).await;
    assert_eq!(code, "55000");
    assert!(text.contains("nothing is lost"), "{text}");
    let map = port.cluster.map();
    let database = map.databases_called("app").next().unwrap();
    let replica = database.current.primary;
    assert_eq!(refused(&client, &format!("DROP REPLICA demo.app {replica}")).await.0, "55000");
    assert_eq!(refused(&client, "DROP REPLICA demo.app r999").await.0, "42704");
    let change = Change::Elect { coordinator: NodeId(2) };
    let elect = Command::Reconfigure { database: database.id, version: database.version, change };
    port.cluster.apply(elect).unwrap();
    assert_eq!(refused(&client, &format!("{force} CANDIDATE n4")).await.0, "55000");
    client.query_one(&format!("{force} CANDIDATE n2"), &[]).await.unwrap();
    assert_eq!(refused(&client, force).await.0, "55006");
}

#[tokio::test]
async fn an_order_that_was_overtaken_is_decided_anew() {
    let (port, client) = with_app().await;
    let coordinator = NodeId(2);
    let (survivor, lost) = {
        let map = port.cluster.map();
        let current = &map.databases_called("app").next().unwrap().current;
        (current.primary, current.voters.clone())
    };
    port.cluster.change(Change::Elect { coordinator });
    port.cluster.change(Change::LoseQuorum { coordinator, missing: lost.iter().copied().collect() });
    port.cluster.recover(coordinator, survivor, lost.clone());
    let order = |replica: &ReplicaId| format!("DROP REPLICA demo.app {replica}");
    *port.cluster.overtaken.lock().unwrap() = 9;
    client.batch_execute(&order(lost.first().unwrap())).await.unwrap();
    assert_eq!(*port.cluster.overtaken.lock().unwrap(), 0, "it was, each time");
    // But not for ever.
    *port.cluster.overtaken.lock().unwrap() = 10;
    assert_eq!(refused(&client, &order(lost.last().unwrap())).await.0, "40001");
}

#[tokio::test]
async fn a_failover_is_explained_row_by_row() {
    let (_port, client) = with_app().await;
    let rows = client.query("EXPLAIN FAILOVER demo.app", &[]).await.unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0].get::<_, String>("role"), "primary");
    assert!(rows[0].get::<_, bool>("could_lead"));
    assert_eq!(rows[1].get::<_, String>("why"), "its node does not answer");
    assert!(rows[1].get::<_, String>("would_cover").contains('+'));
    assert!(rows[0].get::<_, String>("counts_in") == "current");
}

#[tokio::test]
async fn who_may_connect_to_a_server() {
    let (_port, client) = with_app().await;
    let allow = async || client.query_one("SHOW SERVERS", &[]).await.unwrap().get::<_, String>("allow");
    assert_eq!(allow().await, "all");
    client.batch_execute("ALTER SERVER demo SET allow = '10.0.0.0/8, ::1'").await.unwrap();
    assert_eq!(allow().await, "10.0.0.0/8, ::1/128");
    for (order, code) in [
        ("ALTER SERVER demo SET allow = '10.0.0.1/8'", "22023"),
        ("ALTER SERVER demo SET allow = ''", "22023"),
        ("ALTER SERVER demo SET deny = 'all'", "42601"),
        ("ALTER SERVER dmeo SET allow = 'all'", "42704"),
    ] {
        assert_eq!(refused(&client, order).await.0, code, "{order}");
    }
    assert_eq!(allow().await, "10.0.0.0/8, ::1/128", "a refused order changes nothing");
    client.batch_execute("alter server demo set allow = 'all'").await.unwrap();
    assert_eq!(allow().await, "all");
}

#[tokio::test]
async fn what_clients_of_a_server_show() {
    let (_port, client) = with_app().await;
    let shown = async || {
        let row = client.query_one("SHOW SERVERS", &[]).await.unwrap();
        (row.get::<_, String>("client_auth"), row.get::<_, String>("client_ca"))
    };
    assert_eq!(shown().await, ("password".into(), String::new()));
    // Nobody could log in.
    let (code, _) = refused(&client, "ALTER SERVER demo SET client_auth = 'certificate'").await;
    assert_eq!(code, "55000");
    let directory = tempfile::tempdir().unwrap();
    quorate_transport::authority::Authority::create(directory.path()).unwrap();
    let ca = std::fs::read_to_string(directory.path().join("ca.pem")).unwrap();
    client.batch_execute(&format!("ALTER SERVER demo SET client_ca = '{ca}'")).await.unwrap();
    client.batch_execute("ALTER SERVER demo SET client_auth = 'Either'").await.unwrap();
    let (auth, authorities) = shown().await;
    assert!(auth == "either" && authorities.contains("quorate cluster") && authorities.contains("(until "));
    for (order, code) in [
        ("ALTER SERVER demo SET client_ca = ''", "55000"),
        ("ALTER SERVER demo SET client_ca = 'none'", "22023"),
        ("ALTER SERVER demo SET client_auth = 'maybe'", "22023"),
        ("ALTER SERVER dmeo SET client_auth = 'both'", "42704"),
    ] {
        assert_eq!(refused(&client, order).await.0, code, "{order}");
    }
    assert_eq!(shown().await, (auth, authorities), "a refused order changes nothing");
    client.batch_execute("ALTER SERVER demo SET client_auth = 'password'").await.unwrap();
    client.batch_execute("ALTER SERVER demo SET client_ca = ''").await.unwrap();
    assert_eq!(shown().await, ("password".into(), String::new()));
}

#[tokio::test]
async fn options_and_diagnostics() {
    let (port, client) = with_app().await;
    let row = client.query_one("SHOW DATABASES", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>("reads"), "lease");
    client.batch_execute("ALTER DATABASE demo.app SET reads = 'confirm'").await.unwrap();
    let row = client.query_one("SHOW DATABASES", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>("reads"), "confirm");
    assert_eq!(row.get::<_, String>("commits"), "guarded");
    client.batch_execute("alter database demo.app set commits = 'strict'").await.unwrap();
    let row = client.query_one("SHOW DATABASES", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>("commits"), "strict");
    assert_eq!(row.get::<_, String>("reads"), "confirm", "one option leaves the other");
    assert_eq!(row.get::<_, String>("outcomes"), "tracked");
    client.batch_execute("alter database demo.app set outcomes = 'untracked'").await.unwrap();
    let row = client.query_one("SHOW DATABASES", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>("outcomes"), "untracked");
    let pool = (row.get::<_, String>("pool_mode"), row.get::<_, i64>("pool_size"));
    assert_eq!(pool, ("session".to_owned(), 20));
    client.batch_execute("ALTER DATABASE demo.app SET pool_mode = 'transaction'").await.unwrap();
    client.batch_execute("ALTER DATABASE demo.app SET pool_size = 7").await.unwrap();
    let row = client.query_one("SHOW DATABASES", &[]).await.unwrap();
    let pool = (row.get::<_, String>("pool_mode"), row.get::<_, i64>("pool_size"));
    assert_eq!(pool, ("transaction".to_owned(), 7));
    for refused_value in
        ["pool_mode = 'statement'", "pool_size = 0", "pool_size = '65536'", "pool_size = 'many'"]
    {
        let order = format!("ALTER DATABASE demo.app SET {refused_value}");
        assert_eq!(refused(&client, &order).await.0, "22023", "{refused_value}");
    }
    let row = client.query_one("SHOW POOLS", &[]).await.unwrap();
    assert_eq!((row.get::<_, String>("database"), row.get::<_, i64>("used")), ("app".to_owned(), 5));
    assert_eq!(row.get::<_, String>("pinned_by"), "LISTEN \"news\" (2), the cursor \"c\" (1)");
    assert_eq!(refused(&client, "ALTER DATABASE demo.app SET reads = 'never'").await.0, "22023");
    assert_eq!(refused(&client, "ALTER DATABASE demo.app SET commits = 'lease'").await.0, "22023");
    assert_eq!(refused(&client, "ALTER DATABASE demo.app SET writes = 'strict'").await.0, "42601");
    assert_eq!(refused(&client, "ALTER DATABASE demo.no SET reads = 'lease'").await.0, "3D000");
    client.batch_execute("SUSPECT NODE n3").await.unwrap();
    assert_eq!(*port.cluster.suspected.lock().unwrap(), vec![NodeId(3)]);
    assert_eq!(refused(&client, "SUSPECT NODE n9").await.0, "42704");
    assert_eq!(refused(&client, "FAILPOINT 'x' 'return'").await.0, "55000");
}
