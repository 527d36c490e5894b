//! From the server to the client.

use super::{Event, Relay, Role, Server, Step, poll_fill};
use crate::gate::Commits;
use crate::guard::REFUSED_TEXT;
use crate::wire::control::{CONTROL, Control};
use crate::wire::egress::{COPY_FAIL, Verdict};
use crate::wire::header::{HEADER_BYTES, Header, c_string};
use crate::wire::lane::Front;
use crate::wire::reply::{ErrorReply, field};
use std::task::{Context, Poll};

/// Messages that decide something are seen whole if that is possible.
fn is_read_whole(tag: u8) -> bool {
    matches!(tag, b'Z' | b'C' | b'S' | b'E' | b'N' | b'K' | CONTROL)
}

enum Judged {
    Pass,
    Drop,
    Replace(Vec<u8>),
    Stop(Event),
}

impl Relay {
    pub(super) fn poll_down(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Stuck;
        loop {
            let sending = self.down.has_unsent();
            match self.poll_flush_client(cx) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Step::Event(Event::ClientClosed),
                Poll::Pending => return step,
            }
            if sending {
                step = Step::Moved;
            }
            if self.parking && self.may_leave() && self.stop_down.is_none() {
                return Step::Event(Event::Parked);
            }
            if self.stop_down.is_none() && self.may_release() {
                return Step::Event(Event::Idle);
            }
            if let Some(event) = self.stop_down.take() {
                return Step::Event(event);
            }
            let Some(server) = &mut self.server else { return step };
            // The check of the lease, or of a confirmation: after Postgres produced the bytes, before the first of
            // them leaves.
            if self.down.has_unjudged() {
                let until = server.pass.as_mut().map_or(u64::MAX, |p| p.leaves_until(self.down.received()));
                self.down.show_until(until);
                if until > self.down.judged() {
                    self.judge_down();
                }
                // When all was for us, the session may be free to go now.
                if self.down.has_unsent() || self.stop_down.is_some() || !self.down.has_unjudged() {
                    continue;
                }
            }
            if !self.down.has_space() {
                return step;
            }
            let Some(server) = &mut self.server else { return step };
            match poll_fill(&mut server.stream, &mut self.down, cx) {
                Poll::Ready(Ok(n)) if n > 0 => step = Step::Moved,
                Poll::Ready(_) => {
                    // Results that may not leave yet are waited for, then the end is told.
                    let received = self.down.received();
                    if self.down.has_unjudged()
                        && (self.holds_end || server.pass.as_ref().is_some_and(|p| p.holds_back(received)))
                    {
                        return step;
                    }
                    let why = "the server closed the connection".to_owned();
                    return Step::Event(if self.client_ended {
                        Event::ClientClosed
                    } else if server.pass.is_some() {
                        Event::ServerEnded(why)
                    } else {
                        // A gate that is alive says why.
                        Event::ServerLost(why)
                    });
                }
                Poll::Pending => return step,
            }
        }
    }

    /// Judges what the server sent.
    fn judge_down(&mut self) {
        loop {
            let front = match self.down.front(is_read_whole) {
                Ok(front) => front,
                Err(_) => {
                    self.stop_down =
                        Some(Event::ServerLost("the server sent a malformed message".to_owned()));
                    return;
                }
            };
            match front {
                Front::Nothing => return,
                Front::Part(bytes) if self.dropping_down => {
                    self.down.remove(bytes);
                    self.dropping_down &= !self.down.at_boundary();
                }
                Front::Part(bytes) => self.down.pass(bytes),
                Front::Whole(header) if self.is_for_us(header, header.total) => {
                    self.down.remove(header.total)
                }
                Front::Large(header) if self.is_for_us(header, self.down.unjudged().len()) => {
                    self.dropping_down = true;
                    self.down.begin_large(header);
                }
                Front::Whole(header) => match header.tag {
                    b'1' if !self.is_dropping() => {
                        if self.parse_complete() {
                            self.down.pass(header.total);
                        } else {
                            self.down.remove(header.total);
                        }
                    }
                    // Rows, and what frames them: the bulk of all messages.
                    b'D' | b'T' | b'd' | b'2' | b'n' | b't' | b'3' | b's' | b'I' if !self.is_dropping() => {
                        self.down.pass(header.total);
                    }
                    _ => {
                        if !self.settle_down(header) {
                            return;
                        }
                    }
                },
                Front::Large(header) => {
                    let judged = self.judge_message_down(header, self.down.unjudged().len());
                    match judged {
                        Judged::Pass => {}
                        Judged::Drop => self.dropping_down = true,
                        Judged::Replace(other) => {
                            self.down.insert(&other);
                            self.dropping_down = true;
                        }
                        Judged::Stop(event) => {
                            self.stop_down = Some(event);
                            return;
                        }
                    }
                    self.down.begin_large(header);
                }
            }
        }
    }

    /// False: it answers a Parse of ours.
    #[inline]
    fn parse_complete(&mut self) -> bool {
        if let Some(naming) = &mut self.naming {
            naming.parse_complete(self.tracker.kept().parses_answered());
        }
        self.tracker.parse_complete()
    }

    #[inline]
    fn is_dropping(&self) -> bool {
        self.server.as_ref().is_some_and(|s| s.egress.is_dropping())
    }

    /// Whether the message at the front may tell of a commit that is not known to be on a quorum. The session is
    /// woken when it is worth looking again.
    fn waits_for_evidence(&mut self, header: Header) -> bool {
        let Some(Server { pass: Some(pass), egress, .. }) = &mut self.server else { return false };
        let asks = self.unguarded || pass.gate().commits() == Commits::Strict;
        // What is dropped tells nothing.
        if !asks || egress.is_dropping() {
            return false;
        }
        let body = &self.down.unjudged()[HEADER_BYTES..header.total];
        if !self.tracker.may_tell_of_commit(header.tag, body) {
            return false;
        }
        let position = self.down.judged() + header.total as u64;
        !pass.is_on_quorum(position, self.down.received())
    }

    /// Judges a whole message that decides something. False: judge no more for now.
    fn settle_down(&mut self, header: Header) -> bool {
        self.holds_end = matches!(header.tag, b'C' | b'Z') && self.waits_for_evidence(header);
        if self.holds_end {
            return false;
        }
        match self.judge_message_down(header, header.total) {
            Judged::Pass => self.down.pass(header.total),
            Judged::Drop => self.down.remove(header.total),
            Judged::Replace(other) => self.down.replace(header.total, &other),
            Judged::Stop(event) => {
                self.stop_down = Some(event);
                return false;
            }
        }
        true
    }

    /// `seen` bytes of the message are there.
    fn judge_message_down(&mut self, header: Header, seen: usize) -> Judged {
        let body = &self.down.unjudged()[HEADER_BYTES..seen];
        let mut judged = Judged::Pass;
        if let Some(server) = &mut self.server
            && server.pass.is_some()
            && (header.tag == b'N' || server.egress.is_dropping())
        {
            match server.egress.judge(header.tag, body) {
                Verdict::Pass => {}
                Verdict::Drop => judged = Judged::Drop,
                Verdict::Replace(error) => {
                    tracing::warn!(
                        "a commit's wait for its quorum was cancelled; its session was told 40003"
                    );
                    return Judged::Replace(error);
                }
                Verdict::Barrier => return Judged::Stop(Event::Barrier),
                Verdict::FailCopy => return self.fail_copy(),
            }
        }
        match header.tag {
            b'Z' => {
                self.tracker.ready(body.first().copied().unwrap_or(b'I'));
                if let Some(naming) = &mut self.naming {
                    naming.synced(self.tracker.kept().parses_answered());
                }
            }
            b'C' => {
                self.tracker.complete(body);
                if let Some(naming) = &mut self.naming {
                    naming.complete(body.strip_suffix(b"\0").unwrap_or(body));
                }
            }
            b'1' => {
                self.parse_complete();
            }
            b'G' => self.tracker.copy_in_response(),
            b'K' if let Some((pid, secret)) = backend_key(body) => self.note_backend(pid, secret),
            _ if self.role != Role::Entry => {}
            b'S' => {
                if let Some((name, rest)) = c_string(body)
                    && let Some((value, _)) = c_string(rest)
                    && self.params.set(name, value)
                {
                    self.tracker.parameter();
                }
            }
            b'E' => return self.judge_error(header, seen, judged),
            // The postmaster's farewell to a backend; what it means for the session is said by us.
            b'N' if field(body, b'C') == Some(b"57P02") => return Judged::Drop,
            CONTROL => {
                return match Control::parse(body) {
                    Some(control) if self.server.as_ref().is_some_and(|s| s.pass.is_none()) => {
                        Judged::Stop(Event::Control(control))
                    }
                    _ => Judged::Stop(Event::ServerLost("the server sent a malformed message".to_owned())),
                };
            }
            _ => {}
        }
        judged
    }

    /// Nobody will send the data that the server asks for: the client was told of an error already.
    fn fail_copy(&mut self) -> Judged {
        if !self.up.at_boundary() || !self.tracker.answers_simple() {
            return Judged::Stop(Event::ServerLost(
                "a COPY followed a commit whose wait was cancelled".to_owned(),
            ));
        }
        self.up.insert(&COPY_FAIL);
        self.sent_up += COPY_FAIL.len() as u64;
        Judged::Drop
    }

    fn judge_error(&mut self, header: Header, seen: usize, judged: Judged) -> Judged {
        let body = &self.down.unjudged()[HEADER_BYTES..seen];
        if matches!(field(body, b'V'), Some(b"FATAL" | b"PANIC")) {
            let code = field(body, b'C').unwrap_or_default();
            // Postgres is going down, or this backend was told to go: the session need not.
            if matches!(code, b"57P01" | b"57P02" | b"57P03") {
                let why = String::from_utf8_lossy(field(body, b'M').unwrap_or_default()).into_owned();
                return Judged::Stop(Event::ServerEnded(why));
            }
            self.fatal_sent = true;
        } else if self.tracker.is_opening() {
            // Nothing of what was sent behind it has been carried out.
            let why = String::from_utf8_lossy(field(body, b'M').unwrap_or_default()).into_owned();
            return Judged::Stop(Event::ServerLost(format!("the transaction could not be opened: {why}")));
        }
        if self.refused > 0
            && header.total == seen
            && field(body, b'M')
                .is_some_and(|m| m.windows(REFUSED_TEXT.len()).any(|w| w == REFUSED_TEXT.as_bytes()))
        {
            self.refused -= 1;
            return Judged::Replace(refusal("ERROR").bytes());
        }
        judged
    }
}

/// What a refused statement is answered with.
pub fn refusal(severity: &'static str) -> ErrorReply {
    let mut reply = ErrorReply::error("0A000", "synchronous_commit cannot be changed here")
        .detail("Every commit is acknowledged only when a second copy has it; a statement that could turn this off is refused.")
        .hint("Leave synchronous_commit as it is. SHOW synchronous_commit is allowed.");
    reply.severity = severity;
    reply
}

fn backend_key(body: &[u8]) -> Option<(i32, u32)> {
    let (pid, secret) = body.split_first_chunk::<4>()?;
    let secret = <[u8; 4]>::try_from(secret).ok()?;
    Some((i32::from_be_bytes(*pid), u32::from_be_bytes(secret)))
}
