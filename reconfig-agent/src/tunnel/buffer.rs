//! Buffers of relays, lent only while bytes are under way.
//!
//! A node holds thousands of mostly idle streams. A stream that has nothing to forward holds no buffer: each thread
//! keeps a few and lends them from poll to poll, which also keeps the bytes in the cache of the core that moves them.

use std::cell::RefCell;

/// What one read can take: half a walsender's largest message, four TLS records.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// Buffers that a thread keeps for the next poll: two directions of a few streams.
const KEPT_PER_THREAD: usize = 8;

thread_local! {
    static KEPT: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Borrows a buffer of [`BUFFER_BYTES`]; its contents are arbitrary.
pub fn take() -> Box<[u8]> {
    // A thread that is ending has no store any more.
    let kept = KEPT.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
    kept.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

pub fn give_back(buffer: Box<[u8]>) {
    let _ = KEPT.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < KEPT_PER_THREAD {
            kept.push(buffer);
        }
    });
}
