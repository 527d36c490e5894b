//! One direction of a session: the bytes received from one side and not yet sent to the other.
//!
//! ```text
//!   0 ..... sent ........ judged ......... filled ...... capacity
//!     gone     to be sent        to be judged      free
//! ```
//! A message is *judged* whole, or, when it is larger than the lane, as it streams through. What is judged has been
//! told to the tracker and will be sent; what is not judged can still be kept, replaced or dropped. So wherever a
//! session is cut, tracker and receiver agree.
//!
//! Where bytes are in the stream that the lane receives is counted from its beginning: [`Lane::judged`] and
//! [`Lane::received`] say how far it has come. Bytes behind [`Lane::show_until`] are kept out of judgement's sight.
//!
//! A lane owns a buffer only while it holds bytes: idle sessions hold none. Buffers come from a pool of the thread.

use super::header::{BadLength, Header, peek};
use std::cell::RefCell;

/// Capacity of a pooled buffer: several reads of what Postgres flushes at a time (8 KiB).
pub const LANE_BYTES: usize = 32 * 1024;
/// A message that must be seen whole makes its lane grow up to this.
pub const MAX_WHOLE_BYTES: usize = 1024 * 1024;
/// Free buffers that a thread keeps.
const MAX_POOLED: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Box<[u8]> {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; LANE_BYTES].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    if buffer.len() == LANE_BYTES {
        POOL.with_borrow_mut(|pool| {
            if pool.len() < MAX_POOLED {
                pool.push(buffer);
            }
        });
    }
}

/// What lies at the front of the bytes to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// More bytes are needed.
    Nothing,
    /// A whole message.
    Whole(Header),
    /// The beginning of a message that is too large for the lane. [`Lane::begin_large`] must follow.
    Large(Header),
    /// The next bytes of a large message: as many as there are.
    Part(usize),
}

#[derive(Debug)]
pub struct Lane {
    data: Box<[u8]>,
    sent: usize,
    judged: usize,
    filled: usize,
    /// Bytes of a large message that are not judged yet.
    left: usize,
    /// Capacity that the message at the front needs.
    wanted: usize,
    /// Position in the stream of what is to be judged next.
    position: u64,
    /// Position in the stream before which bytes are to be judged.
    shown: u64,
}

impl Default for Lane {
    fn default() -> Self {
        Lane {
            data: Box::default(),
            sent: 0,
            judged: 0,
            filled: 0,
            left: 0,
            wanted: 0,
            position: 0,
            shown: u64::MAX,
        }
    }
}

impl Lane {
    /// Bytes to be sent.
    pub fn unsent(&self) -> &[u8] {
        &self.data[self.sent..self.judged]
    }

    /// Bytes to be judged.
    pub fn unjudged(&self) -> &[u8] {
        &self.data[self.judged..self.filled]
    }

    pub fn has_unsent(&self) -> bool {
        self.sent < self.judged
    }

    pub fn has_unjudged(&self) -> bool {
        self.judged < self.filled
    }

    /// How much of the stream has been judged.
    pub fn judged(&self) -> u64 {
        self.position
    }

    /// How much of the stream has been received.
    pub fn received(&self) -> u64 {
        self.position + (self.filled - self.judged) as u64
    }

    /// Only what is before that position in the stream is to be judged.
    pub fn show_until(&mut self, position: u64) {
        self.shown = position;
    }

    /// Whether everything judged so far ends with a message.
    pub fn at_boundary(&self) -> bool {
        self.left == 0
    }

    /// Whether there is room for another read.
    pub fn has_space(&self) -> bool {
        let held = self.filled - self.sent;
        held < self.wanted.max(LANE_BYTES)
    }

    pub fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        debug_assert!(self.sent <= self.judged);
        self.release_if_empty();
    }

    /// Free space to read into; never empty while [`Lane::has_space`].
    pub fn space(&mut self) -> &mut [u8] {
        if self.sent > 0 {
            self.compact();
        }
        self.reserve(1);
        &mut self.data[self.filled..]
    }

    /// That many bytes were read into [`Lane::space`].
    pub fn fill(&mut self, bytes: usize) {
        self.filled += bytes;
        debug_assert!(self.filled <= self.data.len());
    }

    /// Looks at what is to be judged next. `whole` says which tags must be seen whole even when they are large.
    #[inline]
    pub fn front(&mut self, whole: impl Fn(u8) -> bool) -> Result<Front, BadLength> {
        let hidden = self.received().saturating_sub(self.shown) as usize;
        let available = (self.filled - self.judged).saturating_sub(hidden);
        if self.left > 0 {
            return Ok(if available == 0 { Front::Nothing } else { Front::Part(self.left.min(available)) });
        }
        // Of what is hidden, not even the header says anything.
        let shown = &self.data[self.judged..self.judged + available];
        let Some(header) = peek(shown)? else { return Ok(Front::Nothing) };
        if header.total <= available {
            return Ok(Front::Whole(header));
        }
        if header.total > LANE_BYTES && !(header.total <= MAX_WHOLE_BYTES && whole(header.tag)) {
            return Ok(Front::Large(header));
        }
        self.wanted = header.total;
        Ok(Front::Nothing)
    }

    /// From now on the message at the front is judged in parts.
    pub fn begin_large(&mut self, header: Header) {
        debug_assert_eq!(self.left, 0);
        self.left = header.total;
    }

    /// Judges the next `bytes`: they will be sent.
    #[inline]
    pub fn pass(&mut self, bytes: usize) {
        self.judged += bytes;
        self.position += bytes as u64;
        self.left = self.left.saturating_sub(bytes);
        self.wanted = 0;
        debug_assert!(self.judged <= self.filled);
    }

    /// Judges the next `bytes`: they are dropped.
    pub fn remove(&mut self, bytes: usize) {
        self.position += bytes as u64;
        self.left = self.left.saturating_sub(bytes);
        self.wanted = 0;
        self.data.copy_within(self.judged + bytes..self.filled, self.judged);
        self.filled -= bytes;
        self.release_if_empty();
    }

    /// Judges the next `bytes`: `other` is sent in their place.
    pub fn replace(&mut self, bytes: usize, other: &[u8]) {
        debug_assert_eq!(self.left, 0);
        self.remove(bytes);
        self.insert(other);
    }

    /// Sends `bytes` before what is to be judged.
    pub fn insert(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.data.copy_within(self.judged..self.filled, self.judged + bytes.len());
        self.data[self.judged..self.judged + bytes.len()].copy_from_slice(bytes);
        self.judged += bytes.len();
        self.filled += bytes.len();
    }

    /// Puts `bytes` in front of what is to be judged, to be judged (again).
    pub fn put_back(&mut self, bytes: &[u8]) {
        debug_assert_eq!(self.left, 0);
        self.insert(bytes);
        self.judged -= bytes.len();
    }

    /// Forgets what is to be judged and what was left of a large message.
    pub fn discard_unjudged(&mut self) {
        self.position = self.received();
        self.filled = self.judged;
        self.left = 0;
        self.wanted = 0;
        self.release_if_empty();
    }

    /// Forgets what was to be sent.
    pub fn discard_unsent(&mut self) {
        self.sent = self.judged;
        self.release_if_empty();
    }

    /// Gives the buffer back when nothing is in it.
    pub fn release_if_empty(&mut self) {
        if self.sent == self.filled && !self.data.is_empty() {
            give_back(std::mem::take(&mut self.data));
            (self.sent, self.judged, self.filled, self.wanted) = (0, 0, 0, 0);
        }
    }

    /// Makes room for `more` bytes behind `filled`.
    fn reserve(&mut self, more: usize) {
        if self.data.is_empty() && more <= LANE_BYTES {
            self.data = take_buffer();
        }
        let needed = (self.filled + more).max(self.judged + self.wanted);
        if needed <= self.data.len() {
            return;
        }
        self.compact();
        let needed = (self.filled + more).max(self.judged + self.wanted);
        if needed > self.data.len() {
            let mut larger = vec![0; needed.next_power_of_two().max(LANE_BYTES)].into_boxed_slice();
            larger[..self.filled].copy_from_slice(&self.data[..self.filled]);
            give_back(std::mem::replace(&mut self.data, larger));
        }
    }

    /// Moves what is held to the start of the buffer.
    fn compact(&mut self) {
        self.data.copy_within(self.sent..self.filled, 0);
        self.judged -= self.sent;
        self.filled -= self.sent;
        self.sent = 0;
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn push(lane: &mut Lane, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = lane.space();
            let n = space.len().min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            lane.fill(n);
            bytes = &bytes[n..];
        }
    }

    fn message(tag: u8, body: usize) -> Vec<u8> {
        let mut m = vec![tag];
        m.extend_from_slice(&(body as u32 + 4).to_be_bytes());
        m.resize(5 + body, b'x');
        m
    }

    #[test]
    fn passes_replaces_and_drops() {
        let mut lane = Lane::default();
        push(&mut lane, &[message(b'A', 3), message(b'B', 2), message(b'C', 1)].concat());
        assert_eq!(lane.front(|_| false).unwrap(), Front::Whole(Header { tag: b'A', total: 8 }));
        lane.pass(8);
        lane.remove(7);
        lane.replace(6, b"hello, longer than before");
        assert_eq!(lane.unsent(), [&message(b'A', 3)[..], b"hello, longer than before"].concat());
        let n = lane.unsent().len();
        lane.advance(n);
        assert!(lane.data.is_empty(), "an empty lane holds no buffer");
    }

    #[test]
    fn large_messages_stream_and_wanted_ones_grow() {
        let mut lane = Lane::default();
        push(&mut lane, &message(b'D', LANE_BYTES)[..100]);
        let Front::Large(header) = lane.front(|_| false).unwrap() else { panic!("large") };
        lane.begin_large(header);
        assert_eq!(lane.front(|_| false).unwrap(), Front::Part(100));
        lane.pass(100);
        assert!(!lane.at_boundary());

        let mut lane = Lane::default();
        let big = message(b'Q', 3 * LANE_BYTES);
        push(&mut lane, &big[..100]);
        assert_eq!(lane.front(|t| t == b'Q').unwrap(), Front::Nothing);
        push(&mut lane, &big[100..]);
        assert_eq!(lane.front(|t| t == b'Q').unwrap(), Front::Whole(Header { tag: b'Q', total: big.len() }));
        lane.pass(big.len());
        assert_eq!(lane.unsent(), big);
    }

    #[test]
    fn what_is_hidden_is_not_judged() {
        let mut lane = Lane::default();
        push(&mut lane, &[message(b'A', 0), message(b'B', 0), message(b'D', LANE_BYTES)].concat()[..200]);
        assert_eq!((lane.judged(), lane.received()), (0, 200));
        lane.show_until(7);
        assert_eq!(lane.front(|_| false).unwrap(), Front::Whole(Header { tag: b'A', total: 5 }));
        lane.pass(5);
        assert_eq!(lane.front(|_| false).unwrap(), Front::Nothing, "half of it is hidden");
        lane.show_until(16);
        lane.remove(5);
        let Front::Large(header) = lane.front(|_| false).unwrap() else { panic!("large") };
        lane.begin_large(header);
        assert_eq!(lane.front(|_| false).unwrap(), Front::Part(6));
        lane.pass(6);
        assert_eq!(lane.front(|_| false).unwrap(), Front::Nothing);
        assert_eq!((lane.judged(), lane.received()), (16, 200));
        lane.discard_unjudged();
        assert_eq!((lane.judged(), lane.received()), (200, 200));
    }

    #[test]
    fn a_hidden_header_says_nothing() {
        for hidden in [message(b'D', LANE_BYTES), b"D\xff\xff\xff\xff".to_vec()] {
            let mut lane = Lane::default();
            push(&mut lane, &[&message(b'A', 0)[..], &hidden[..5]].concat());
            lane.show_until(5);
            assert_eq!(lane.front(|_| false).unwrap(), Front::Whole(Header { tag: b'A', total: 5 }));
            lane.pass(5);
            for shown in 5..10 {
                lane.show_until(shown);
                assert_eq!(lane.front(|_| false), Ok(Front::Nothing), "{shown}");
                assert!(lane.at_boundary());
            }
            lane.show_until(10);
            assert_ne!(lane.front(|_| false), Ok(Front::Nothing));
        }
    }

    #[test]
    fn put_back_is_judged_again() {
        let mut lane = Lane::default();
        push(&mut lane, &message(b'B', 2));
        lane.put_back(&message(b'A', 0));
        assert_eq!(lane.front(|_| false).unwrap(), Front::Whole(Header { tag: b'A', total: 5 }));
    }
}
