#![allow(clippy::unwrap_used)]

use super::*;
use crate::guard;
use crate::wire::lane::{Front, Lane};
use crate::wire::reply::{begin, end};
use proptest::prelude::*;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let start = begin(&mut out, tag);
    out.extend_from_slice(body);
    end(&mut out, start);
    out
}

/// A step of a session: who speaks, and what.
#[derive(Clone, Debug)]
enum Step {
    Front(u8, Vec<u8>),
    Back(u8, Vec<u8>),
}

fn text(sql: &str) -> Vec<u8> {
    [sql.as_bytes(), b"\0"].concat()
}

fn tell(tracker: &mut Tracker, front: bool, tag: u8, body: &[u8]) {
    if front {
        let marks = match tag {
            b'Q' => guard::read(body),
            b'P' => guard::read(c_string(body).unwrap().1),
            _ => Marks::default(),
        };
        assert!(tracker.front(tag, body, marks));
        return;
    }
    match tag {
        b'Z' => tracker.ready(body[0]),
        b'C' => tracker.complete(body),
        b'1' => drop(tracker.parse_complete()),
        b'G' => tracker.copy_in_response(),
        _ => {}
    }
}

fn run(steps: &[Step]) -> Tracker {
    let mut tracker = Tracker::remembering();
    for step in steps {
        match step {
            Step::Front(tag, body) => tell(&mut tracker, true, *tag, body),
            Step::Back(tag, body) => tell(&mut tracker, false, *tag, body),
        }
    }
    tracker
}

fn q(sql: &str) -> Step {
    Step::Front(b'Q', text(sql))
}

fn f(tag: u8) -> Step {
    Step::Front(tag, Vec::new())
}

fn parse(name: &str, sql: &str) -> Step {
    Step::Front(b'P', [text(name), text(sql), vec![0, 0]].concat())
}

fn bind(statement: &str) -> Step {
    Step::Front(b'B', [text(""), text(statement), vec![0; 6]].concat())
}

fn z(status: u8) -> Step {
    Step::Back(b'Z', vec![status])
}

fn done(tag: &str) -> Step {
    Step::Back(b'C', text(tag))
}

fn g() -> Step {
    Step::Back(b'G', vec![0; 3])
}

#[test]
fn an_idle_session_is_kept() {
    assert_eq!(run(&[]).loss(b"", false), Loss::Keep);
    assert_eq!(run(&[q("select 1"), done("SELECT 1"), z(b'I')]).loss(b"", false), Loss::Keep);
    assert_eq!(run(&[q("insert"), done("INSERT 0 1")]).loss(b"", false), Loss::Unknown(None));
    let batch = [parse("", "select 1"), bind(""), f(b'E'), f(b'S'), f(b'H'), done("SELECT 1"), z(b'I')];
    assert_eq!(
        run(&[&batch[..], &[f(b'H')]].concat()).loss(b"", false),
        Loss::Keep,
        "a Flush begins nothing"
    );
}

#[test]
fn a_transaction_is_aborted_unless_its_commit_is_in_flight() {
    let begun = [q("begin"), done("BEGIN"), z(b'T')];
    let after = |steps: &[Step]| run(&[&begun, steps].concat()).loss(b"", false);
    assert_eq!(after(&[]), Loss::Aborted);
    assert_eq!(after(&[q("insert into t values (1)")]), Loss::Aborted);
    assert_eq!(after(&[q("commit")]), Loss::Unknown(None));
    assert_eq!(after(&[q("rollback")]), Loss::Aborted);
    assert_eq!(after(&[q("select 1"), q("select 2")]), Loss::Unknown(None));
    assert_eq!(after(&[q("commit"), done("COMMIT"), z(b'I')]), Loss::Keep);
    assert_eq!(after(&[parse("", "commit"), bind(""), f(b'E'), f(b'S')]), Loss::Unknown(None));
    assert_eq!(after(&[parse("", "select 1"), bind(""), f(b'E'), f(b'S')]), Loss::Aborted);
}

/// psycopg ends a pipeline with one: behind a COMMIT that was answered, 40001 would be a lie.
#[test]
fn a_sync_that_ends_nothing_is_answered() {
    let loss = |steps: &[Step]| run(steps).loss(b"", false);
    let committed = [q("begin"), z(b'T'), q("commit"), done("COMMIT"), z(b'I')];
    assert_eq!(loss(&[&committed[..], &[f(b'S'), f(b'H')]].concat()), Loss::Synced(1));
    assert_eq!(loss(&[f(b'S'), f(b'S')]), Loss::Synced(2));
    assert_eq!(loss(&[f(b'S'), f(b'S'), z(b'I')]), Loss::Synced(1));
    assert_eq!(loss(&[f(b'S'), z(b'I')]), Loss::Keep);
    assert_eq!(loss(&[f(b'S'), parse("", "select 1")]), Loss::Aborted);
    assert_eq!(loss(&[parse("", "select 1"), f(b'S'), f(b'S')]), Loss::Aborted);
    assert_eq!(loss(&[f(b'S'), q("insert")]), Loss::Unknown(None));
    assert_eq!(loss(&[&committed[..2], &[f(b'S')]].concat()), Loss::Aborted, "within a transaction");
}

#[test]
fn a_block_that_has_failed_already_is_no_news() {
    let failed = [q("begin"), z(b'T'), q("nonsense"), z(b'E')];
    assert_eq!(run(&failed).loss(b"", false), Loss::Keep);
    assert_eq!(run(&[&failed[..], &[q("select 1")]].concat()).loss(b"", false), Loss::Aborted);
}

#[test]
fn what_may_end_a_block_is_told_from_what_cannot() {
    let ended = |last: &[Step]| run(&[&[q("begin"), z(b'T')], last].concat()).may_have_ended();
    for text in ["commit", "ROLLBACK", "end", "abort", "insert into t values (1); commit"] {
        assert!(ended(&[q(text)]), "{text}");
        assert!(ended(&[parse("", text), bind("")]), "{text}");
        assert!(ended(&[parse("s", text), f(b'S'), z(b'T'), bind("s")]), "{text}");
        assert!(!ended(&[q(text), z(b'T')]), "{text}");
    }
    // A statement is told from others that were prepared.
    let one = Step::Back(b'1', Vec::new());
    let prepared = [parse("c", "commit"), parse("s", "select 1"), f(b'S'), one.clone(), one, z(b'T')];
    assert!(
        !ended(&[&prepared[..], &[bind("s")]].concat()) && ended(&[&prepared[..], &[bind("?")]].concat())
    );
    assert!(!ended(&[q("insert into t values (1)")]) && !ended(&[parse("", "select 1"), bind("")]));
}

#[test]
fn a_set_local_changes_nothing_that_is_asked_for() {
    let stale = |steps: &[Step]| run(steps).kept().is_stale();
    let begun = [q("begin"), done("BEGIN"), z(b'T')];
    let ended = [q("commit"), done("COMMIT"), z(b'I')];
    let of = |middle: &[Step]| stale(&[&begun[..], middle, &ended[..]].concat());
    assert!(!of(&[q("set local a.b = '1'"), done("SET"), z(b'T')]));
    assert!(of(&[q("set a.b = '1'"), done("SET"), z(b'T')]));
    assert!(!of(&[parse("", "set local a.b = '1'"), bind(""), f(b'E'), f(b'S'), done("SET"), z(b'T')]));
    // Another one behind it, or one that is not it.
    let both = [q("set local a.b = '1'"), q("set a.b = '1'"), done("SET"), z(b'T'), done("SET"), z(b'T')];
    assert!(of(&both));
    assert!(of(&[parse("", "set local a.b = '1'"), bind("s"), f(b'E'), f(b'S'), done("SET"), z(b'T')]));
    assert!(of(&[q("set local a.b = '1'"), z(b'T'), q("set a.b = '1'"), done("SET"), z(b'T')]), "it failed");
}

/// The client knows of the block, and the server may not.
#[test]
fn a_block_that_was_opened_for_the_client_is_lost_as_any_other() {
    let opened = |before: &[Step], alone| {
        let mut tracker = run(before);
        tracker.opens_here();
        assert!(tracker.is_idle(), "nothing was sent");
        tracker.open_block(alone);
        tracker
    };
    for before in [
        &[][..],
        &[f(b'S'), z(b'I')],
        &[q("begin"), done("BEGIN"), z(b'T'), q("commit"), done("COMMIT"), z(b'I')],
    ] {
        let mut alone = opened(before, true);
        assert!(alone.is_opening_alone() && alone.in_transaction());
        assert_eq!(alone.loss(b"", true), Loss::Aborted);
        for step in [done("BEGIN"), z(b'T')] {
            let Step::Back(tag, body) = step else { unreachable!() };
            assert!(alone.listens() && alone.hear(tag, &body), "it is not the client's");
        }
        assert!(!alone.is_opening() && alone.is_quiet() && alone.in_transaction());
        let mut ahead = opened(before, false);
        tell(&mut ahead, true, b'Q', b"insert\0");
        assert!(ahead.is_opening() && !ahead.is_opening_alone());
        assert_eq!(ahead.clone().loss(b"", true), Loss::Aborted, "in the block, and not committed");
        for (tag, body) in [(b'1', &b""[..]), (b'2', b""), (b'C', b"BEGIN\0"), (b'3', b"")] {
            assert!(ahead.listens() && ahead.hear(tag, body));
        }
        assert!(!ahead.listens() && !ahead.is_opening());
        tell(&mut ahead, false, b'C', b"INSERT 0 1\0");
        assert!(!ahead.may_tell_of_commit(b'C', b"INSERT 0 1\0"));
        tell(&mut ahead, false, b'Z', b"T");
        assert!(ahead.is_quiet() && ahead.in_transaction());
    }
}

/// As the gate of another node sees it: the batch that opens the block has no Sync.
#[test]
fn a_query_behind_a_batch_without_a_sync_ends_it() {
    let mut tracker = Tracker::default();
    tell(&mut tracker, true, b'P', b"\0BEGIN\0\0\0");
    tell(&mut tracker, true, b'B', &[0; 8]);
    tell(&mut tracker, true, b'E', &[0; 5]);
    tell(&mut tracker, true, b'Q', b"insert into t values (1)\0");
    tell(&mut tracker, false, b'1', b"");
    tell(&mut tracker, false, b'2', b"");
    tell(&mut tracker, false, b'C', b"BEGIN\0");
    assert!(!tracker.may_tell_of_commit(b'C', b"INSERT 0 1\0"), "the block is open");
    tell(&mut tracker, false, b'C', b"INSERT 0 1\0");
    tell(&mut tracker, false, b'Z', b"T");
    assert!(tracker.is_quiet() && tracker.in_transaction());
    assert!(tracker.may_tell_of_commit(b'C', b"COMMIT\0"));
}

/// asyncpg takes a session for being in a block once it has sent BEGIN, whatever it is told.
#[test]
fn a_block_that_is_being_opened_is_lost_with_its_next_request() {
    let loss = |steps: &[Step]| run(steps).loss(b"", false);
    assert_eq!(loss(&[q("BEGIN;")]), Loss::Opened("BEGIN"));
    assert_eq!(loss(&[q(" start transaction read only")]), Loss::Opened("START TRANSACTION"));
    assert_eq!(loss(&[q("begin"), done("BEGIN")]), Loss::Aborted, "a part of the answer was given");
    assert_eq!(loss(&[q("begin"), q("insert")]), Loss::Unknown(None));
    assert_eq!(loss(&[q("begin"), parse("", "insert")]), Loss::Aborted);
    assert_eq!(loss(&[q("begin"), z(b'T'), q("begin")]), Loss::Aborted);
    assert_eq!(loss(&[q("begin; insert")]), Loss::Unknown(None));
}

/// Go's pq parses it, waits for the answer, and binds it then.
#[test]
fn an_unnamed_statement_that_may_still_be_bound_is_remembered() {
    let kept = |steps: &[Step]| run(steps).kept().statements().contains_key(&b""[..]);
    let parsed = [parse("", "select 1"), f(b'S'), Step::Back(b'1', Vec::new()), z(b'I')];
    assert!(kept(&parsed));
    assert!(!kept(&[parse("", "select 1"), bind(""), f(b'E'), f(b'S'), z(b'I')]));
    assert!(kept(&[&parsed[..], &[bind(""), f(b'E'), f(b'S'), z(b'I')]].concat()), "it can be bound again");
    assert!(!kept(&[&parsed[..], &[q("select 2"), z(b'I')]].concat()), "a Query ends it");
    assert!(!kept(&[&parsed[..], &[parse("", "select 2"), bind("")]].concat()), "another takes its place");
}

/// tokio-postgres closes a statement that it no longer needs and does not wait for the answer, so the COMMIT behind it is
/// sent while another answer is outstanding.
#[test]
fn a_commit_behind_requests_that_end_nothing_is_asked_for() {
    let id = message(b'V', &[&[0, 0, 0, 8][..], &7u64.to_be_bytes()].concat());
    let committing = |before: &[Step]| {
        let mut tracker = run(&[&[q("begin"), done("BEGIN"), z(b'T')][..], before].concat());
        assert_eq!(tracker.asks_before(b'Q', b"commit\0"), Some(Question::Call));
        tracker.ask(Question::Call);
        tell(&mut tracker, true, b'Q', b"commit\0");
        tracker
    };
    let close = [Step::Front(b'C', b"Ss1\0".to_vec()), f(b'S')];
    assert_eq!(committing(&close).loss(b"", true), Loss::Aborted, "the question has no answer");
    assert_eq!(committing(&close).loss(b"", false), Loss::Unknown(None), "it may have been on its way");
    let rest = [&message(b'3', b"")[..], &message(b'Z', b"T"), &id, &message(b'Z', b"T")].concat();
    assert_eq!(
        committing(&close).loss(&rest, true),
        Loss::Unknown(None),
        "it may be in what was not looked at"
    );

    let mut tracker = committing(&close);
    tell(&mut tracker, false, b'Z', b"T");
    assert!(tracker.hear(b'V', &id[5..]) && tracker.hear(b'Z', b"T"));
    let Loss::Committing(committed) = tracker.loss(b"", true) else { panic!("its id was learnt") };
    assert_eq!((committed.id, &committed.answer[..1]), (7, &b"C"[..]));

    // Of a request that may have ended the transaction nobody knows.
    let mut tracker = committing(&[q("commit and chain")]);
    assert_eq!(tracker.loss(b"", true), Loss::Unknown(None));
    // A question that failed for one COMMIT says nothing of the next, which was sent behind it.
    let mut tracker = committing(&[]);
    let error = b"SERROR\0VERROR\0C57014\0Mcanceled\0\0";
    assert!(!tracker.hear(b'E', error) && tracker.hear(b'Z', b"E") && tracker.listens());
    tell(&mut tracker, true, b'Q', b"begin\0");
    tracker.ask(Question::Call);
    tell(&mut tracker, true, b'Q', b"commit\0");
    tell(&mut tracker, false, b'Z', b"I");
    assert!(!tracker.listens(), "the answer to BEGIN is the client's");
}

/// Found by a thousand kills: the answer had come, and was not judged because the gate was fenced; its COMMIT was taken for
/// one that had never been carried out.
#[test]
fn a_question_tells_of_the_commit_behind_it() {
    let committing = || {
        let mut tracker = run(&[q("begin"), done("BEGIN"), z(b'T')]);
        assert_eq!(tracker.asks_before(b'Q', b"commit\0"), Some(Question::Call));
        tracker.ask(Question::Call);
        tell(&mut tracker, true, b'Q', b"commit\0");
        tracker
    };
    let id = message(b'V', &[&[0, 0, 0, 8][..], &7u64.to_be_bytes()].concat());
    let rest = [&id[..], &message(b'Z', b"T"), &message(b'C', b"COMMIT\0"), &message(b'Z', b"I")].concat();
    let mut waiting = committing();
    assert!(!waiting.awaits_end(), "the answer to the question comes first, and at once");
    assert!(waiting.hear(b'V', &id[5..]) && waiting.hear(b'Z', b"T"));
    assert!(waiting.awaits_end());
    tell(&mut waiting, false, b'Z', b"I");
    assert!(!waiting.awaits_end());
    assert_eq!(committing().loss(b"", true), Loss::Aborted, "not asked, so not carried out");
    assert_eq!(committing().loss(b"", false), Loss::Unknown(None), "who knows what it said");
    for (said, said_all) in [(&rest[..], true), (&rest, false), (&rest[..id.len() + 6], false)] {
        let Loss::Committing(committing) = committing().loss(said, said_all) else { panic!("{said:?}") };
        assert_eq!((committing.id, &committing.answer[..1]), (7, &b"C"[..]));
    }
    let none = [message(b'V', &[0xff; 4]), message(b'Z', b"T")].concat();
    assert_eq!(committing().loss(&none, false), Loss::Aborted, "nothing was written");

    // Within a batch, what came before and might not leave is a part of the answer.
    let mut tracker = run(&[parse("", "insert into t values (1)"), bind(""), f(b'E')]);
    assert_eq!(tracker.asks_before(b'S', b""), Some(Question::Statement));
    tracker.ask(Question::Statement);
    tell(&mut tracker, true, b'S', b"");
    let row = [&[0, 1, 0, 0, 0, 8][..], &9u64.to_be_bytes()].concat();
    let clients = [message(b'1', b""), message(b'2', b""), message(b'C', b"INSERT 0 1\0")].concat();
    let ours = [(b'1', &b""[..]), (b'2', b""), (b'D', &row), (b'C', b"SELECT 1\0"), (b'3', b""), (b'3', b"")];
    let ours: Vec<u8> = ours.iter().flat_map(|(tag, body)| message(*tag, body)).collect();
    assert_eq!(tracker.clone().loss(&clients, true), Loss::Aborted);
    assert_eq!(tracker.clone().loss(&clients, false), Loss::Unknown(None));
    let Loss::Committing(committing) = tracker.loss(&[&clients[..], &ours].concat(), false) else { panic!() };
    assert_eq!(committing.answer, [&clients[..], &message(b'Z', b"I")].concat());
}

#[test]
fn a_commit_prepared_earlier_is_remembered() {
    let steps = [parse("c", "commit"), f(b'S'), z(b'I'), q("begin"), z(b'T'), bind("c"), f(b'E'), f(b'S')];
    assert_eq!(run(&steps).loss(b"", false), Loss::Unknown(None));
    let later = [q("begin"), z(b'T'), parse("", "commit"), f(b'S'), z(b'T'), bind(""), f(b'E'), f(b'S')];
    assert_eq!(run(&later).loss(b"", false), Loss::Unknown(None));
}

#[test]
fn a_batch_that_executed_nothing_is_certain() {
    assert_eq!(run(&[parse("", "insert"), f(b'D'), f(b'S')]).loss(b"", false), Loss::Aborted);
    assert_eq!(run(&[parse("s", "insert"), f(b'D'), f(b'S')]).loss(b"", false), Loss::Aborted);
}

#[test]
fn a_pipeline_has_an_answer_for_each_sync() {
    let steps = [parse("", "x"), f(b'S'), parse("", "x"), f(b'S'), z(b'I')];
    let mut tracker = run(&steps);
    assert!(!tracker.is_idle());
    tracker.ready(b'I');
    assert!(tracker.is_idle());
}

#[test]
fn copy_in_by_either_protocol_ends_idle() {
    let simple = [q("copy"), g(), f(b'd'), f(b'c'), done("COPY 1"), z(b'I')];
    assert!(run(&simple).is_idle());
    assert!(!run(&simple[..4]).is_idle());
    // libpq: the Sync comes behind the data.
    let extended = [bind(""), f(b'E'), f(b'H'), g(), f(b'd'), f(b'c'), f(b'S'), done("COPY 1"), z(b'I')];
    assert!(run(&extended).is_idle());
    // tokio-postgres: a Sync before the data, ignored by the server, and one behind.
    let early = [bind(""), f(b'E'), f(b'S'), g(), f(b'd'), f(b'c'), f(b'S'), done("COPY 1"), z(b'I')];
    assert!(run(&early).is_idle());
    assert!(!run(&early[..7]).is_idle());
    // All at once, before the server has said anything.
    let blind = [bind(""), f(b'E'), f(b'S'), f(b'd'), f(b'c'), f(b'S'), g(), done("COPY 1"), z(b'I')];
    assert!(run(&blind).is_idle());
    assert!(!run(&blind[..8]).is_idle());
    let blind = [q("copy"), f(b'd'), f(b'c'), g(), done("COPY 1"), z(b'I')];
    assert!(run(&blind).is_idle());
    // The copy failed before it began, and its data is ignored.
    assert!(run(&[q("copy"), f(b'd'), f(b'c'), z(b'I')]).is_idle());
    assert!(run(&[q("copy"), g(), z(b'I'), f(b'd'), f(b'c')]).is_idle());
}

#[test]
fn unknown_messages_are_told() {
    assert!(!Tracker::default().front(b'p', b"", Marks::default()));
    assert!(!Tracker::default().front(0, b"", Marks::default()));
}

#[test]
fn what_was_kept_decides_only_as_far_as_it_is_lost() {
    let one = || Step::Back(b'1', Vec::new());
    let mut prepared = run(&[parse("s", "select 1"), f(b'S'), one(), z(b'I')]);
    assert_eq!(prepared.loss(b"", false), Loss::Keep);
    assert_eq!(prepared.kept().statements().len(), 1);
    let begun = [q("begin"), done("BEGIN"), z(b'T'), q("set a.b = 1"), done("SET"), z(b'T')];
    assert_eq!(run(&begun).loss(b"", false), Loss::Aborted, "the setting goes with its transaction");
    let ended = [&begun[..], &[q("commit"), done("COMMIT"), z(b'I')]].concat();
    let mut tracker = run(&ended);
    assert!(matches!(tracker.loss(b"", false), Loss::State(_)), "nobody was asked yet");
    assert_eq!(tracker.kept().names(), [b"a.b"[..].into()]);
    tracker.learn(Some(Known::default()));
    assert_eq!(tracker.loss(b"", false), Loss::Keep);
    let locked = [q("begin"), z(b'T'), q("select pg_advisory_lock(1)"), done("SELECT 1"), z(b'T')];
    assert!(
        matches!(run(&locked).loss(b"", false), Loss::State(_)),
        "a lock of the session is not of its transaction"
    );
    let mut lost =
        run(&[parse("c", "commit"), f(b'S'), one(), z(b'I'), q("begin"), z(b'T'), parse("d", "x")]);
    lost.reset();
    assert!(lost.is_idle());
    assert_eq!(lost.kept().statements().len(), 1, "what was prepared before stays");
    for step in [q("begin"), z(b'T'), bind("c"), f(b'E'), f(b'S')] {
        match step {
            Step::Front(tag, body) => tell(&mut lost, true, tag, &body),
            Step::Back(tag, body) => tell(&mut lost, false, tag, &body),
        }
    }
    assert_eq!(lost.loss(b"", false), Loss::Unknown(None), "and is known to commit");
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(q("select 1")),
        Just(q("commit")),
        Just(q("create temp table x()")),
        Just(f(b'S')),
        Just(f(b'E')),
        Just(parse("a", "commit")),
        Just(parse("", "select set_config('a','b',false)")),
        Just(bind("a")),
        Just(f(b'd')),
        Just(f(b'c')),
        Just(g()),
        Just(Step::Back(b'1', Vec::new())),
        Just(z(b'I')),
        Just(z(b'T')),
        Just(done("SET")),
        Just(done("SELECT 3")),
        (0usize..3000).prop_map(|n| Step::Back(b'D', vec![7; n])),
        (0usize..70_000).prop_map(|n| Step::Front(b'd', vec![7; n])),
    ]
}

proptest! {
    /// Bytes cut at random places give the same result as whole messages.
    #[test]
    fn cuts_do_not_matter(steps in prop::collection::vec(step(), 0..30), cuts in prop::collection::vec(1usize..5000, 1..40)) {
        let expected = run(&steps);
        let mut tracker = Tracker::remembering();
        let (mut up, mut down) = (Lane::default(), Lane::default());
        let mut cuts = cuts.iter().cycle();
        for step in &steps {
            let (front, tag, body) = match step {
                Step::Front(tag, body) => (true, *tag, body),
                Step::Back(tag, body) => (false, *tag, body),
            };
            let lane = if front { &mut up } else { &mut down };
            let bytes = message(tag, body);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let space = lane.space();
                let n = (*cuts.next().unwrap()).min(rest.len()).min(space.len());
                space[..n].copy_from_slice(&rest[..n]);
                lane.fill(n);
                rest = &rest[n..];
                loop {
                    match lane.front(|t| t == b'Q' || t == b'P').unwrap() {
                        Front::Nothing => break,
                        Front::Whole(h) => {
                            tell(&mut tracker, front, h.tag, &lane.unjudged()[5..h.total]);
                            lane.pass(h.total);
                        }
                        Front::Large(h) => {
                            tell(&mut tracker, front, h.tag, &lane.unjudged()[5..]);
                            lane.begin_large(h);
                        }
                        Front::Part(n) => lane.pass(n),
                    }
                }
                let unsent = lane.unsent().len();
                lane.advance(unsent);
            }
        }
        prop_assert!(up.at_boundary() && down.at_boundary());
        prop_assert_eq!(tracker, expected);
    }
}
