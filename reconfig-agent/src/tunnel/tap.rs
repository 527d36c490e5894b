//! What the tunnel reads of a replication connection as it passes. Pure.
//!
//! Of all messages only those of streaming replication matter (protocol documentation, "Streaming Replication
//! Protocol"), and of those only a few positions, all big endian:
//! ```text
//! from the primary   'W' CopyBothResponse
//!                    'd' CopyData: 'w' start:u64 end:u64 time:i64 WAL…
//!                                  'k' end:u64 time:i64 reply:u8
//! from the standby   'd' CopyData: 'r' write:u64 flush:u64 apply:u64 time:i64 reply:u8
//! ```
//! The same letters inside the copy-out of a base backup mean something else, so nothing is read outside copy-both
//! mode.

use super::scan::{Head, Malformed, Scanner};
use quorate_model::Lsn;

/// A standby's status that says nothing of its log and asks for a keepalive. A walsender that has nothing to send says
/// nothing for half a minute, so without it nobody could tell that a stream of an idle database works, or where the
/// primary's log ends. Positions of zero are PostgreSQL's "not known": they acknowledge nothing and move no slot.
pub const KEEPALIVE_REQUEST: [u8; 39] = {
    let mut message = [0; 39];
    message[0] = b'd';
    message[4] = 38;
    message[5] = b'r';
    message[38] = 1;
    message
};

/// What stands before the log in a message of WAL.
const WAL_HEADER_BYTES: usize = 25;

/// Something a relay saw pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// The primary switched to copy-both: WAL will follow.
    CopyBothBegan,
    /// The primary ended copy-both; a command may follow on the same connection.
    CopyBothEnded,
    /// WAL, or a keepalive; `end` is the end of the primary's flushed log, and `shipped` of the log in this message.
    Heard { end: Lsn, shipped: Option<Lsn> },
    /// The standby says how far it wrote its log and flushed it.
    Flushed { flush: Lsn },
}

/// What the next bytes of a standby say to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tidings {
    /// Only how far the log was written, with the flush of the same bytes still to come.
    Written,
    /// Nothing that the report before did not, but for how far the log was applied.
    Applied,
    Other,
}

/// Both directions of one connection, from its first message after the startup packet.
#[derive(Debug, Default)]
pub struct Tap {
    from_primary: Scanner,
    from_standby: Scanner,
    copy_both: bool,
    /// WAL came whose write was not yet withheld.
    wal_unreported: bool,
    /// How far the log was written and flushed by the last report that passed, as on the wire.
    reported: Option<[u8; 16]>,
}

impl Tap {
    pub fn primary_said(&mut self, bytes: &[u8], mut saw: impl FnMut(Sighting)) -> Result<(), Malformed> {
        let (copy_both, wal_unreported) = (&mut self.copy_both, &mut self.wal_unreported);
        self.from_primary.feed(bytes, |head| {
            let sighting = match (head.kind, *copy_both) {
                (b'd', true) => {
                    *wal_unreported |= head.body.first() == Some(&b'w');
                    heard(head)
                }
                (b'W', false) => Some(Sighting::CopyBothBegan),
                // CopyDone, CommandComplete, ErrorResponse, ReadyForQuery: each ends the copy.
                (b'c' | b'C' | b'E' | b'Z', true) => Some(Sighting::CopyBothEnded),
                _ => None,
            };
            match sighting {
                Some(Sighting::CopyBothBegan) => *copy_both = true,
                Some(Sighting::CopyBothEnded) => *copy_both = false,
                _ => {}
            }
            if let Some(sighting) = sighting {
                saw(sighting);
            }
        })
    }

    /// Whether a message of our own may go to the primary here.
    pub fn is_between_messages_of_standby(&self) -> bool {
        self.from_standby.at_boundary()
    }

    /// What `bytes`, which come next from the standby, say if they are one report that asks for no answer.
    ///
    /// PostgreSQL's walreceiver sends one before every flush and another after it (`walreceiver.c`, `WalReceiverMain` and
    /// `XLogWalRcvFlush`); nobody waits for the first, because a commit here waits for flushes, and passing it on costs as
    /// much on every hop as the one that counts. `Written` is said once for each WAL that came: when a flush takes long,
    /// answers to keepalives pass, and the primary sees a live standby.
    pub fn tidings(&mut self, bytes: &[u8]) -> Tidings {
        let is_report = self.copy_both
            && self.from_standby.at_boundary()
            && bytes.len() == KEEPALIVE_REQUEST.len()
            && bytes[..6] == KEEPALIVE_REQUEST[..6]
            && bytes.last() == Some(&0);
        if !is_report {
            return Tidings::Other;
        }
        if self.wal_unreported && lsn_at(bytes, 6) > lsn_at(bytes, 14) {
            self.wal_unreported = false;
            return Tidings::Written;
        }
        if self.reported.is_some_and(|reported| bytes[6..22] == reported) {
            return Tidings::Applied;
        }
        Tidings::Other
    }

    pub fn standby_said(&mut self, bytes: &[u8], mut saw: impl FnMut(Sighting)) -> Result<(), Malformed> {
        let (copy_both, reported) = (self.copy_both, &mut self.reported);
        self.from_standby.feed(bytes, |head| {
            if copy_both
                && head.kind == b'd'
                && head.body.first() == Some(&b'r')
                && let Some(flush) = lsn_at(head.body, 9)
            {
                *reported = head.body[1..].first_chunk().copied();
                saw(Sighting::Flushed { flush });
            }
        })
    }
}

fn heard(head: Head<'_>) -> Option<Sighting> {
    match head.body.first()? {
        b'w' => {
            let log = head.length.saturating_sub(WAL_HEADER_BYTES) as u64;
            let shipped = lsn_at(head.body, 1).map(|start| Lsn(start.0.saturating_add(log)));
            lsn_at(head.body, 9).map(|end| Sighting::Heard { end, shipped })
        }
        b'k' => lsn_at(head.body, 1).map(|end| Sighting::Heard { end, shipped: None }),
        _ => None,
    }
}

fn lsn_at(body: &[u8], at: usize) -> Option<Lsn> {
    let bytes = body.get(at..at + 8)?;
    Some(Lsn(u64::from_be_bytes(bytes.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let mut out = vec![kind];
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(&body);
        out
    }

    fn n(value: u64) -> [u8; 8] {
        value.to_be_bytes()
    }

    fn status(write: u64, flush: u64) -> Vec<u8> {
        applied(write, flush, 0)
    }

    fn applied(write: u64, flush: u64, apply: u64) -> Vec<u8> {
        message(b'd', &[b"r", &n(write), &n(flush), &n(apply), &n(7), b"\0"])
    }

    #[test]
    fn a_stream_is_read_at_every_cut() {
        let wal = vec![b'd'; 70_000];
        let down = [
            message(b'S', &[b"server_version\x0015\0"]),
            message(b'Z', &[b"I"]),
            message(b'W', &[&[0, 0, 0]]),
            message(b'd', &[b"k", &n(100), &n(1), b"\x01"]),
            message(b'd', &[b"w", &n(100), &n(300), &n(1), &wal]),
            message(b'c', &[]),
            message(b'd', &[b"k", &n(999), &n(1), b"\x01"]),
        ]
        .concat();
        let expected = [
            Sighting::CopyBothBegan,
            Sighting::Heard { end: Lsn(100), shipped: None },
            Sighting::Heard { end: Lsn(300), shipped: Some(Lsn(100 + 70_000)) },
            Sighting::CopyBothEnded,
        ];
        for cut in (0..down.len().min(200)).chain(down.len() - 50..down.len()) {
            let mut tap = Tap::default();
            let mut seen = Vec::new();
            let (a, b) = down.split_at(cut);
            tap.primary_said(a, |s| seen.push(s)).unwrap();
            tap.primary_said(b, |s| seen.push(s)).unwrap();
            assert_eq!(seen, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_report_of_a_write_alone_is_told_once_and_no_other() {
        let wal = message(b'd', &[b"w", &n(40), &n(50), &n(1), b"wal"]);
        let mut tap = Tap::default();
        assert_eq!(tap.tidings(&status(50, 40)), Tidings::Other, "nothing is before streaming");
        tap.primary_said(&message(b'W', &[&[0, 0, 0]]), |_| {}).unwrap();
        assert_eq!(tap.tidings(&status(50, 40)), Tidings::Other, "no WAL came");
        tap.primary_said(&wal, |_| {}).unwrap();
        assert_eq!(tap.tidings(&status(50, 50)), Tidings::Other, "the report of the flush passes");
        let mut asking = status(50, 40);
        asking[38] = 1;
        assert_eq!(tap.tidings(&asking), Tidings::Other, "it asks for an answer");
        assert_eq!(tap.tidings(&[status(50, 40), status(50, 50)].concat()), Tidings::Other);
        assert_eq!(tap.tidings(&status(50, 40)), Tidings::Written);
        assert_eq!(
            tap.tidings(&status(50, 40)),
            Tidings::Other,
            "the answer to a keepalive passes, however long the flush takes"
        );
        tap.primary_said(&wal, |_| {}).unwrap();
        tap.standby_said(&status(50, 50)[..20], |_| {}).unwrap();
        assert_eq!(
            tap.tidings(&status(60, 50)),
            Tidings::Other,
            "in the middle of a message these are other bytes"
        );
    }

    #[test]
    fn a_report_with_the_positions_of_the_last_tells_of_what_was_applied() {
        let mut tap = Tap::default();
        tap.standby_said(&status(50, 50), |_| {}).unwrap();
        tap.primary_said(&message(b'W', &[&[0, 0, 0]]), |_| {}).unwrap();
        assert_eq!(tap.tidings(&applied(50, 50, 50)), Tidings::Other, "none passed while streaming");
        tap.standby_said(&status(50, 50), |_| {}).unwrap();
        assert_eq!(tap.tidings(&applied(50, 50, 50)), Tidings::Applied);
        let mut asking = applied(50, 50, 50);
        asking[38] = 1;
        assert_eq!(tap.tidings(&asking), Tidings::Other, "it asks for an answer");
        assert_eq!(tap.tidings(&applied(60, 60, 50)), Tidings::Other, "a flush");
        tap.standby_said(&applied(60, 60, 50), |_| {}).unwrap();
        assert_eq!(tap.tidings(&applied(50, 50, 50)), Tidings::Other, "not those of the last");
        assert_eq!(tap.tidings(&applied(60, 60, 60)), Tidings::Applied);
    }

    #[test]
    fn the_request_for_a_keepalive_is_a_status_without_positions() {
        assert_eq!(KEEPALIVE_REQUEST[..], message(b'd', &[b"r", &n(0), &n(0), &n(0), &n(0), b"\x01"]));
    }

    #[test]
    fn flushes_count_only_in_copy_both() {
        let mut tap = Tap::default();
        let mut seen = Vec::new();
        tap.standby_said(&status(9, 8), |s| seen.push(s)).unwrap();
        assert!(seen.is_empty(), "a status before the primary answered START_REPLICATION is nobody's");
        tap.primary_said(&message(b'W', &[&[0, 0, 0]]), |_| {}).unwrap();
        tap.standby_said(&status(50, 40), |s| seen.push(s)).unwrap();
        assert_eq!(seen, [Sighting::Flushed { flush: Lsn(40) }]);
    }

    #[test]
    fn a_base_backup_is_not_mistaken_for_a_stream() {
        let mut tap = Tap::default();
        let mut seen = Vec::new();
        let backup = [message(b'H', &[&[0, 0, 0]]), message(b'd', &[b"w", &n(1), &n(2), b"tar"])].concat();
        tap.primary_said(&backup, |s| seen.push(s)).unwrap();
        assert!(seen.is_empty());
    }
}
