//! A stream of messages that comes in pieces of any size: the same messages are found as in the whole of it, their bytes
//! leave as they came, and no more is held than the longest message that has to be whole.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_proxy_fuzz::Dice;
use quorate_proxy_fuzz::wire::header::{BadLength, Header};
use quorate_proxy_fuzz::wire::lane::{Front, LANE_BYTES, Lane, MAX_WHOLE_BYTES};

/// Those whose texts are read.
fn whole(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B')
}

/// Messages by the book: tag, big-endian length that counts itself, at most 1 GiB.
fn by_the_book(mut stream: &[u8]) -> (Vec<(u8, usize)>, bool) {
    let mut found = Vec::new();
    while stream.len() >= 5 {
        let length = u32::from_be_bytes([stream[1], stream[2], stream[3], stream[4]]) as usize;
        if !(4..1 << 30).contains(&length) {
            return (found, true);
        }
        found.push((stream[0], length + 1));
        stream = stream.get(length + 1..).unwrap_or_default();
    }
    (found, false)
}

/// The input says which messages there are in the stream: an arbitrary tail is not often one.
fn stream(dice: &mut Dice<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..dice.byte() % 12 {
        let tag = dice.byte();
        let body = match dice.byte() {
            size @ 0..=199 => usize::from(size) % 40,
            size @ 200..=249 => (usize::from(size) - 200) * 1500,
            _ => MAX_WHOLE_BYTES - usize::from(dice.byte()) + 64,
        };
        stream.push(tag);
        stream.extend_from_slice(&(body as u32 + 4).to_be_bytes());
        stream.resize(stream.len() + body, tag ^ 0x55);
    }
    stream
}

fuzz_target!(|input: &[u8]| {
    let mut dice = Dice(input);
    let mut stream = stream(&mut dice);
    // What follows is of the fuzzer's own making.
    let cuts = dice.0.len() / 2;
    stream.extend_from_slice(&dice.0[..cuts]);
    let mut dice = Dice(&dice.0[cuts..]);
    let (expected, ends_badly) = by_the_book(&stream);

    let (mut lane, mut sent, mut seen) = (Lane::default(), Vec::new(), Vec::new());
    let (mut fed, mut shown) = (0, 0);
    // What came may not leave at once: not before its lease is known.
    let hides = dice.byte() & 1 == 1;
    if hides {
        lane.show_until(0);
    }
    let bad = loop {
        match lane.front(whole) {
            Ok(Front::Whole(Header { tag, total })) => {
                let message = &lane.unjudged()[..total];
                assert_eq!(message[0], tag);
                seen.push((tag, total));
                lane.pass(total);
            }
            Ok(Front::Large(header)) => {
                assert!(header.total > LANE_BYTES);
                assert!(!whole(header.tag) || header.total > MAX_WHOLE_BYTES, "it was to be seen whole");
                seen.push((header.tag, header.total));
                assert!(!hides || lane.judged() + 5 <= shown, "a hidden header was judged");
                lane.begin_large(header);
            }
            Ok(Front::Part(bytes)) => lane.pass(bytes),
            Err(BadLength) => break true,
            Ok(Front::Nothing) if hides && shown < lane.received() => {
                shown += dice.piece((lane.received() - shown) as usize) as u64;
                lane.show_until(shown);
            }
            Ok(Front::Nothing) if fed == stream.len() => break false,
            Ok(Front::Nothing) => {
                // As the relay: what is judged goes out in pieces as well.
                if lane.has_unsent() {
                    let most = lane.unsent().len();
                    let bytes = dice.piece(most);
                    sent.extend_from_slice(&lane.unsent()[..bytes]);
                    lane.advance(bytes);
                }
                if lane.has_space() {
                    let most = lane.space().len().min(stream.len() - fed);
                    let bytes = dice.piece(most);
                    lane.space()[..bytes].copy_from_slice(&stream[fed..fed + bytes]);
                    lane.fill(bytes);
                    fed += bytes;
                }
                let held = lane.unsent().len() + lane.unjudged().len();
                assert!(held <= 2 * (MAX_WHOLE_BYTES + LANE_BYTES), "{held} bytes are held");
            }
        }
        assert_eq!(lane.received(), fed as u64);
        assert!(!hides || lane.judged() <= shown, "what is hidden was judged");
    };
    sent.extend_from_slice(lane.unsent());
    assert_eq!(bad, ends_badly, "a length that none can have is found, and no other");
    assert_eq!(seen, expected[..seen.len()]);
    // The last may be one of which not enough has come to be judged.
    let unseen: usize = expected[seen.len()..].len();
    assert!(unseen <= usize::from(!bad), "{unseen} messages were not found");
    assert_eq!(sent.len() as u64, lane.judged());
    assert_eq!(sent, stream[..sent.len()], "bytes leave as they came");
});
