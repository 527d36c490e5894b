//! Asking a server what it holds for a session, and what makes the same at another one. Pure.
//!
//! The question goes by the extended protocol under a name of its own: a simple query would end the client's unnamed
//! statement. Only catalogs are read, by whoever the session is.

use super::header::c_string;
use super::kept::Statements;
use super::reply::{begin, end, put_c_string};
use super::statements::Serial;
use std::collections::BTreeSet;

/// The name of our statement; no driver makes such a one.
const NAME: &[u8] = b"\x01quorate";

/// Bytes of an answer that are taken; a session that holds more is not moved.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// Client encodings in which a byte of another character may look like a quote or a backslash.
const UNSAFE_ENCODINGS: [&[u8]; 8] =
    [b"SJIS", b"SHIFT_JIS_2004", b"BIG5", b"GBK", b"UHC", b"GB18030", b"JOHAB", b"EUC_JIS_2004"];

/// What a server said that it holds for a session. All in the session's client encoding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Settings that the session made, and their values.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
    pub channels: Vec<Vec<u8>>,
    /// Texts of PREPARE.
    pub prepares: Vec<Vec<u8>>,
    /// Names of statements that were prepared by the protocol.
    pub parsed: BTreeSet<Box<[u8]>>,
    /// The first thing that cannot be made anew, in words.
    pub immovable: Option<String>,
}

impl Known {
    fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.channels.is_empty() && self.prepares.is_empty()
    }
}

/// A question whose answer is being read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inquiry {
    known: Known,
    bytes: usize,
    failed: bool,
}

/// What a message of the server means to the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is of the answer.
    Ours,
    /// It ends the answer.
    End,
    /// It is for the client.
    Others,
}

impl Inquiry {
    /// The question. `names`: settings of the application's own; `statements`: whether those of the protocol are asked for.
    pub fn question(names: &[Box<[u8]>], statements: bool) -> Vec<u8> {
        let mut array = Vec::new();
        for name in names {
            if !array.is_empty() {
                array.push(b',');
            }
            literal(&mut array, name);
        }
        let of_statements: &[u8] = if statements {
            b"UNION ALL SELECT 'n', name, '' FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql "
        } else {
            b""
        };
        let sql = [&b"SELECT 's', name, setting FROM pg_catalog.pg_settings WHERE source = 'session' \
              AND name NOT IN ('synchronous_commit', 'transaction_isolation', 'transaction_read_only', 'transaction_deferrable') \
            UNION ALL SELECT 's', n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest(ARRAY["[..], &array, b"]::pg_catalog.text[]) n \
              WHERE pg_catalog.current_setting(n, true) IS NOT NULL \
            UNION ALL SELECT 's', 'role', pg_catalog.current_setting('role') WHERE pg_catalog.current_setting('role') <> 'none' \
            UNION ALL SELECT 'l', c, '' FROM pg_catalog.pg_listening_channels() c \
            UNION ALL SELECT 'p', name, statement FROM pg_catalog.pg_prepared_statements WHERE from_sql \
            ", of_statements, b"\
            UNION ALL (SELECT 't', relname, '' FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema() LIMIT 1) \
            UNION ALL (SELECT 't', proname, '' FROM pg_catalog.pg_proc WHERE pronamespace = pg_catalog.pg_my_temp_schema() LIMIT 1) \
            UNION ALL (SELECT 't', typname, '' FROM pg_catalog.pg_type WHERE typnamespace = pg_catalog.pg_my_temp_schema() LIMIT 1) \
            UNION ALL (SELECT 'k', pg_catalog.concat_ws(', ', classid, objid), '' FROM pg_catalog.pg_locks \
              WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid() LIMIT 1) \
            UNION ALL (SELECT 'c', name, '' FROM pg_catalog.pg_cursors WHERE is_holdable LIMIT 1)"]
        .concat();
        let mut out = Vec::with_capacity(sql.len() + 128);
        message(&mut out, b'P', |body| {
            put_c_string(body, NAME);
            put_c_string(body, &sql);
            body.extend_from_slice(&[0, 0]);
        });
        message(&mut out, b'B', |body| {
            put_c_string(body, b"");
            put_c_string(body, NAME);
            body.extend_from_slice(&[0; 6]);
        });
        message(&mut out, b'E', |body| body.extend_from_slice(&[0; 5]));
        message(&mut out, b'C', |body| {
            body.push(b'S');
            put_c_string(body, NAME);
        });
        message(&mut out, b'S', |_| {});
        out
    }

    /// A message of the server: all of it, or (`whole` is false) its beginning.
    pub fn hear(&mut self, tag: u8, body: &[u8], whole: bool) -> Heard {
        match tag {
            b'Z' => return Heard::End,
            b'D' => {
                self.bytes += body.len();
                let fits = whole && self.bytes <= MAX_ANSWER_BYTES;
                self.failed |= !fits || self.row(body).is_none();
            }
            b'1' | b'2' | b'3' | b'C' | b'n' | b't' | b'T' => {}
            // One that ends the session is the client's too.
            b'E' if !matches!(super::reply::field(body, b'V'), Some(b"FATAL" | b"PANIC")) => {
                self.failed = true
            }
            _ => return Heard::Others,
        }
        Heard::Ours
    }

    /// What is known at the end; none: the server did not say.
    pub fn conclude(self) -> Option<Known> {
        (!self.failed).then_some(self.known)
    }

    fn row(&mut self, body: &[u8]) -> Option<()> {
        let mut rest = body.get(2..)?;
        let mut fields = [&b""[..]; 3];
        for field in &mut fields {
            let (length, tail) = rest.split_first_chunk::<4>()?;
            (*field, rest) = tail.split_at_checked(usize::try_from(i32::from_be_bytes(*length)).ok()?)?;
        }
        let [kind, name, value] = fields;
        let known = &mut self.known;
        let immovable = |what: &str| format!("{what} \"{}\"", String::from_utf8_lossy(name));
        match kind {
            b"s" => {
                let is_encoding = name.eq_ignore_ascii_case(b"client_encoding");
                if is_encoding && UNSAFE_ENCODINGS.iter().any(|e| value.eq_ignore_ascii_case(e)) {
                    known.immovable.get_or_insert_with(|| {
                        format!("the client encoding {}", String::from_utf8_lossy(value))
                    });
                }
                known.settings.push((name.to_vec(), value.to_vec()));
            }
            b"l" => known.channels.push(name.to_vec()),
            b"p" => known.prepares.push(value.to_vec()),
            b"n" => drop(known.parsed.insert(name.into())),
            b"t" => drop(known.immovable.get_or_insert_with(|| immovable("the temporary object"))),
            b"k" => drop(known.immovable.get_or_insert_with(|| immovable("the advisory lock"))),
            b"c" => drop(known.immovable.get_or_insert_with(|| immovable("the cursor"))),
            _ => return None,
        }
        Some(())
    }
}

/// One thing to be made at a new server. Each is answered with a ReadyForQuery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Making {
    pub what: String,
    /// The name, if it is a statement that the client prepared: one that cannot be prepared any more is for its next use to
    /// find out.
    pub statement: Option<Box<[u8]>>,
    /// It is to fail.
    pub fails: bool,
    pub bytes: Vec<u8>,
}

/// What makes the same at a new server, in order.
pub fn makings(known: &Known, statements: &Statements) -> Vec<Making> {
    let mut all = Vec::new();
    if known.is_empty() && statements.is_empty() {
        return all;
    }
    let query = |what: String, sql: &[u8]| {
        let mut bytes = Vec::new();
        message(&mut bytes, b'Q', |body| put_c_string(body, sql));
        Making { what, statement: None, fails: false, bytes }
    };
    // The encoding first, because everything else is written in it; the role last, because it may do less.
    let rank = |name: &[u8]| match name {
        b"client_encoding" => 0,
        b"role" => 2,
        _ => 1,
    };
    let mut settings: Vec<_> = known.settings.iter().collect();
    settings.sort_by_key(|(name, _)| rank(name));
    for group in settings.chunk_by(|(a, _), (b, _)| rank(a) == rank(b)) {
        let mut sql = b"SELECT ".to_vec();
        let mut names = Vec::new();
        for (name, value) in group {
            if !names.is_empty() {
                sql.extend_from_slice(b", ");
            }
            sql.extend_from_slice(b"pg_catalog.set_config(");
            literal(&mut sql, name);
            sql.extend_from_slice(b", ");
            literal(&mut sql, value);
            sql.extend_from_slice(b", false)");
            names.push(String::from_utf8_lossy(name));
        }
        all.push(query(format!("its settings ({})", names.join(", ")), &sql));
    }
    for channel in &known.channels {
        let mut sql = b"LISTEN \"".to_vec();
        sql.extend(channel.iter().flat_map(|b| if *b == b'"' { vec![b'"', b'"'] } else { vec![*b] }));
        sql.push(b'"');
        all.push(query(format!("LISTEN \"{}\"", String::from_utf8_lossy(channel)), &sql));
    }
    for sql in &known.prepares {
        let start = String::from_utf8_lossy(&sql[..sql.len().min(60)]).into_owned();
        all.push(query(format!("a statement of PREPARE ({start})"), sql));
    }
    for (name, body) in statements {
        let mut bytes = Vec::with_capacity(body.len() + 16);
        message(&mut bytes, b'P', |out| out.extend_from_slice(body));
        message(&mut bytes, b'S', |_| {});
        let what = format!("the prepared statement \"{}\"", String::from_utf8_lossy(name));
        all.push(Making { what, statement: Some(name.clone()), fails: false, bytes });
    }
    all
}

/// What takes back all settings of a session. Those of its startup packet stay.
pub fn resetting() -> Making {
    let mut bytes = Vec::new();
    message(&mut bytes, b'Q', |body| {
        put_c_string(body, b"RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL");
    });
    Making { what: "a reset of its settings".to_owned(), statement: None, fails: false, bytes }
}

/// What puts a server into a transaction block that has failed: where its client is since another server was lost.
pub fn failing() -> Making {
    let mut bytes = Vec::new();
    message(&mut bytes, b'Q', |body| put_c_string(body, b"BEGIN; ROLLBACK TO SAVEPOINT quorate_lost"));
    Making { what: "a lost transaction".to_owned(), statement: None, fails: true, bytes }
}

/// What closes statements of ours; none, if there are none.
pub fn closing(statements: &[Serial]) -> Option<Making> {
    if statements.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    for statement in statements {
        message(&mut bytes, b'C', |body| {
            body.push(b'S');
            put_c_string(body, &statement.name());
        });
    }
    message(&mut bytes, b'S', |_| {});
    Some(Making { what: "the end of statements".to_owned(), statement: None, fails: false, bytes })
}

fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = begin(out, tag);
    body(out);
    end(out, start);
}

/// A string literal, whatever `standard_conforming_strings` says.
fn literal(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(b"E'");
    for byte in text {
        if matches!(byte, b'\'' | b'\\') {
            out.push(*byte);
        }
        out.push(*byte);
    }
    out.push(b'\'');
}

/// The statement's name in the body of a Parse message.
pub fn statement_name(body: &[u8]) -> &[u8] {
    c_string(body).map_or(body, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(fields: [&str; 3]) -> Vec<u8> {
        let mut body = vec![0, 3];
        for field in fields {
            body.extend_from_slice(&(field.len() as u32).to_be_bytes());
            body.extend_from_slice(field.as_bytes());
        }
        body
    }

    #[test]
    fn an_answer_becomes_what_makes_the_same_again() {
        let mut inquiry = Inquiry::default();
        for tag in [b'1', b'2'] {
            assert_eq!(inquiry.hear(tag, b"", true), Heard::Ours);
        }
        for fields in [
            ["s", "role", "reader"],
            ["s", "app.user", "O'Hara \\ son"],
            ["s", "client_encoding", "LATIN1"],
            ["l", "a\"b", ""],
            ["p", "p1", "PREPARE p1 AS SELECT 1"],
            ["n", "s1", ""],
        ] {
            assert_eq!(inquiry.hear(b'D', &row(fields), true), Heard::Ours);
        }
        assert_eq!(inquiry.hear(b'A', b"", true), Heard::Others, "a notification is the client's");
        assert_eq!(inquiry.hear(b'Z', b"I", true), Heard::End);
        let known = inquiry.conclude().unwrap();
        assert!(known.parsed.contains(&b"s1"[..]) && known.immovable.is_none());
        let statements = Statements::from([(b"s1"[..].into(), b"s1\0SELECT 2\0\0\0"[..].into())]);
        let all = makings(&known, &statements);
        let bytes: Vec<_> = all.iter().map(|m| String::from_utf8_lossy(&m.bytes[5..]).into_owned()).collect();
        assert_eq!(
            bytes,
            [
                "SELECT pg_catalog.set_config(E'client_encoding', E'LATIN1', false)\0",
                "SELECT pg_catalog.set_config(E'app.user', E'O''Hara \\\\ son', false)\0",
                "SELECT pg_catalog.set_config(E'role', E'reader', false)\0",
                "LISTEN \"a\"\"b\"\0",
                "PREPARE p1 AS SELECT 1\0",
                "s1\0SELECT 2\0\0\0S\0\0\0\u{4}",
            ]
        );
        assert!(makings(&Known::default(), &Statements::new()).is_empty());
    }

    #[test]
    fn what_cannot_be_made_again_is_named() {
        for (fields, what) in [
            (["t", "mine", ""], "the temporary object \"mine\""),
            (["k", "0, 7", ""], "the advisory lock \"0, 7\""),
            (["c", "c", ""], "the cursor \"c\""),
            (["s", "client_encoding", "sjis"], "the client encoding sjis"),
        ] {
            let mut inquiry = Inquiry::default();
            inquiry.hear(b'D', &row(fields), true);
            assert_eq!(inquiry.conclude().unwrap().immovable.as_deref(), Some(what));
        }
    }

    #[test]
    fn an_error_or_too_much_is_no_answer() {
        let error = |body: &[u8]| {
            let mut inquiry = Inquiry::default();
            (inquiry.hear(b'E', body, true), inquiry.conclude())
        };
        assert_eq!(error(b"SERROR\0VERROR\0C57014\0\0"), (Heard::Ours, None));
        assert_eq!(error(b"SFATAL\0VFATAL\0C57P01\0\0").0, Heard::Others);
        for (body, whole) in
            [(row(["s", "a", "b"]), false), (row(["?", "a", "b"]), true), (vec![0, 3, 0], true)]
        {
            let mut inquiry = Inquiry::default();
            assert_eq!(inquiry.hear(b'D', &body, whole), Heard::Ours);
            assert_eq!(inquiry.conclude(), None);
        }
    }
}
