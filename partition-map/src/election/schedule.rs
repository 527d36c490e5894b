//! When to ask for an election. Pure.

use tokio::time::{Duration, Instant};

/// Voters compare their own clocks, and a request is counted later than it arrives.
const LEASE_MARGIN: Duration = Duration::from_millis(10);
/// Between voters in line, when the leader is known to have gone.
const LOST_STEP: Duration = Duration::from_millis(40);
/// After an attempt that came to nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// Within it nobody votes for another.
    pub(crate) lease: Duration,
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

/// What the schedule depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) heard_at: Instant,
    /// The connection to the leader broke.
    pub(crate) leader_lost: bool,
    /// Place in the line of voters without the leader, from 0.
    pub(crate) place: u32,
    /// Length of that line.
    pub(crate) line: u32,
    pub(crate) last_attempt: Option<Instant>,
}

impl Schedule {
    /// When this voter asks, if it hears nothing till then.
    pub(crate) fn due(&self, now: Now) -> Instant {
        let silence = if now.leader_lost {
            self.lease + LEASE_MARGIN + LOST_STEP * now.place
        } else {
            let span = self.max.saturating_sub(self.min);
            (self.min + span * now.place / now.line.max(1)).max(self.lease + LEASE_MARGIN)
        };
        let due = now.heard_at + silence;
        match now.last_attempt {
            Some(attempt) => due.max(attempt + RETRY_PAUSE + LOST_STEP * now.place),
            None => due,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn voters_stand_in_line_and_nobody_runs_within_the_lease() {
        let schedule = Schedule { lease: ms(250), min: ms(250), max: ms(500) };
        let heard_at = Instant::now();
        let base = Now { heard_at, leader_lost: false, place: 0, line: 2, last_attempt: None };
        assert_eq!(schedule.due(base) - heard_at, ms(260));
        assert_eq!(schedule.due(Now { place: 1, ..base }) - heard_at, ms(375));
        let lost = Now { leader_lost: true, ..base };
        assert_eq!(schedule.due(lost) - heard_at, ms(260));
        assert_eq!(schedule.due(Now { place: 1, ..lost }) - heard_at, ms(300));
    }

    #[test]
    fn attempts_are_spaced() {
        let schedule = Schedule { lease: ms(250), min: ms(250), max: ms(500) };
        let heard_at = Instant::now();
        let attempt = heard_at + ms(400);
        let now = Now { heard_at, leader_lost: true, place: 1, line: 2, last_attempt: Some(attempt) };
        assert_eq!(schedule.due(now) - attempt, ms(90));
    }
}
