//! Reports that tell nothing new but how far a standby has applied the log.
//!
//! A standby that has applied all that it has says so at once (PostgreSQL, `xlogrecovery.c`, `WaitForWALToBecomeAvailable`,
//! `WalRcvForceReply`), so behind every commit a third report follows those of the write and of the flush. With one client
//! it arrives while the next transaction runs, and takes a wake-up and a TLS record of both nodes' daemons and a wake-up of
//! the walsender. Where commits follow each other the next report of a flush says the same a moment later. So such a report
//! waits for that one, [`WAIT`] at most, and goes by itself when none has come.
//!
//! A commit waits for it only with `synchronous_commit = remote_apply`. There nothing else comes meanwhile, the wait is in
//! vain, and after [`IN_VAIN`] of those only one report in [`RETRY`] waits.

use super::tap::KEEPALIVE_REQUEST;
use std::time::Duration;
use tokio::time::Instant;

/// A report of a standby, as a whole message.
pub type Report = [u8; KEEPALIVE_REQUEST.len()];

/// How long one waits for the next report.
const WAIT: Duration = Duration::from_millis(5);

/// Waits in vain, one after the other, after which it is not worth it.
const IN_VAIN: u32 = 4;

/// One in so many reports waits then.
const RETRY: u32 = 64;

/// The report of one stream that waits.
#[derive(Debug, Default)]
pub struct Applied {
    waits: Option<(Report, Instant)>,
    /// Waits in vain since the last that was not.
    in_vain: u32,
    /// Reports that did not wait since the last that did.
    passed: u32,
}

impl Applied {
    /// A report has come that says only how far the log was applied. False: it goes on at once.
    pub fn put_aside(&mut self, bytes: &[u8], now: Instant) -> bool {
        let Ok(report) = Report::try_from(bytes) else { return false };
        if let Some((waiting, _)) = &mut self.waits {
            *waiting = report;
            return true;
        }
        if self.in_vain >= IN_VAIN {
            self.passed += 1;
            if self.passed < RETRY {
                return false;
            }
        }
        self.passed = 0;
        self.waits = Some((report, now + WAIT));
        true
    }

    /// A later report goes on, and says all that this one did.
    pub fn superseded(&mut self) {
        if self.waits.take().is_some() {
            self.in_vain = 0;
        }
    }

    /// When the one that waits goes by itself.
    pub fn due(&self) -> Option<Instant> {
        self.waits.as_ref().map(|(_, due)| *due)
    }

    /// It goes by itself.
    pub fn take(&mut self) -> Option<Report> {
        let (report, _) = self.waits.take()?;
        self.in_vain = self.in_vain.saturating_add(1);
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(apply: u8) -> Report {
        let mut report = KEEPALIVE_REQUEST;
        report[29] = apply;
        report
    }

    #[test]
    fn the_latest_waits_until_it_is_due_or_superseded() {
        let (mut applied, now) = (Applied::default(), Instant::now());
        assert!(!applied.put_aside(&[0; 7], now), "no report");
        assert!(applied.put_aside(&report(1), now));
        assert!(applied.put_aside(&report(2), now + WAIT / 2));
        assert_eq!(applied.due(), Some(now + WAIT), "no longer than the first");
        assert_eq!(applied.take(), Some(report(2)));
        assert_eq!((applied.due(), applied.take()), (None, None));
        assert!(applied.put_aside(&report(3), now));
        applied.superseded();
        assert_eq!(applied.take(), None);
    }

    #[test]
    fn where_it_is_in_vain_reports_go_at_once_until_it_is_worth_it_again() {
        let (mut applied, now) = (Applied::default(), Instant::now());
        let mut waited = 0;
        for n in 0..IN_VAIN + 4 * RETRY {
            if applied.put_aside(&report(n as u8), now) {
                waited += 1;
                assert!(applied.take().is_some());
            }
        }
        assert_eq!(waited, IN_VAIN + 4);
        while !applied.put_aside(&report(0), now) {}
        applied.superseded();
        assert!(applied.put_aside(&report(0), now));
    }
}
