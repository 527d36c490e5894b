//! A connection on its way: both directions between a standby's side and a primary's side, in one task.
//!
//! This is in the path of every commit, so: no channel and no lock a frame, both directions polled in the same task, bytes
//! written from where they were read, only heads of messages looked at. No timer either, but for a standby that no
//! commit waits for (see `turns` and `hold`). Replication has no half-open connections: when one side ends, what it said is
//! delivered and the relay ends.
//!
//! Room for later: a rate limit would make [`Relay`] stop reading from the primary's side until it is lifted.

use super::applied::Applied;
use super::pump::{Pass, Pump, PumpError, Step};
use super::scan::Malformed;
use super::tap::{KEEPALIVE_REQUEST, Sighting, Tap, Tidings};
use super::telemetry::Traffic;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

/// How long one side may take for the last bytes of the other.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Rounds of both directions before other tasks get their turn, and whoever wants to cut gets the lock.
const ROUNDS_PER_POLL: u32 = 16;

/// Told what passes. Called inside the relay's poll: must not block.
pub trait Observe: Send + Unpin {
    /// Before the bytes leave.
    fn saw(&mut self, sighting: Sighting);
    /// Whether the primary is asked for a keepalive when a stream begins.
    fn asks_for_keepalive(&self) -> bool {
        false
    }
    /// Whether reports of writes that are not flushed yet stay here, and those of what was applied wait for others.
    fn thins_reports(&self) -> bool {
        false
    }
    /// What the primary says may wait until then: another standby's acknowledgement comes first.
    fn waits_until(&self) -> Option<Instant> {
        None
    }
    /// What the primary has said so far may not leave before then, when it is asked again.
    fn holds_until(&mut self) -> Option<Instant> {
        None
    }
    /// So much was read from the primary at once.
    fn took_from_primary(&mut self, _bytes: usize) {}
    /// Everything received from the standby so far was handed to the primary's side.
    fn delivered_to_primary(&mut self) {}
}

/// How a relay ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    #[error("the standby's side closed the connection")]
    Standby,
    #[error("the primary's side closed the connection")]
    Primary,
    #[error("the connection broke: {0}")]
    Broken(std::io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("one side did not take the last bytes of the other")]
    Undelivered,
    #[error("it was cut")]
    Cut,
}

impl From<PumpError> for End {
    fn from(error: PumpError) -> End {
        match error {
            PumpError::Sink(error) => End::Broken(error),
            PumpError::Malformed(malformed) => End::Malformed(malformed),
        }
    }
}

/// `S` is the standby's side, `P` the primary's.
pub struct Relay<S, P, O> {
    standby: S,
    primary: P,
    observer: O,
    tap: Tap,
    applied: Applied,
    down: Pump,
    up: Pump,
    drain: Option<Pin<Box<Sleep>>>,
    turn: Option<Pin<Box<Sleep>>>,
    alarm: Option<Pin<Box<Sleep>>>,
    traffic: Traffic,
}

impl<S, P, O> Relay<S, P, O>
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
    O: Observe,
{
    /// `received` was already read from the primary's side: whole messages or a part of one, less than a buffer.
    pub fn new(
        standby: S,
        primary: P,
        observer: O,
        received: &[u8],
        traffic: Traffic,
    ) -> Result<Self, Malformed> {
        let mut relay = Relay {
            standby,
            primary,
            observer,
            tap: Tap::default(),
            applied: Applied::default(),
            down: Pump::preloaded(received),
            up: Pump::default(),
            drain: None,
            turn: None,
            alarm: None,
            traffic,
        };
        relay.tap.primary_said(received, |sighting| relay.observer.saw(sighting))?;
        Ok(relay)
    }

    /// Nothing of the primary's is under way, and what it says next may wait.
    fn waits_its_turn(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.down.is_idle() {
            return false;
        }
        let Some(until) = self.observer.waits_until() else { return false };
        self.sleeps(cx, until)
    }

    /// Whether it is not `until` yet; it is polled again then.
    fn sleeps(&mut self, cx: &mut Context<'_>, until: Instant) -> bool {
        let turn = self.turn.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if turn.deadline() != until {
            turn.as_mut().reset(until);
        }
        turn.as_mut().poll(cx).is_pending()
    }

    /// Lets go what was held back, if it may leave now. Of a side that has ended, what it said last is delivered.
    fn look_at_held(&mut self, cx: &mut Context<'_>) {
        while self.down.is_held() {
            match self.observer.holds_until().filter(|_| !self.down.source_ended()) {
                Some(until) if self.sleeps(cx, until) => return,
                Some(_) => {}
                None => self.down.release(),
            }
        }
    }

    /// Lets go the report that waits for another one, when it has waited long enough.
    fn look_at_applied(&mut self, cx: &mut Context<'_>) {
        let Some(due) = self.applied.due() else { return };
        // Not set anew for each of them: one that rings too early costs less than that.
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if alarm.as_mut().poll(cx).is_pending() {
            return;
        }
        if alarm.deadline() < due {
            alarm.as_mut().reset(due);
            if alarm.as_mut().poll(cx).is_pending() {
                return;
            }
        }
        // Else it goes behind what is on its way, or that supersedes it.
        if self.up.is_idle()
            && self.tap.is_between_messages_of_standby()
            && let Some(report) = self.applied.take()
        {
            self.up.inject(&report);
        }
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        self.look_at_held(cx);
        self.look_at_applied(cx);
        let waits = self.waits_its_turn(cx);
        let Relay { standby, primary, observer, tap, applied, down, up, traffic, .. } = self;
        let mut began = false;
        let mut downward = Step::default();
        if !waits {
            downward = down.step(cx, primary, standby, |bytes| {
                tap.primary_said(bytes, |sighting| {
                    began |= sighting == Sighting::CopyBothBegan;
                    observer.saw(sighting);
                })?;
                Ok(if observer.holds_until().is_some() { Pass::Hold } else { Pass::Forward })
            })?;
        }
        if downward.read > 0 {
            observer.took_from_primary(downward.read);
        }
        if began && observer.asks_for_keepalive() && tap.is_between_messages_of_standby() {
            up.inject(&KEEPALIVE_REQUEST);
        }
        let upward: Step = up.step(cx, standby, primary, |bytes| {
            if observer.thins_reports() {
                match tap.tidings(bytes) {
                    Tidings::Written => return Ok(Pass::Withhold),
                    Tidings::Applied if applied.put_aside(bytes, Instant::now()) => {
                        return Ok(Pass::Withhold);
                    }
                    Tidings::Applied | Tidings::Other => {}
                }
            }
            tap.standby_said(bytes, |sighting| {
                if matches!(sighting, Sighting::Flushed { .. }) {
                    applied.superseded();
                }
                observer.saw(sighting);
            })?;
            Ok(Pass::Forward)
        })?;
        if upward.delivered {
            observer.delivered_to_primary();
        }
        traffic.count(downward.wrote, upward.wrote);
        Ok(downward.read + downward.wrote + upward.read + upward.wrote > 0)
    }

    fn ended(&mut self, cx: &mut Context<'_>) -> Option<End> {
        if self.down.closed() {
            return Some(End::Primary);
        }
        if self.up.closed() {
            return Some(End::Standby);
        }
        if self.down.source_ended() || self.up.source_ended() {
            let drain = self.drain.get_or_insert_with(|| Box::pin(tokio::time::sleep(DRAIN_LIMIT)));
            if drain.as_mut().poll(cx).is_ready() {
                return Some(End::Undelivered);
            }
        }
        None
    }
}

impl<S, P, O> Future for Relay<S, P, O>
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
    O: Observe,
{
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let relay = self.get_mut();
        for _ in 0..ROUNDS_PER_POLL {
            let moved = match relay.round(cx) {
                Ok(moved) => moved,
                Err(end) => return Poll::Ready(end),
            };
            if let Some(end) = relay.ended(cx) {
                return Poll::Ready(end);
            }
            if !moved {
                relay.down.rest();
                relay.up.rest();
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
