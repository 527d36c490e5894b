//! Gaps between acknowledged commits: how long the application, taken as a whole, got nothing committed.

use hdrhistogram::Histogram;
use std::time::Duration;

/// Times are microseconds since the ledger began.
pub type Micros = u64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    pub from: Micros,
    pub length: Micros,
}

impl Gap {
    pub fn duration(self) -> Duration {
        Duration::from_micros(self.length)
    }
}

/// Acknowledgement times of all clients, in order.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged(Vec<Micros>);

impl Acknowledged {
    pub fn new(mut times: Vec<Micros>) -> Self {
        times.sort_unstable();
        Acknowledged(times)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The longest time without an acknowledgement that ended after `from` and began before `until`. Its ends
    /// are acknowledgements, or the window's own ends where none came.
    pub fn longest(&self, from: Micros, until: Micros) -> Gap {
        let start = self.0.partition_point(|t| *t <= from);
        let mut last = start.checked_sub(1).map_or(from, |before| self.0[before]);
        let mut longest = Gap::default();
        for time in self.0[start..].iter().copied().chain([Micros::MAX]) {
            let end = if time == Micros::MAX { until } else { time };
            let length = end.saturating_sub(last);
            if length > longest.length {
                longest = Gap { from: last, length };
            }
            if time >= until {
                break;
            }
            last = time;
        }
        longest
    }
}

/// A distribution of durations, as p50, p99 and maximum.
#[derive(Clone, Debug)]
pub struct Distribution {
    histogram: Histogram<u64>,
}

/// Longest that is told apart from longer ones.
const HIGHEST: Duration = Duration::from_secs(600);

impl Distribution {
    pub fn new() -> Self {
        let highest = u64::try_from(HIGHEST.as_micros()).unwrap_or(u64::MAX);
        // Cannot fail: the bounds are constants that the histogram's own rules allow.
        let histogram = Histogram::new_with_bounds(1, highest, 3)
            .unwrap_or_else(|_| Histogram::new_with_bounds(1, 2, 1).unwrap_or_else(|e| panic!("{e}")));
        Distribution { histogram }
    }

    pub fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut distribution = Distribution::new();
        for duration in durations {
            distribution.record(duration);
        }
        distribution
    }

    pub fn record(&mut self, duration: Duration) {
        self.histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.histogram.value_at_quantile(quantile))
    }

    pub fn max(&self) -> Duration {
        Duration::from_micros(self.histogram.max())
    }
}

impl Default for Distribution {
    fn default() -> Self {
        Distribution::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_may_reach_into_the_window_from_before() {
        let acknowledged = Acknowledged::new(vec![10, 20, 500, 510, 600]);
        assert_eq!(acknowledged.longest(0, 1_000), Gap { from: 20, length: 480 });
        assert_eq!(acknowledged.longest(300, 1_000), Gap { from: 20, length: 480 });
        assert_eq!(acknowledged.longest(505, 560), Gap { from: 510, length: 90 });
    }

    #[test]
    fn silence_until_the_end_counts() {
        let acknowledged = Acknowledged::new(vec![10, 20]);
        assert_eq!(acknowledged.longest(15, 1_000), Gap { from: 20, length: 980 });
        assert_eq!(Acknowledged::default().longest(5, 25), Gap { from: 5, length: 20 });
    }

    #[test]
    fn quantiles() {
        let d = Distribution::of((1..=100).map(Duration::from_millis));
        assert_eq!(d.count(), 100);
        assert!(d.quantile(0.5) >= Duration::from_millis(50) && d.quantile(0.5) < Duration::from_millis(51));
        assert!(d.max() >= Duration::from_millis(100));
    }
}
