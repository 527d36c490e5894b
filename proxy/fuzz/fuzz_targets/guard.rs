//! A text that is read in pieces is taken for at least what it is taken for as a whole: a large statement hides nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_proxy_fuzz::Dice;
use quorate_proxy_fuzz::guard::{self, Marks, StreamedText};

/// Words that mean something to the guard, and what stands around them.
const WORDS: [&str; 34] = [
    "synchronous_commit",
    "set_config",
    "commit",
    "rollback",
    "abort",
    "prepare",
    "end",
    "temp",
    "temporary",
    "pg_advisory_lock",
    "pg_advisory_unlock",
    "with hold",
    "client_min_messages",
    "u&\"a\\005fb\"",
    "transaction",
    "set",
    "set local",
    "begin",
    "select",
    "create",
    "table",
    "error",
    "warning",
    "'",
    "\"",
    ";",
    "=",
    "(",
    ")",
    ",",
    "--",
    "/*",
    "*/",
    "$$",
];

const ALL: [Marks; 8] = [
    Marks::SYNCHRONOUS_COMMIT,
    Marks::SET_CONFIG,
    Marks::ADVISORY_LOCK,
    Marks::HOLD,
    Marks::ADVISORY_UNLOCK,
    Marks::UNGUARDED,
    Marks::MAKES_TEMP,
    Marks::MAY_COMMIT,
];

fuzz_target!(|input: &[u8]| {
    let half = input.len() / 2;
    let mut text = Vec::new();
    for byte in &input[..half] {
        let word = WORDS[usize::from(*byte) % WORDS.len()];
        let upper = byte & 0x80 != 0;
        text.extend(word.bytes().map(|b| if upper { b.to_ascii_uppercase() } else { b }));
        text.push(if byte & 0x40 != 0 { b'\n' } else { b' ' });
    }
    let whole = guard::read(&text);
    // Neither may it panic, nor find more than what was marked.
    if guard::refuses(&text) {
        assert!(whole.has(Marks::SYNCHRONOUS_COMMIT));
    }
    let mut dice = Dice(&input[half..]);
    let (mut streamed, mut rest, mut marks) = (StreamedText::default(), &text[..], Vec::new());
    while !rest.is_empty() {
        let (part, more) = rest.split_at(dice.piece(rest.len()));
        marks.push(streamed.read(part));
        rest = more;
    }
    for (i, mark) in ALL.into_iter().enumerate() {
        let found = marks.iter().any(|part| part.has(mark));
        assert!(found || !whole.has(mark), "mark {i} of {:?}", String::from_utf8_lossy(&text));
    }
});
