//! What the text of a statement may do to a session or to the safety of commits.
//!
//! A guess from text, made in one pass over it: it errs towards caution (a statement that only mentions a
//! temporary table counts as having made one), and it cannot see what a function does that is called by name. The guard
//! refuses what could turn `synchronous_commit` down; mentions that set nothing pass. What it cannot judge, but could
//! turn it down or hide the warning that a cancelled commit leaves, is marked [`Marks::UNGUARDED`]: the commits of that
//! session are acknowledged by what the quorum has, not by what Postgres says.

mod sql;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use std::ffi::CStr;
use std::sync::LazyLock;

/// What a text mentions. Bits of [`Marks`], by the index of the pattern.
const PATTERNS: [&str; 13] = [
    "synchronous_commit",
    "set_config",
    "commit",
    "rollback",
    "abort",
    "prepare",
    "end",
    "temp",
    "advisory_lock",
    "hold",
    "client_min_messages",
    "u&\"",
    "advisory_unlock",
];
/// Longest pattern but one byte: what must be joined where a text is cut.
const OVERLAP_BYTES: usize = 18;

/// Longer texts are not cut into tokens to find out whether the word `end` in them ends a transaction.
const MAX_EXAMINED_BYTES: usize = 16 * 1024;

static SCANNER: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .kind(Some(AhoCorasickKind::DFA))
        .match_kind(aho_corasick::MatchKind::LeftmostLongest)
        .build(PATTERNS)
        .ok()
});

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(u16);

impl Marks {
    pub const SYNCHRONOUS_COMMIT: Marks = Marks(1);
    pub const SET_CONFIG: Marks = Marks(1 << 1);
    const COMMIT: Marks = Marks(1 << 2);
    const ROLLBACK: Marks = Marks(1 << 3);
    const ABORT: Marks = Marks(1 << 4);
    const PREPARE: Marks = Marks(1 << 5);
    const END: Marks = Marks(1 << 6);
    const TEMP: Marks = Marks(1 << 7);
    pub const ADVISORY_LOCK: Marks = Marks(1 << 8);
    pub const HOLD: Marks = Marks(1 << 9);
    const CLIENT_MIN_MESSAGES: Marks = Marks(1 << 10);
    /// An identifier with escapes in it: any name.
    const UNICODE_NAME: Marks = Marks(1 << 11);
    pub const ADVISORY_UNLOCK: Marks = Marks(1 << 12);
    /// Not of a pattern: commits after it are not certain to wait for the quorum, or not certain to warn.
    pub const UNGUARDED: Marks = Marks(1 << 13);
    /// Not of a pattern: the text makes something temporary.
    pub const MAKES_TEMP: Marks = Marks(1 << 14);
    /// Not of a pattern: the text may end a transaction by committing it.
    pub const MAY_COMMIT: Marks = Marks(1 << 15);

    pub fn has(self, mark: Marks) -> bool {
        self.0 & mark.0 != 0
    }

    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// The text may end a transaction block, one way or the other.
    pub fn may_end_block(self) -> bool {
        [Marks::MAY_COMMIT, Marks::ROLLBACK, Marks::ABORT].iter().any(|mark| self.has(*mark))
    }

    fn add(&mut self, mark: Marks) {
        self.0 |= mark.0;
    }
}

/// Everything but the marks that are not of a pattern.
fn mentions(text: &[u8]) -> Marks {
    let Some(scanner) = SCANNER.as_ref() else { return Marks(u16::MAX) };
    let mut marks = Marks::default();
    for found in scanner.find_iter(text) {
        marks.0 |= 1 << found.pattern().as_u32();
    }
    marks
}

/// Reads the text of a Query or Parse message.
#[inline]
pub fn read(text: &[u8]) -> Marks {
    let mut marks = mentions(text);
    if marks.any() {
        conclude(text, &mut marks);
    }
    marks
}

#[cold]
fn conclude(text: &[u8], marks: &mut Marks) {
    if marks.has(Marks::TEMP) && sql::makes_temp(text) {
        marks.add(Marks::MAKES_TEMP);
    }
    if may_commit(text, *marks) {
        marks.add(Marks::MAY_COMMIT);
    }
    if marks.has(Marks::UNICODE_NAME)
        || marks.has(Marks::CLIENT_MIN_MESSAGES) && sql::may_hide_warnings(text)
        || marks.has(Marks::SET_CONFIG) && sql::composes_setting_name(text, !marks.has(Marks::PREPARE))
    {
        marks.add(Marks::UNGUARDED);
    }
}

/// Whether the text, sent inside a transaction block, may commit it, or end it and commit something after it.
fn may_commit(text: &[u8], marks: Marks) -> bool {
    marks.has(Marks::COMMIT)
        || (marks.has(Marks::ROLLBACK) || marks.has(Marks::ABORT)) && sql::has_several_statements(text)
        || marks.has(Marks::PREPARE) && sql::mentions_word(text, b"transaction")
        || marks.has(Marks::END)
            && (text.len() > MAX_EXAMINED_BYTES || sql::may_begin_statement(text, b"end"))
}

/// Whether a statement is refused because it could set `synchronous_commit`.
pub fn refuses(text: &[u8]) -> bool {
    read(text).has(Marks::SYNCHRONOUS_COMMIT) && sql::may_set_synchronous_commit(text)
}

/// As [`refuses`], for a text already read.
pub fn refuses_marked(text: &[u8], marks: Marks) -> bool {
    marks.has(Marks::SYNCHRONOUS_COMMIT) && sql::may_set_synchronous_commit(text)
}

/// Whether a startup parameter could set it: itself, or within `options`.
pub fn refuses_parameter(name: &str, value: &str) -> bool {
    let named = |text: &str| mentions(text.replace('-', "_").as_bytes()).has(Marks::SYNCHRONOUS_COMMIT);
    named(name) || (name.eq_ignore_ascii_case("options") && named(&value.replace('\\', "")))
}

/// Whether startup parameters hide warnings from the client, and with them that of a cancelled commit.
pub fn hides_warnings(parameters: &[(String, String)]) -> bool {
    let mentions_it =
        |text: &str| mentions(text.replace('-', "_").as_bytes()).has(Marks::CLIENT_MIN_MESSAGES);
    parameters.iter().any(|(name, value)| {
        mentions_it(name) && sql::hides_warnings(value.as_bytes())
            || name.eq_ignore_ascii_case("options") && mentions_it(&value.replace('\\', ""))
    })
}

/// Whether the values of a Bind after `set_config` name a setting that hides warnings.
pub fn mentions_client_min_messages(bytes: &[u8]) -> bool {
    mentions(bytes).has(Marks::CLIENT_MIN_MESSAGES)
}

/// Whether the bytes mention it at all: for the values of a Bind after `set_config`.
pub fn mentions_synchronous_commit(bytes: &[u8]) -> bool {
    mentions(bytes).has(Marks::SYNCHRONOUS_COMMIT)
}

/// Whether the text of a Query or Parse message is one SET LOCAL, which its transaction takes back.
pub fn sets_locally(text: &[u8]) -> bool {
    // The rest is looked at only where the first words ask for it: this is done for every statement.
    let rest = after_word(text.trim_ascii_start(), b"set").and_then(|rest| after_word(rest, b"local"));
    let Some(rest) = rest else { return false };
    let text = CStr::from_bytes_until_nul(rest).map_or(rest, CStr::to_bytes).trim_ascii_end();
    !text.strip_suffix(b";").unwrap_or(text).contains(&b';')
}

/// What stands behind that word, which must be followed by space.
pub(crate) fn after_word<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(word.len())?;
    let is_word = start.eq_ignore_ascii_case(word) && rest.first().is_some_and(u8::is_ascii_whitespace);
    is_word.then(|| rest.trim_ascii_start())
}

/// Settings with a dot in their names that the text of a Query or Parse message may make for its session: the server
/// lists them nowhere. None: it makes some whose names cannot be told.
#[inline]
pub fn own_settings(text: &[u8], marks: Marks) -> Option<Vec<Vec<u8>>> {
    let text = CStr::from_bytes_until_nul(text).map_or(text, CStr::to_bytes);
    let begins_with_set = text.trim_ascii_start().get(..3).is_some_and(|w| w.eq_ignore_ascii_case(b"set"));
    let inner = text.len().saturating_sub(1);
    if !begins_with_set && !marks.has(Marks::SET_CONFIG) && !text[..inner].contains(&b';') {
        return Some(Vec::new());
    }
    // All of it: what is not seen here would be lost without a word.
    sql::own_settings(text)
}

/// Reads a text too large to be held, in the parts in which it arrives.
#[derive(Debug, Default)]
pub struct StreamedText {
    tail: Vec<u8>,
}

impl StreamedText {
    pub fn read(&mut self, part: &[u8]) -> Marks {
        let mut marks = mentions(part);
        self.tail.extend_from_slice(&part[..part.len().min(OVERLAP_BYTES)]);
        marks.add(mentions(&self.tail));
        if part.len() >= OVERLAP_BYTES {
            self.tail.clear();
            self.tail.extend_from_slice(&part[part.len() - OVERLAP_BYTES..]);
        } else {
            let excess = self.tail.len().saturating_sub(OVERLAP_BYTES);
            self.tail.drain(..excess);
        }
        // What cannot be looked at whole is taken for what it might be.
        if marks.has(Marks::TEMP) {
            marks.add(Marks::MAKES_TEMP);
        }
        if marks.has(Marks::COMMIT)
            || marks.has(Marks::END)
            || marks.has(Marks::ROLLBACK)
            || marks.has(Marks::ABORT)
            || marks.has(Marks::PREPARE)
        {
            marks.add(Marks::MAY_COMMIT);
        }
        if marks.has(Marks::CLIENT_MIN_MESSAGES)
            || marks.has(Marks::UNICODE_NAME)
            || marks.has(Marks::SET_CONFIG)
        {
            marks.add(Marks::UNGUARDED);
        }
        marks
    }
}

/// What is sent to Postgres in place of a refused statement: it answers with a syntax error that names this word, in
/// the right place of its answers and with the transaction failed as it must be, and the error is then replaced by ours.
pub const REFUSED_TEXT: &str = "quorate_refused";

/// The message to send in place of a refused Query, FunctionCall, Parse or Bind with this body.
pub fn refused_message(tag: u8, body: &[u8]) -> Vec<u8> {
    let simple = matches!(tag, b'Q' | b'F');
    let mut out = Vec::with_capacity(64);
    let start = crate::wire::reply::begin(&mut out, if simple { b'Q' } else { b'P' });
    if tag == b'P' {
        let name = crate::wire::header::c_string(body).map_or(&b""[..], |(name, _)| name);
        crate::wire::reply::put_c_string(&mut out, name);
    } else if !simple {
        out.push(0);
    }
    crate::wire::reply::put_c_string(&mut out, REFUSED_TEXT.as_bytes());
    if !simple {
        out.extend_from_slice(&[0, 0]);
    }
    crate::wire::reply::end(&mut out, start);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_local_is_told_from_others() {
        for text in
            ["set local app.tenant = '7'", " SET  LOCAL TimeZone TO 'UTC' ; ", "set\nlocal role x\0rest"]
        {
            assert!(sets_locally(text.as_bytes()), "{text}");
        }
        for text in [
            "set app.tenant = '7'",
            "set localtime = 1",
            "set local a.b = '1'; set c.d = '2'",
            "settle local",
            "",
        ] {
            assert!(!sets_locally(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_could_set_it_is_refused() {
        for text in [
            "SET synchronous_commit = off",
            "set local SYNCHRONOUS_COMMIT to local",
            "/* hi */ SET SESSION \"synchronous_commit\" = 'off'",
            "-- note\nset synchronous_commit=off",
            "begin; set synchronous_commit = off; insert into t values (1); commit",
            "select set_config('synchronous_commit', 'off', false)",
            "select pg_catalog.\"set_config\"('synchronous_commit', 'off', false)",
            "select 1; select set_config('synchronous_commit', 'off', false)",
            "ALTER ROLE app SET synchronous_commit = off",
            "ALTER DATABASE app SET synchronous_commit TO off",
            "ALTER FUNCTION f() SET synchronous_commit = off",
            "CREATE FUNCTION f() RETURNS void LANGUAGE sql SET synchronous_commit = off AS 'select 1'",
            "create or replace function f() returns void language plpgsql as $$ begin set synchronous_commit=off; end $$",
            "do $x$ begin execute 'set synchronous_commit = off'; end $x$",
            "select run('set synchronous_commit = off')",
            "prepare p as select set_config('synchronous_commit', $1, false)",
            "execute p('synchronous_commit', 'off')",
            "with x as (select set_config('synchronous_commit','off',true)) select * from x",
            "explain analyze select set_config('synchronous_commit','off',true)",
            "create view v as select set_config('synchronous_commit','off',false)",
        ] {
            assert!(refuses(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_only_mentions_it_passes() {
        for text in [
            "SHOW synchronous_commit",
            "select 1",
            "select current_setting('synchronous_commit')",
            "select name, setting from pg_settings where name = 'synchronous_commit'",
            "insert into notes values ('about synchronous_commit')",
            "update t set a = 'synchronous_commit'",
            "reset synchronous_commit",
            "set work_mem = '1MB' -- not synchronous_commit",
            "create table t (synchronous_commit text)",
            "select 1; show synchronous_commit;",
        ] {
            assert!(!refuses(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn parameters_are_guarded() {
        assert!(refuses_parameter("synchronous_commit", "off"));
        assert!(refuses_parameter("options", "-c synchronous_commit=off"));
        assert!(refuses_parameter("options", "--synchronous-commit=off"));
        assert!(refuses_parameter("options", "-c synchronous\\_commit=off"));
        assert!(!refuses_parameter("application_name", "synchronous_commit"));
        assert!(!refuses_parameter("options", "-c work_mem=1MB"));
    }

    #[test]
    fn commits_are_suspected() {
        for text in [
            "commit",
            "COMMIT;",
            "end",
            " END work",
            "select 1; end",
            "/* x */ end",
            "rollback; insert into t values (1)",
            "prepare  transaction 'x'",
            "commit and chain",
        ] {
            assert!(read(text.as_bytes()).has(Marks::MAY_COMMIT), "{text}");
        }
        for text in [
            "select 1",
            "rollback",
            "ROLLBACK;",
            "rollback to s",
            "abort",
            "select pending from calendar",
            "select case when a then b end",
            "prepare p as select 1",
        ] {
            assert!(!read(text.as_bytes()).has(Marks::MAY_COMMIT), "{text}");
        }
    }

    #[test]
    fn temporary_things_are_found() {
        for text in [
            "create temp table t (a int)",
            "CREATE TEMPORARY VIEW v as select 1",
            "create local temp table t()",
            "create or replace temp view v as select 1",
            "select 1 into temp t",
            "create table pg_temp.x()",
        ] {
            assert!(read(text.as_bytes()).has(Marks::MAKES_TEMP), "{text}");
        }
        for text in
            ["select temperature from t", "insert into temperatures values (1)", "create table templates ()"]
        {
            assert!(!read(text.as_bytes()).has(Marks::MAKES_TEMP), "{text}");
        }
    }

    #[test]
    fn locks_and_cursors_are_marked() {
        assert!(read(b"select pg_try_advisory_lock(1)").has(Marks::ADVISORY_LOCK));
        assert!(!read(b"select pg_advisory_xact_lock(1)").has(Marks::ADVISORY_LOCK));
        assert!(read(b"declare c cursor with hold for select 1").has(Marks::HOLD));
    }

    #[test]
    fn what_the_guard_cannot_judge_is_marked() {
        for text in [
            "set client_min_messages = error",
            "SET LOCAL client_min_messages TO 'fatal'",
            "select set_config('client_min_messages', 'error', false)",
            "do $$ begin set client_min_messages = panic; end $$",
            "select set_config('synchronous' || '_commit', 'off', false)",
            "select set_config(name, 'off', false) from names",
            "select set_config(E'synchronous\\137commit', 'off', false)",
            "select set_config((select 'a'), 'b', true)",
            "prepare p as select set_config($1, $2, false)",
            "set U&\"synchronous\\005fcommit\" = off",
        ] {
            assert!(read(text.as_bytes()).has(Marks::UNGUARDED), "{text}");
        }
        for text in [
            "set client_min_messages = warning",
            "SET client_min_messages TO 'Notice'; select 1",
            "set session client_min_messages to debug5",
            "show client_min_messages",
            "reset client_min_messages",
            "select set_config('app.user', $1, true)",
            "select set_config ( 'search_path' , '', false)",
            "select pg_catalog.set_config($1, $2, true)",
            "select 1",
        ] {
            assert!(!read(text.as_bytes()).has(Marks::UNGUARDED), "{text}");
        }
        let startup = |name: &str, value: &str| hides_warnings(&[(name.to_owned(), value.to_owned())]);
        assert!(startup("client_min_messages", "error"));
        assert!(startup("options", "-c client_min_messages=error"));
        assert!(startup("options", "--client-min-messages=error"));
        assert!(!startup("client_min_messages", "warning"));
        assert!(!startup("application_name", "client_min_messages"));
    }

    #[test]
    fn settings_of_the_applications_own_are_named() {
        let names = |text: &str| {
            let text = [text.as_bytes(), b"\0"].concat();
            let found = own_settings(&text, read(&text));
            found.map(|all| {
                all.into_iter().map(|n| String::from_utf8(n).unwrap_or_default()).collect::<Vec<_>>()
            })
        };
        for (text, expected) in [
            ("select 1", &[][..]),
            ("set app.user = 'x'", &["app.user"]),
            ("SET SESSION \"App\".Tenant TO 7;", &["App.tenant"]),
            ("set local app.user = 'x'", &[]),
            ("begin; set a.b = 1; set c.d.e to 2; set work_mem = '1MB'", &["a.b", "c.d.e"]),
            ("update t set a = 1; update u set b.c = 1", &[]),
            ("select set_config('app.user', $1, false)", &["app.user"]),
            ("select set_config('work_mem', '1MB', false)", &[]),
            ("select set_config($1, $2, true)", &[]),
            ("select set_config(name, 'it''s, (so)', true) from t", &[]),
        ] {
            assert_eq!(
                names(text).as_deref(),
                Some(&expected.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
        let long = format!("insert into t values ('{}'); set a.b = 1", "x".repeat(2 * MAX_EXAMINED_BYTES));
        assert_eq!(names(&long), Some(vec!["a.b".to_owned()]));
        for text in [
            "select set_config($1, $2, false)",
            "select set_config(a, b, c)",
            "prepare p as select set_config($1, $2, $3)",
        ] {
            assert_eq!(names(text), None, "{text}");
        }
    }

    #[test]
    fn a_streamed_text_is_read_across_its_cuts() {
        let text = b"select 1; set synchronous_commit = off";
        for cut in 0..text.len() {
            let mut streamed = StreamedText::default();
            let first = streamed.read(&text[..cut]);
            let second = streamed.read(&text[cut..]);
            assert!(first.has(Marks::SYNCHRONOUS_COMMIT) || second.has(Marks::SYNCHRONOUS_COMMIT), "{cut}");
        }
        // A text of which only the parts are seen may be a PREPARE TRANSACTION.
        assert!(StreamedText::default().read(b"prepare\ntransaction 'x'").has(Marks::MAY_COMMIT));
        let mut streamed = StreamedText::default();
        assert!(text.iter().any(|b| streamed.read(&[*b]).has(Marks::SYNCHRONOUS_COMMIT)));
    }

    #[test]
    fn a_refused_message_fails_in_its_place() {
        assert_eq!(refused_message(b'Q', b"set x\0"), b"Q\0\0\0\x14quorate_refused\0");
        assert_eq!(refused_message(b'P', b"s1\0set x\0\0\0"), b"P\0\0\0\x19s1\0quorate_refused\0\0\0");
    }
}
