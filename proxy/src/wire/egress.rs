//! Commit safety at the way out of a gate (DESIGN §3 *A commit*).
//!
//! Postgres answers a cancelled wait for the quorum with a WARNING and then with success, although the commit is on
//! the primary alone. The gate says error 40003 in place of the warning, drops the rest of that answer, and lets its
//! ReadyForQuery pass only behind a barrier: after that everything the session did is on a quorum.

use super::reply::{ErrorReply, field};

/// The function that warns; not localised, unlike the message.
const WAIT_ROUTINE: &str = "SyncRepWaitForLSN";
/// SQLSTATE of the warning when the session is being terminated (`SyncRepWaitForLSN`, `ProcDiePending`).
const ADMIN_SHUTDOWN: &[u8] = b"57P01";
/// What the message begins with (`lc_messages` is C in our instances); used when it is too long to be seen whole.
const WAIT_MESSAGE: &[u8] = b"canceling";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Passing,
    /// The rest of an answer is dropped; its end waits for a barrier.
    Dropping,
    /// The barrier has passed.
    Passed,
}

/// What to do with a message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    /// Send this in its place.
    Replace(Vec<u8>),
    /// Keep it until [`Egress::barrier_passed`].
    Barrier,
    /// Drop it, and tell the server that no data will come: the client has been told of an error already.
    FailCopy,
}

#[derive(Debug, Default)]
pub struct Egress {
    state: State,
}

impl Egress {
    /// Whether every message has to be looked at.
    pub fn is_dropping(&self) -> bool {
        self.state != State::Passing
    }

    pub fn barrier_passed(&mut self) {
        self.state = State::Passed;
    }

    /// Judges one message, `body` being all of it or at least its beginning.
    pub fn judge(&mut self, tag: u8, body: &[u8]) -> Verdict {
        if self.state == State::Passing {
            if tag == b'N' && is_cancelled_wait(body) {
                self.state = State::Dropping;
                // The backend was told to end, and says nothing more: what became of the commit is found out by
                // whoever stands next to the client.
                if field(body, b'C') == Some(ADMIN_SHUTDOWN) {
                    return Verdict::Drop;
                }
                return Verdict::Replace(unknown_completion().bytes());
            }
            return Verdict::Pass;
        }
        match tag {
            b'Z' if self.state == State::Dropping => Verdict::Barrier,
            b'Z' => {
                self.state = State::Passing;
                Verdict::Pass
            }
            // Neither belongs to the answer.
            b'S' | b'A' => Verdict::Pass,
            b'G' => Verdict::FailCopy,
            _ => Verdict::Drop,
        }
    }
}

/// Whether a NoticeResponse says that a commit did not wait for its quorum.
pub fn is_cancelled_wait(body: &[u8]) -> bool {
    if field(body, b'V') != Some(b"WARNING") {
        return false;
    }
    match field(body, b'R') {
        Some(routine) => std::str::from_utf8(routine).is_ok_and(is_cancelled_wait_routine),
        None => field(body, b'M').is_some_and(|m| m.starts_with(WAIT_MESSAGE)),
    }
}

/// Whether a warning comes from the function that waits for the quorum.
pub fn is_cancelled_wait_routine(routine: &str) -> bool {
    routine == WAIT_ROUTINE
}

fn unknown_completion() -> ErrorReply {
    ErrorReply::error("40003", "the wait for the commit's quorum was cancelled")
        .detail("The transaction has committed on the primary, but it was not known to be on a second copy when the wait ended; it may be lost if the primary is lost.")
        .hint("Ask the database whether the change is there before repeating it: the next answer of this session is given only after everything before it is on a quorum.")
}

/// `CopyFail` without a reason worth reading.
pub const COPY_FAIL: [u8; 6] = [b'f', 0, 0, 0, 5, 0];

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(severity: &str, routine: &str) -> Vec<u8> {
        format!("S{severity}\0V{severity}\0C01000\0Mcanceling wait\0R{routine}\0\0").into_bytes()
    }

    #[test]
    fn a_cancelled_wait_never_becomes_a_success() {
        let mut egress = Egress::default();
        assert_eq!(egress.judge(b'N', &notice("WARNING", "other")), Verdict::Pass);
        assert_eq!(egress.judge(b'N', &notice("NOTICE", "SyncRepWaitForLSN")), Verdict::Pass);
        assert_eq!(egress.judge(b'C', b"COMMIT\0"), Verdict::Pass);
        let Verdict::Replace(error) = egress.judge(b'N', &notice("WARNING", "SyncRepWaitForLSN")) else {
            panic!("replaced")
        };
        assert_eq!(field(&error[5..], b'C'), Some(&b"40003"[..]));
        assert_eq!(egress.judge(b'C', b"COMMIT\0"), Verdict::Drop);
        assert_eq!(egress.judge(b'S', b"a\0b\0"), Verdict::Pass);
        assert_eq!(egress.judge(b'N', &notice("WARNING", "SyncRepWaitForLSN")), Verdict::Drop);
        assert_eq!(egress.judge(b'G', b""), Verdict::FailCopy);
        assert_eq!(egress.judge(b'Z', b"I"), Verdict::Barrier);
        assert_eq!(egress.judge(b'Z', b"I"), Verdict::Barrier);
        egress.barrier_passed();
        assert_eq!(egress.judge(b'Z', b"I"), Verdict::Pass);
        assert_eq!(egress.judge(b'C', b"SELECT 1\0"), Verdict::Pass);
        // Of a backend that ends nothing is told, and no success after it.
        let ending = b"SWARNING\0VWARNING\0C57P01\0Mcanceling\0RSyncRepWaitForLSN\0\0";
        assert_eq!(egress.judge(b'N', ending), Verdict::Drop);
        assert_eq!(egress.judge(b'C', b"COMMIT\0"), Verdict::Drop);
        assert_eq!(egress.judge(b'Z', b"I"), Verdict::Barrier);
    }

    #[test]
    fn a_warning_cut_off_before_its_routine_is_known_by_its_message() {
        assert!(is_cancelled_wait(b"SWARNING\0VWARNING\0C01000\0Mcanceling wait\0Wvery long"));
        assert!(!is_cancelled_wait(b"SWARNING\0VWARNING\0C01000\0Mhello\0Wvery long"));
    }
}
