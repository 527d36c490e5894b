//! Time in a simulation: every clock of the process shows what the world says.
//!
//! The daemon reads its clocks through libc (std, tokio and rustix all end at `clock_gettime`), and asks it for chance
//! (`getrandom`). The definitions below come before libc's when the program is linked, so the daemon's code runs
//! unchanged and no clock is handed around. Before [`take_over`] both do what libc's do.
//!
//! A program is one world: its node in turn has set its own clock, with its own drift, before any of its code runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static TAKEN_OVER: AtomicBool = AtomicBool::new(false);
static NOW: AtomicU64 = AtomicU64::new(0);
static CHANCE: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds on every clock when the world begins. Not small, as on no machine.
pub const BEGIN: u64 = 1_000_000_000_000;
/// What the wall clock shows beyond the others: some day in 2027.
const WALL: u64 = 1_800_000_000_000_000_000;

/// Unix milliseconds that clocks without drift show after so many of the world's.
pub fn unix_ms(now_ms: u64) -> u64 {
    (WALL + BEGIN) / 1_000_000 + now_ms
}

/// From now on time is the world's, and so is chance.
pub fn take_over(seed: u64) {
    NOW.store(BEGIN, Ordering::SeqCst);
    CHANCE.store(seed ^ 0x5eed_5eed_5eed_5eed, Ordering::SeqCst);
    TAKEN_OVER.store(true, Ordering::SeqCst);
}

/// What the running node's clocks show, nanoseconds.
pub fn set(now: u64) {
    NOW.store(now, Ordering::SeqCst);
}

pub fn now() -> u64 {
    NOW.load(Ordering::SeqCst)
}

/// Milliseconds of the real clock, whoever has taken over.
pub fn real_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to where we say.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// libc's `clock_gettime(2)`.
///
/// # Safety
/// `time` is valid for a write, as libc demands it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let is_process_time = matches!(clock, libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID);
    if !TAKEN_OVER.load(Ordering::Relaxed) || is_process_time {
        // SAFETY: passed on as it came.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    }
    let wall = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
    let now = now() + if wall { WALL } else { 0 };
    let shown =
        libc::timespec { tv_sec: (now / 1_000_000_000) as i64, tv_nsec: (now % 1_000_000_000) as i64 };
    // SAFETY: the caller's promise.
    unsafe { time.write(shown) };
    0
}

/// libc's `getrandom(2)`.
///
/// # Safety
/// `buffer` is valid for writes of `length` bytes, as libc demands it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if !TAKEN_OVER.load(Ordering::Relaxed) {
        // SAFETY: passed on as it came.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as libc::ssize_t };
    }
    for at in 0..length {
        let mut dice = crate::dice::Dice::new(CHANCE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst));
        // SAFETY: the caller's promise, at < length.
        unsafe { buffer.cast::<u8>().add(at).write(dice.next() as u8) };
    }
    length as libc::ssize_t
}
