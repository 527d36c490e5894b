//! What writers and readers of one ledger share: its clock, its end, and what has been acknowledged so far.

use crate::gaps::Micros;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

#[derive(Debug)]
pub struct Shared {
    began: Instant,
    over: AtomicBool,
    /// The highest acknowledged seq of each client.
    acknowledged: Vec<AtomicU64>,
}

impl Shared {
    pub fn new(clients: usize) -> Self {
        Shared {
            began: Instant::now(),
            over: AtomicBool::new(false),
            acknowledged: (0..clients).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub fn now(&self) -> Micros {
        self.at(Instant::now())
    }

    pub fn at(&self, instant: Instant) -> Micros {
        u64::try_from(instant.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub fn finish(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub fn acknowledge(&self, client: u32, seq: u64) {
        if let Some(highest) = self.acknowledged.get(client as usize) {
            highest.fetch_max(seq, Ordering::SeqCst);
        }
    }

    pub fn acknowledged(&self, client: u32) -> u64 {
        self.acknowledged.get(client as usize).map_or(0, |highest| highest.load(Ordering::SeqCst))
    }

    pub fn clients(&self) -> u32 {
        u32::try_from(self.acknowledged.len()).unwrap_or(u32::MAX)
    }

    /// Acknowledged by all clients together: moves while commits pass. Exact only where no attempt fails.
    pub fn progress(&self) -> u64 {
        self.acknowledged.iter().map(|highest| highest.load(Ordering::SeqCst)).sum()
    }
}
