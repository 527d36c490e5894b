//! The one clock of the ring: CLOCK_BOOTTIME, which goes on while the machine sleeps, so that a lease cannot
//! outlive its promise by being slept through. Only differences are ever compared between machines.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Nanoseconds of this machine's CLOCK_BOOTTIME.
pub type BootTime = u64;

/// Now, on this machine.
pub fn boot_now() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// A duration in the unit of [`BootTime`].
pub const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

/// Milliseconds between two readings, zero when they are in the wrong order.
pub const fn millis_between(earlier: BootTime, later: BootTime) -> u64 {
    later.saturating_sub(earlier) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_does_not_go_back() {
        let first = boot_now();
        assert!(first > 0);
        assert!(boot_now() >= first);
        assert_eq!(nanos(Duration::MAX), u64::MAX);
        assert_eq!(millis_between(5_000_000, 7_900_000), 2);
        assert_eq!(millis_between(7, 5), 0);
    }
}
