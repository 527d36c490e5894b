//! The handle by which others reach a session: gates and routes wake it, cancel requests find its backend.

use futures::task::AtomicWaker;
use quorate_model::{DatabaseId, NodeId};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Where the server process of a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub node: NodeId,
    pub database: DatabaseId,
    pub pid: i32,
    /// Postgres's own cancel key. It never leaves the cluster.
    pub secret: u32,
}

#[derive(Debug, Default)]
pub struct Slot {
    waker: AtomicWaker,
    /// Counts what a session has to look at.
    signals: AtomicU32,
    /// The number of the request in flight, shifted by one; the lowest bit says that it is in flight.
    activity: AtomicU64,
    /// Cancel requests that are on their way to the backend.
    cancelling: AtomicU32,
    backend: Mutex<Option<Backend>>,
    /// Why the session keeps its server although it shares them.
    pinned: Mutex<Option<Box<str>>>,
}

/// A moment of a session's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity(u64);

impl Activity {
    pub fn new(requests: u64, busy: bool) -> Self {
        Activity(requests << 1 | u64::from(busy))
    }

    pub fn is_busy(self) -> bool {
        self.0 & 1 == 1
    }
}

impl Slot {
    /// The session's task will be woken from now on.
    #[inline]
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Something changed that the session has to look at.
    pub fn signal(&self) {
        self.signals.fetch_add(1, Ordering::AcqRel);
        self.waker.wake();
    }

    /// The session may try again what it could not do.
    pub fn wake(&self) {
        self.waker.wake();
    }

    #[inline]
    pub fn signals(&self) -> u32 {
        self.signals.load(Ordering::Acquire)
    }

    // SeqCst, with `is_cancelling`: either whoever cancels sees that another request has begun, or whoever begins one
    // sees that a cancel is on its way.
    #[inline]
    pub fn set_activity(&self, activity: Activity) {
        self.activity.store(activity.0, Ordering::SeqCst);
    }

    pub fn activity(&self) -> Activity {
        Activity(self.activity.load(Ordering::SeqCst))
    }

    /// While the value is kept, the session begins no request: a cancel that is on its way could hit it.
    pub fn cancelling(&self) -> Cancelling<'_> {
        self.cancelling.fetch_add(1, Ordering::SeqCst);
        Cancelling(self)
    }

    #[inline]
    pub fn is_cancelling(&self) -> bool {
        self.cancelling.load(Ordering::SeqCst) > 0
    }

    pub fn set_backend(&self, backend: Option<Backend>) {
        *locked(&self.backend) = backend;
    }

    pub fn set_pinned(&self, why: Option<String>) {
        *locked(&self.pinned) = why.map(String::into_boxed_str);
    }

    pub fn pinned(&self) -> Option<Box<str>> {
        locked(&self.pinned).clone()
    }

    pub fn backend(&self) -> Option<Backend> {
        *locked(&self.backend)
    }
}

/// A cancel request on its way to a backend.
pub struct Cancelling<'a>(&'a Slot);

impl Drop for Cancelling<'_> {
    fn drop(&mut self) {
        self.0.cancelling.fetch_sub(1, Ordering::SeqCst);
        self.0.wake();
    }
}

/// What is behind our mutexes is never left half-changed: a panic elsewhere does not spoil it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
