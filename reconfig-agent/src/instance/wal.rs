//! Just enough of PostgreSQL's log format to tell whether the record that follows the last replayed one is whole.
//! Pure; the bytes come through a function.
//!
//! The format is that of `src/include/access/xlog_internal.h` and `xlogrecord.h`, unchanged from 9.5 to 18:
//!
//! ```text
//! page (8192)   | header 24, or 40 on the first page of a segment | data of records ...
//! record        | xl_tot_len u32 | xl_xid u32 | xl_prev u64 | xl_info u8 | xl_rmid u8 | pad 2 | xl_crc u32 | ...
//! ```
//! Records begin at multiples of 8, so the length is never split between pages; a record goes on after the header
//! of the next page.

use quorate_model::{Lsn, Timeline};

pub const PAGE_BYTES: u64 = 8192;
/// What initdb is told. A promotion copies one segment and flushes it, and every standby then makes a new one: with the
/// usual 16 MiB these two writes are most of what a promotion takes. A directory tells its own size (see
/// [`Segments::of`]): it may be older than this number.
pub const SEGMENT_MIB: u64 = 4;
const SHORT_HEADER_BYTES: u64 = 24;
const LONG_HEADER_BYTES: u64 = 40;
/// `SizeOfXLogRecord`: no record is shorter.
const RECORD_HEADER_BYTES: u32 = 24;
const ALIGNMENT_BYTES: u64 = 8;

/// What stands at a position that replay has not passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// A record of which every byte is there, as far as its length says: replay will pass it.
    Whole { end: Lsn },
    /// The log ends inside the record, or before it: replay cannot pass it.
    Partial,
    /// No record begins here. Replay stops for good.
    Invalid,
}

/// How a log is divided into files: a power of two of bytes, 1 MiB to 1 GiB, chosen by initdb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    bytes: u64,
}

impl Segments {
    /// By the length of any segment file: all of them are that long.
    pub fn of(file_bytes: u64) -> Option<Segments> {
        let is_size = file_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&file_bytes);
        is_size.then_some(Segments { bytes: file_bytes })
    }

    /// Judges the record at `at` in a log that holds valid bytes up to `end`. `read_u32` gives the four bytes at a
    /// position below `end`, or nothing when there is no such file.
    pub fn tail(self, at: Lsn, end: Lsn, read_u32: impl FnOnce(Lsn) -> Option<u32>) -> Tail {
        let start = self.skip_header(at);
        if end.0 < start.0.saturating_add(4) {
            return Tail::Partial;
        }
        let Some(length) = read_u32(start) else { return Tail::Partial };
        if length < RECORD_HEADER_BYTES {
            return Tail::Invalid;
        }
        let record_end = self.record_end(start, length);
        if record_end.0 <= end.0 { Tail::Whole { end: align(record_end) } } else { Tail::Partial }
    }

    /// Where a record begins when the one before ended at `lsn`.
    pub fn skip_header(self, lsn: Lsn) -> Lsn {
        if lsn.0.is_multiple_of(PAGE_BYTES) { Lsn(lsn.0 + self.header_bytes(lsn.0)) } else { lsn }
    }

    /// The position after the last byte of the record of `length` bytes at `start`, across page headers.
    pub fn record_end(self, start: Lsn, length: u32) -> Lsn {
        let mut at = start.0;
        let mut left = u64::from(length);
        loop {
            let page_end = at - at % PAGE_BYTES + PAGE_BYTES;
            if left <= page_end - at {
                return Lsn(at + left);
            }
            left -= page_end - at;
            at = page_end + self.header_bytes(page_end);
        }
    }

    fn header_bytes(self, page: u64) -> u64 {
        if page.is_multiple_of(self.bytes) { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
    }

    /// The number of the segment that holds `lsn`.
    pub fn number(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes
    }

    /// The name of the segment file that holds `lsn`: timeline, then the segment's number in two halves.
    pub fn name(self, timeline: Timeline, lsn: Lsn) -> String {
        let (segment, per_id) = (self.number(lsn), self.per_id());
        format!("{:08X}{:08X}{:08X}", timeline.0, segment / per_id, segment % per_id)
    }

    /// The number of the segment in a file of that name, on whatever timeline; nothing for any other file.
    pub fn number_of_file(self, name: &str) -> Option<u64> {
        timeline_of_file(name).filter(|_| name.len() == 24)?;
        let half = |digits: &str| u64::from_str_radix(digits, 16).ok();
        Some(half(&name[8..16])? * self.per_id() + half(&name[16..])?)
    }

    /// Segments in what the first half of a number counts.
    fn per_id(self) -> u64 {
        (1 << 32) / self.bytes
    }

    /// Where in its file `lsn` is.
    pub fn offset(self, lsn: Lsn) -> u64 {
        lsn.0 % self.bytes
    }
}

pub fn align(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.next_multiple_of(ALIGNMENT_BYTES))
}

/// The timeline of a segment's or a history file's name; nothing for any other file.
pub fn timeline_of_file(name: &str) -> Option<Timeline> {
    let stem = name.strip_suffix(".history").unwrap_or(name);
    let expected = if stem.len() == name.len() { 24 } else { 8 };
    if stem.len() != expected || !stem.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(&stem[..8], 16).ok().map(Timeline)
}

pub fn history_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// Reads a history file: one line for each timeline that was left, `<timeline> <tab> <where> <tab> <why>`,
/// oldest first.
pub fn parse_history(text: &str) -> Option<Vec<(Timeline, Lsn)>> {
    let mut history = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let timeline = words.next()?.parse().ok().map(Timeline)?;
        let left_at: Lsn = words.next()?.parse().ok()?;
        if history.last().is_some_and(|(before, _)| *before >= timeline) {
            return None;
        }
        history.push((timeline, left_at));
    }
    Some(history)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Segments = Segments { bytes: 16 << 20 };

    #[test]
    fn the_length_of_a_file_tells_the_size() {
        assert_eq!(Segments::of(16 << 20), Some(USUAL));
        assert_eq!(Segments::of(4 << 20).map(|s| s.offset(Lsn(0x40_0010))), Some(16));
        for none in [0, 8192, (16 << 20) - 1, 2 << 30] {
            assert_eq!(Segments::of(none), None);
        }
    }

    #[test]
    fn a_record_crosses_pages_and_segments() {
        assert_eq!(USUAL.record_end(Lsn(0x200_0028), 100), Lsn(0x200_008C));
        // Up to the page's end exactly, and one byte more.
        assert_eq!(USUAL.record_end(Lsn(8192 + 8092), 100), Lsn(16384));
        assert_eq!(USUAL.record_end(Lsn(8192 + 8092), 101), Lsn(16384 + 24 + 1));
        // Over the segment's end: a long header.
        assert_eq!(USUAL.record_end(Lsn(USUAL.bytes - 8), 32), Lsn(USUAL.bytes + 40 + 24));
        // Over several pages.
        assert_eq!(USUAL.record_end(Lsn(8192 + 24), 8168 * 3), Lsn(8192 * 4));
    }

    #[test]
    fn the_tail_is_whole_only_with_its_last_byte() {
        let at = Lsn(3 * 8192 - 16);
        let read = |wanted: Lsn, value: u32| {
            move |lsn: Lsn| {
                assert_eq!(lsn, wanted);
                Some(value)
            }
        };
        // 50 bytes: 16 on this page, 34 after the next header; the next record begins aligned.
        let end = 3 * 8192 + 24 + 34;
        assert_eq!(USUAL.tail(at, Lsn(end), read(at, 50)), Tail::Whole { end: Lsn(end + 6) });
        assert_eq!(USUAL.tail(at, Lsn(end - 1), read(at, 50)), Tail::Partial);
        assert_eq!(USUAL.tail(at, Lsn(at.0 + 3), |_| None), Tail::Partial);
        assert_eq!(USUAL.tail(at, Lsn(end), read(at, 0)), Tail::Invalid);
        // At a page's edge the record begins behind the header.
        let edge = Lsn(8192 * 2);
        assert_eq!(USUAL.tail(edge, Lsn(edge.0 + 24), |_| None), Tail::Partial);
        assert_eq!(
            USUAL.tail(edge, Lsn(edge.0 + 64), read(Lsn(edge.0 + 24), 40)),
            Tail::Whole { end: Lsn(edge.0 + 64) }
        );
    }

    #[test]
    fn file_names() {
        let lsn = Lsn(0x1_2345_6789);
        assert_eq!(USUAL.name(Timeline(3), lsn), "000000030000000100000023");
        let small = Segments { bytes: 4 << 20 };
        assert_eq!(small.name(Timeline(3), lsn), "00000003000000010000008D");
        for log in [USUAL, small] {
            assert_eq!(log.number_of_file(&log.name(Timeline(3), lsn)), Some(log.number(lsn)));
        }
        assert_eq!(small.number_of_file("0000000A.history"), None);
        assert_eq!(timeline_of_file("000000030000000100000023"), Some(Timeline(3)));
        assert_eq!(timeline_of_file("0000000A.history"), Some(Timeline(10)));
        for other in ["archive_status", "000000030000000100000023.partial", "xlogtemp.12", ""] {
            assert_eq!(timeline_of_file(other), None, "{other}");
        }
    }

    #[test]
    fn histories() {
        let text = "1\t0/3000060\tno recovery target specified\n\n2\t0/50000A8\tx\n";
        assert_eq!(
            parse_history(text),
            Some(vec![(Timeline(1), Lsn(0x300_0060)), (Timeline(2), Lsn(0x500_00A8))])
        );
        assert_eq!(parse_history("2\t0/1\tx\n1\t0/2\tx\n"), None);
        assert_eq!(parse_history("garbage"), None);
    }
}
