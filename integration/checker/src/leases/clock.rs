//! Clocks that drift apart: each runs at its own constant rate, so that any two differ by no more than the bound of
//! rule R9.

use std::time::Duration;

/// Nanoseconds since the beginning, by nobody's clock.
pub type True = u64;

/// Any two clocks differ by one part in a thousand at most: half of it fast, half of it slow.
pub const DRIFT_PPM: i64 = 500;
/// What every clock showed at the beginning.
const OFFSET: u64 = 10_000_000_000;
const MILLION: i64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Clock {
    pub ppm: i64,
}

impl Clock {
    /// What it shows, nanoseconds.
    pub fn at(self, now: True) -> u64 {
        let drift = now as i64 * self.ppm / MILLION;
        OFFSET.saturating_add(now).saturating_add_signed(drift)
    }

    pub fn ms_at(self, now: True) -> u64 {
        self.at(now) / Duration::from_millis(1).as_nanos() as u64
    }

    /// The first moment at which it shows `reading` or more.
    pub fn when(self, reading: u64) -> True {
        let elapsed = reading.saturating_sub(OFFSET) as i64;
        let mut guess = (elapsed * MILLION / (MILLION + self.ppm)).max(0) as True;
        while guess > 0 && self.at(guess - 1) >= reading {
            guess -= 1;
        }
        while self.at(guess) < reading {
            guess += 1;
        }
        guess
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_moment_of_a_reading() {
        for ppm in [-DRIFT_PPM, 0, DRIFT_PPM] {
            let clock = Clock { ppm };
            for now in [0, 1, 7, 299_999_999, 1_000_000_007] {
                let reading = clock.at(now);
                let first = clock.when(reading);
                assert!(first <= now && clock.at(first) == reading);
                assert!(first == 0 || clock.at(first - 1) < reading);
            }
        }
    }
}
