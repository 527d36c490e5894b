//! The first packet of a connection: whatever it is, it is read within its limits, and what was understood says the same
//! when it is said again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_proxy_fuzz::wire::startup::{
    MAX_STARTUP_BYTES, Packet, SECRET_BYTES, body_length, cancel_request, parse, startup_message,
};

/// What a startup packet has behind its version, by the book: names and values, each ended by a zero byte.
fn by_the_book(body: &[u8]) -> Vec<(String, String)> {
    let strings: Vec<&[u8]> = body.split(|byte| *byte == 0).collect();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    strings.chunks_exact(2).take_while(|pair| !pair[0].is_empty()).map(|p| (text(p[0]), text(p[1]))).collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk::<4>() else { return };
    let Ok(body) = body_length(*length) else { return };
    assert!((4..=MAX_STARTUP_BYTES - 4).contains(&body), "{body}");
    let Some(body) = rest.get(..body) else { return };
    match parse(body) {
        Ok(Packet::Startup(startup)) => {
            assert!(!startup.user.is_empty() && !startup.database.is_empty());
            let said = by_the_book(&body[4..]);
            let last = |name: &str| said.iter().rfind(|(n, _)| n == name).map(|(_, value)| value.as_str());
            assert_eq!(last("user"), Some(startup.user.as_str()));
            let database = last("database").filter(|name| !name.is_empty()).unwrap_or(&startup.user);
            assert_eq!(database, startup.database);
            let ours =
                |name: &str| matches!(name, "user" | "database" | "replication") || name.starts_with("_pq_.");
            let for_the_server: Vec<_> = said.iter().filter(|(name, _)| !ours(name)).cloned().collect();
            assert_eq!(startup.parameters, for_the_server);
            let again = startup_message(&startup.user, &startup.database, &startup.parameters);
            let Ok(Packet::Startup(same)) = parse(&again[4..]) else {
                panic!("{startup:?}: said again, unread")
            };
            assert_eq!(
                (&same.user, &same.database, &same.parameters),
                (&startup.user, &startup.database, &startup.parameters)
            );
        }
        Ok(Packet::Cancel { pid, secret }) => {
            assert!(SECRET_BYTES.contains(&secret.len()));
            assert_eq!(cancel_request(pid, &secret)[4..], *body, "a cancel request has one form");
        }
        Ok(Packet::Ssl | Packet::GssEnc) => {}
        Err(bad) => assert_eq!(bad.sqlstate().len(), 5),
    }
});
