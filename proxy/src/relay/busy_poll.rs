//! Staying awake for a moment before going to sleep.
//!
//! A relay that sleeps until the next message comes costs its session two wake-ups a round trip: on a virtual machine 20 to
//! 40 us each, more than everything else that it does (docs/PROXY.md). So where a session works alone, its relay goes on
//! looking at the socket that it waits for, as `net.core.busy_poll` does in the kernel (Linux, Documentation/networking,
//! napi.rst) and KVM's halt polling for a virtual processor. After a few messages the runtime of its thread has its turn.
//!
//! What it costs is time of a processor that nobody else wanted: between two looks whoever else is to run there has its turn.
//! It is done only while no other session has begun a request on this node for [`ALONE_FOR`], while no more is runnable on
//! the machine than it has processors, and as long as it pays off: where [`MISSES`] waits in a row were longer than the limit
//! (a client that thinks, statements that run long) the relay sleeps, and tries again once in [`RETRY`].

use crate::priority;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A session is alone when no other has begun a request for so long, microseconds.
const ALONE_FOR: u64 = 2_000;
/// And when the last so many requests were its own. Where many sessions take turns, one of them is the last of a batch, and
/// would else count as alone until the next batch comes.
const OWN_IN_A_ROW: u32 = 8;
/// Waits in vain, one after the other, after which it is not worth it.
const MISSES: u32 = 8;
/// One in so many waits is tried then.
const RETRY: u32 = 64;
/// After so many messages in a row the other sockets of the thread have their turn.
const IN_A_ROW: u32 = 8;
/// For how long the machine counts as it was found, microseconds.
const SAMPLE: u64 = 1_000;
/// The same where it had more to do than it has processors: a moment later it may not, behind a commit above all.
const SAMPLE_CROWDED: u64 = 100;
/// Workers that are told apart. More share a place, and are then found at work a little too often.
const PLACES: usize = 64;

/// Microseconds since this process first asked.
type Micros = u64;

fn now() -> Micros {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_micros() as Micros
}

/// When a session of each worker last began a request; a cache line each, written by that worker alone.
static LATEST: [Place; PLACES] = [const { Place(AtomicU64::new(0)) }; PLACES];

#[repr(align(64))]
struct Place(AtomicU64);

thread_local! {
    /// Of a worker's thread; elsewhere nobody stays awake.
    static HERE: Cell<Option<Here>> = const { Cell::new(None) };
    static MACHINE: RefCell<Option<File>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy)]
struct Here {
    place: usize,
    limit: Micros,
    processors: u32,
    /// The session that last began a request here, and since when it is always the same.
    last: usize,
    since: Micros,
    /// Requests that it began since then, up to [`OWN_IN_A_ROW`].
    own: u32,
    sampled: Micros,
    crowded: bool,
}

/// This thread is that worker from now on, and its relays stay awake for so long; not at all where `limit` is nothing or
/// the machine has one processor.
pub fn begin_worker(number: usize, limit: Duration) {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let limit = if processors > 1 { limit.as_micros() as Micros } else { 0 };
    let file = if limit > 0 { File::open("/proc/loadavg").ok() } else { None };
    MACHINE.set(file);
    let place = number % PLACES;
    HERE.set(Some(Here { place, limit, processors, last: 0, since: 0, own: 0, sampled: 0, crowded: true }));
}

/// A session, by a number that no other living one of this process has, begins a request.
#[inline]
pub fn begins_request(session: usize) {
    let Some(mut here) = HERE.get().filter(|here| here.limit > 0) else { return };
    let now = now();
    LATEST[here.place].0.store(now, Ordering::Relaxed);
    if here.last != session {
        (here.last, here.since, here.own) = (session, now, 0);
    } else if here.own >= OWN_IN_A_ROW {
        return;
    }
    here.own += 1;
    HERE.set(Some(here));
}

#[inline]
fn is_last(session: usize) -> bool {
    HERE.get().is_some_and(|here| here.limit > 0 && here.last == session)
}

/// How long a relay may stay awake, in microseconds: nothing where its session is not alone.
fn limit(session: usize, now: Micros) -> Micros {
    let Some(mut here) = HERE.get() else { return 0 };
    if !here.is_alone(session, now, LATEST.iter().map(|place| place.0.load(Ordering::Relaxed))) {
        return 0;
    }
    if now >= here.sampled + if here.crowded { SAMPLE_CROWDED } else { SAMPLE } {
        here.sampled = now;
        here.crowded = runnable().is_none_or(|runnable| runnable > here.processors);
        HERE.set(Some(here));
    }
    if here.crowded { 0 } else { here.limit }
}

impl Here {
    /// `latest`: when a session of each place last began a request.
    fn is_alone(&self, session: usize, now: Micros, latest: impl Iterator<Item = Micros>) -> bool {
        let quiet = |since: Micros| now.saturating_sub(since) >= ALONE_FOR;
        let mut others = latest.enumerate().filter(|(place, _)| *place != self.place);
        self.last == session
            && self.own >= OWN_IN_A_ROW
            && quiet(self.since)
            && others.all(|(_, began)| quiet(began))
    }
}

/// Tasks of the machine that run or could (proc(5), /proc/loadavg). `None`: it does not say.
fn runnable() -> Option<u32> {
    MACHINE.with_borrow(|file| {
        let mut text = [0; 64];
        let read = file.as_ref()?.read_at(&mut text, 0).ok()?;
        parse_runnable(&text[..read])
    })
}

fn parse_runnable(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.split(' ').nth(3)?.split('/').next()?.parse().ok()
}

/// For whom a relay waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    Client,
    Server,
}

/// What a look finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Nothing,
    /// Something has come, and the runtime has to say so.
    Come,
    /// Bytes have come, and were read.
    Read,
}

/// What one relay knows of its waits.
#[derive(Debug, Default)]
pub struct BusyPoll {
    /// Messages that were read without a turn of the runtime.
    in_a_row: u32,
    client: Record,
    server: Record,
}

/// Waits for one side.
#[derive(Debug, Default)]
struct Record {
    /// Those that were in vain, since the last that was not.
    misses: u32,
    skipped: u32,
}

impl Record {
    fn is_worth_it(&mut self) -> bool {
        if self.misses < MISSES {
            return true;
        }
        self.skipped += 1;
        if self.skipped < RETRY {
            return false;
        }
        self.skipped = 0;
        true
    }

    fn note(&mut self, came: bool) {
        self.misses = if came { 0 } else { self.misses.saturating_add(1) };
    }
}

impl BusyPoll {
    /// The relay has done what there was to do. Looks, for a moment and where that is called for, whether more has come.
    #[inline]
    pub fn sees(&mut self, session: usize, waits_for: For, mut look: impl FnMut() -> Look) -> Look {
        if !is_last(session) {
            priority::go_first(true);
            return Look::Nothing;
        }
        let began = now();
        let limit = limit(session, began);
        let stays_awake = limit > 0 && self.record(waits_for).is_worth_it();
        priority::go_first(!stays_awake);
        if !stays_awake {
            return Look::Nothing;
        }
        let mut seen = look();
        while seen == Look::Nothing && now() < began + limit {
            std::thread::yield_now();
            seen = look();
        }
        self.record(waits_for).note(seen != Look::Nothing);
        if seen == Look::Read {
            self.in_a_row += 1;
            if self.in_a_row < IN_A_ROW {
                return Look::Read;
            }
            seen = Look::Come;
        }
        self.in_a_row = 0;
        seen
    }

    fn record(&mut self, of: For) -> &mut Record {
        match of {
            For::Client => &mut self.client,
            For::Server => &mut self.server,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMIT: Micros = 100;

    #[test]
    fn what_is_waited_for_in_vain_is_slept_for_and_tried_now_and_then() {
        let mut record = Record::default();
        for _ in 0..MISSES {
            assert!(record.is_worth_it());
            record.note(false);
        }
        let mut tried = 0;
        for _ in 0..4 * RETRY {
            if record.is_worth_it() {
                tried += 1;
                record.note(false);
            }
        }
        assert_eq!(tried, 4);
        while !record.is_worth_it() {}
        record.note(true);
        assert!(record.is_worth_it(), "one that came in time, and it is worth it again");
    }

    #[test]
    fn it_looks_for_the_limit_and_no_longer() {
        std::thread::spawn(|| {
            begin_worker(9, Duration::from_micros(LIMIT));
            let alone = HERE.get().map(|h| Here {
                last: 1,
                since: 0,
                own: OWN_IN_A_ROW,
                sampled: u64::MAX / 2,
                crowded: false,
                ..h
            });
            if alone.unwrap().limit == 0 {
                return;
            }
            HERE.set(alone);
            let mut poll = BusyPoll::default();
            let looks = Cell::new(0);
            let came_at = |nth| {
                looks.set(0);
                let looks = &looks;
                move || {
                    looks.set(looks.get() + 1);
                    if looks.get() == nth { Look::Come } else { Look::Nothing }
                }
            };
            // Whoever else works in this process would be another session at work.
            let began = Instant::now();
            assert_eq!(poll.sees(2, For::Client, came_at(1)), Look::Nothing);
            assert_eq!(looks.get(), 0, "another session was last");
            let saw = poll.sees(1, For::Client, came_at(3));
            assert_eq!(saw == Look::Come, looks.get() == 3);
            assert_eq!(poll.sees(1, For::Server, came_at(0)), Look::Nothing);
            assert!(looks.get() == 0 || began.elapsed() >= Duration::from_micros(LIMIT));
            let read = |poll: &mut BusyPoll| poll.sees(1, For::Server, || Look::Read);
            let turns = (0..3 * IN_A_ROW).filter(|_| read(&mut poll) == Look::Come).count();
            assert!(turns <= 3, "the others have their turn now and then: {turns}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_session_is_alone_until_another_begins_a_request_wherever_that_is() {
        let now = 1_000_000;
        let before = now - ALONE_FOR;
        let here = Here {
            place: 1,
            limit: LIMIT,
            processors: 2,
            last: 7,
            since: before,
            own: OWN_IN_A_ROW,
            sampled: now,
            crowded: false,
        };
        let is_alone = |here: &Here, latest: [Micros; 3]| here.is_alone(7, now, latest.into_iter());
        assert!(is_alone(&here, [0, now, before]), "its own worker's requests are its own");
        assert!(!here.is_alone(8, now, [0, now, 0].into_iter()), "another was last");
        assert!(!is_alone(&Here { since: before + 1, ..here }, [0, now, 0]), "another was, a moment ago");
        assert!(!is_alone(&here, [0, now, before + 1]), "another worker has one");
        let of_a_batch = Here { own: OWN_IN_A_ROW - 1, ..here };
        assert!(!is_alone(&of_a_batch, [0, now, 0]), "it is the last of many that take turns");
    }

    #[test]
    fn the_machine_says_how_much_is_runnable() {
        assert_eq!(parse_runnable(b"0.20 0.18 0.12 3/80 11206\n"), Some(3));
        assert_eq!(parse_runnable(b"0.20 0.18"), None);
        assert_eq!(parse_runnable(b""), None);
    }
}
