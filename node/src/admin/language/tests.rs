#![allow(clippy::unwrap_used)]
use super::*;

fn refused(query: &str) -> AdminError {
    match parse(query) {
        Ok(_) => panic!("{query} was taken"),
        Err(error) => error,
    }
}

#[test]
fn takes_every_order_as_its_help_writes_it() {
    for query in [
        "SHOW NODES",
        "show databases;",
        "Show /* all */ Replicas -- please",
        "SHOW RING; SHOW OPERATIONS; SHOW EVENTS",
        "SHOW HELP",
        "SHOW VERSION",
        "CREATE SERVER demo ADMIN demo PASSWORD 'it''s secret'",
        "DROP SERVER demo",
        "CREATE DATABASE demo.app",
        "DROP DATABASE \"demo\".\"app\"",
        "SWITCHOVER DATABASE demo.app",
        "SWITCHOVER DATABASE demo.app TO n2",
        "MOVE REPLICA demo.app FROM n1 TO n4",
        "WAIT OPERATION 7",
        "WAIT OPERATION op7",
        "WAIT OPERATION 'op7'",
        "BEGIN; COMMIT; ROLLBACK",
        "START TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET application_name TO 'x'",
        "SHOW server_version",
        "SHOW transaction_isolation",
        "SELECT 1",
        "select version()",
    ] {
        assert!(parse(query).is_ok(), "{query}: {:?}", parse(query).err());
    }
    assert!(parse(" ; -- nothing\n").unwrap().is_empty());
}

#[test]
fn says_where_and_what_was_probably_meant() {
    for (query, code, position, hint) in [
        ("SHOW DATABSES", "42601", 6, "Did you mean DATABASES?"),
        ("SHWO NODES", "42601", 1, "Did you mean SHOW?"),
        ("SHOW", "42601", 5, "Expected NODES"),
        ("CREATE DATABASE app", "42601", 20, "named with its server"),
        ("CREATE SERVER s ADMIN u PASWORD 'p'", "42601", 25, "Did you mean PASSWORD?"),
        ("MOVE REPLICA a.b FROM n1", "42601", 25, "Expected TO."),
        ("INSERT INTO t VALUES (1)", "0A000", 1, "SHOW HELP"),
        ("SELECT * FROM pg_class", "0A000", 8, "SHOW HELP"),
    ] {
        let error = refused(query);
        assert_eq!((error.code, error.position), (code, Some(position)), "{query}: {error:?}");
        assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{query}: {error:?}");
    }
    assert_eq!(refused("SHOW NODES NOW").position, Some(12));
    assert_eq!(refused("WAIT OPERATION soon").position, Some(16));
}

#[test]
fn one_bad_order_spoils_the_whole_query() {
    assert!(parse("DROP DATABASE a.b; DORP SERVER a").is_err());
}

#[test]
fn a_password_is_in_no_message() {
    for query in ["CREATE SERVER s ADMIN u 'hunter2'", "CREATE SERVER s ADMIN u PASSWORD 'hunter2' x"] {
        let error = refused(query);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}
