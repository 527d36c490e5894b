//! A client's session: it lives as long as the client's connection, and outlives its servers.
//!
//! What happens when a server is lost follows from the [`Tracker`](crate::wire::tracker::Tracker) alone: between
//! transactions and without state the client is told nothing and its next request waits for another server; a
//! transaction that cannot have committed ends with 40001; a commit in flight is asked for at the next primary; what cannot
//! be rebuilt ends the session, with a reason.

pub mod attach;
pub mod follow;
pub mod hello;
pub mod login;
pub mod outcome;
pub mod params;
pub mod pooling;
pub mod rebuild;
pub mod shared;

use crate::cancel::CancelKey;
use crate::config::{FAREWELL_DEADLINE, LAST_WORD, RETRY_PAUSE};
use crate::gate::door::Door;
use crate::gate::serve::barrier;
use crate::relay::{Event, Relay, Server, down};
use crate::route::{Place, Target, place};
use crate::wire::control::{Control, End};
use crate::wire::inquiry::{failing, makings};
use crate::wire::reply::{ErrorReply, command_complete, parameter_status, ready_for_query};
use crate::wire::tracker::Loss;
use attach::Attached;
use follow::{Denied, Primary};
use params::Params;
use pooling::Member;
use quorate_throttle::Permit;
use rebuild::{Failure, rebuild};
use shared::{RouteEntry, Shared};
use std::sync::Arc;
use tokio::time::{Instant, timeout, timeout_at};

/// What a login has made.
pub struct Made {
    pub target: Target,
    pub parameters: Vec<(String, String)>,
    pub primary: Primary,
    pub key: CancelKey,
    pub entry: RouteEntry,
    pub permit: Permit,
    /// It shares its servers.
    pub member: Option<Member>,
}

pub struct Session {
    shared: Arc<Shared>,
    relay: Relay,
    target: Target,
    parameters: Vec<(String, String)>,
    /// Where its server is, or was last.
    primary: Primary,
    /// It shares its servers, and has one while it needs it.
    member: Option<Member>,
    /// Another replica is primary now; until then the gate of the former one may say what it delivered.
    last_word: Option<Instant>,
    // These end with the session.
    _key: CancelKey,
    _entry: RouteEntry,
    _permit: Permit,
}

const MOVED: &str = "another replica has become the primary";

/// Whether the session goes on.
enum Next {
    GoOn,
    /// It ends; the client may have been told why.
    End,
}

pub(crate) fn stopping() -> ErrorReply {
    ErrorReply::fatal("57P01", "terminating connection due to administrator command")
        .detail("The node that this client is connected to is being stopped.")
        .hint("Connect to another node of the cluster.")
}

impl Session {
    pub fn new(shared: Arc<Shared>, relay: Relay, made: Made) -> Self {
        let Made { target, parameters, primary, key, entry, permit, member } = made;
        Session {
            shared,
            relay,
            target,
            parameters,
            primary,
            member,
            last_word: None,
            _key: key,
            _entry: entry,
            _permit: permit,
        }
    }

    /// Serves it to its end. What happens seldom has room of its own while it happens, so that an idle session takes little.
    pub async fn run(mut self: Box<Self>) {
        loop {
            let event = match self.last_word {
                None => self.relay.event().await,
                Some(until) => timeout_at(until, self.relay.event())
                    .await
                    .unwrap_or_else(|_| Event::ServerLost(MOVED.to_owned())),
            };
            let next = match event {
                Event::Signal => Box::pin(self.look()).await,
                Event::Request if self.member.is_some() => Box::pin(self.attach_shared()).await,
                Event::Request => Box::pin(self.attach()).await,
                Event::Idle => self.release(),
                Event::Barrier => Box::pin(self.barrier()).await,
                Event::Parked => {
                    Box::pin(self.lost_here(End::Released, "the primary is being moved to another node"))
                        .await
                }
                Event::ServerLost(why) => Box::pin(self.lost_here(End::Lost, &why)).await,
                Event::ServerEnded(why) => Box::pin(self.lost_here(End::Over, &why)).await,
                Event::Control(Control::Ended { why, end, delivered, rest }) => {
                    Box::pin(self.lost(end, &why, Some(delivered), Some(rest))).await
                }
                Event::Control(Control::NotOpen { why }) => Box::pin(self.lost_here(End::Lost, &why)).await,
                Event::ClientClosed => return,
                Event::ClientMalformed(why) => {
                    Box::pin(self.fatal(ErrorReply::fatal("08P01", why))).await;
                    Next::End
                }
                Event::Refused => {
                    Box::pin(self.fatal(down::refusal("FATAL"))).await;
                    Next::End
                }
            };
            if matches!(next, Next::End) {
                return Box::pin(hello::end(self.relay.client, &[])).await;
            }
        }
    }

    /// Something changed around the session.
    async fn look(&mut self) -> Next {
        if self.shared.stop.is_cancelled() {
            self.fatal(stopping()).await;
            return Next::End;
        }
        let Some(server) = &self.relay.server else { return Next::GoOn };
        match server.pass.as_ref().map(|p| p.door()) {
            Some(Door::Ended { end, why }) => return self.lost_here(end, &why).await,
            Some(door) => self.relay.parking = door == Door::Parking,
            None => {}
        }
        self.relay.outcomes = self.shared.tracks_outcomes(self.target.database);
        let now = place(&self.shared.map.borrow(), self.target.database);
        self.relay.paused = matches!(now, Place::Nowhere(_));
        match now {
            Place::At { replica, epoch, .. }
                if replica != self.primary.replica && epoch > self.primary.epoch =>
            {
                if self.relay.awaits_last_word() {
                    self.last_word.get_or_insert(Instant::now() + LAST_WORD);
                    return Next::GoOn;
                }
                self.lost_here(End::Lost, MOVED).await
            }
            _ => Next::GoOn,
        }
    }

    async fn barrier(&mut self) -> Next {
        if barrier(&self.relay).await {
            self.relay.barrier_passed();
            return Next::GoOn;
        }
        self.lost_here(End::Lost, "a barrier after a cancelled commit did not pass").await
    }

    async fn lost_here(&mut self, end: End, why: &str) -> Next {
        // A remote server's last words are its gate's to tell.
        let is_local = self.relay.server.as_ref().is_some_and(|server| server.pass.is_some());
        let rest = if is_local { self.relay.rest() } else { (end == End::Over).then(Vec::new) };
        self.lost(end, why, None, rest).await
    }

    /// The server is gone. `delivered`: how many bytes a remote gate took in. `rest`: all that it said and the client was
    /// not told.
    async fn lost(&mut self, end: End, why: &str, delivered: Option<u64>, rest: Option<Vec<u8>>) -> Next {
        self.last_word = None;
        let at_boundary = self.relay.down.at_boundary();
        if let Some(delivered) = delivered {
            self.relay.take_back(delivered);
        }
        let said_all = end == End::Over && rest.is_some();
        let loss = self.relay.tracker.loss(rest.as_deref().unwrap_or_default(), said_all);
        let pass = self.relay.detach().and_then(|server| server.pass);
        if let Some(member) = &mut self.member {
            member.place = None;
        }
        if let (End::Released, Some(pass)) = (end, pass) {
            pass.release();
        }
        if self.relay.fatal_sent || !at_boundary {
            self.say_rest().await;
            return Next::End;
        }
        tracing::debug!(database = %self.target.database, why, ?loss, "a session lost its server");
        match loss {
            Loss::Keep => Next::GoOn,
            Loss::Synced(answers) => {
                self.relay.answer_with(&ready_for_query(b'I').repeat(answers));
                Next::GoOn
            }
            Loss::Opened(tag) => {
                // No driver expects this to fail (asyncpg's session is of no use after that): the next request is told.
                self.relay.answer_with(&[command_complete(tag), ready_for_query(b'T').to_vec()].concat());
                self.relay.tracker.is_told(b'T');
                self.relay.abort_with(aborted(why).bytes());
                Next::GoOn
            }
            Loss::Aborted => {
                self.relay.abort_with(aborted(why).bytes());
                Next::GoOn
            }
            Loss::State(kept) => self.lost_state(why, &kept).await,
            Loss::Committing(committing) => self.resolve(*committing, why).await,
            Loss::Unknown(kept) => self.unknown(why, None, kept).await,
        }
    }

    /// Gets a server for the request that waits.
    async fn attach(&mut self) -> Next {
        let until = Instant::now() + self.shared.config.hold;
        let slot = Arc::clone(&self.relay.slot);
        let kept = self.relay.tracker.kept();
        let mut all = makings(kept.known(), kept.statements());
        all.extend((self.relay.tracker.status() == b'E').then(failing));
        let attaching = async {
            loop {
                let mut attached = self.shared.attach(&slot, &self.target, &self.parameters, until).await?;
                match rebuild(&mut attached.server.stream, &mut attached.answer, &all).await {
                    Ok(failed) => return Ok((attached, failed)),
                    Err(Failure::Refused { what, why }) => {
                        return Err(Denied::Ours(not_rebuilt(&what, &why)));
                    }
                    Err(Failure::Lost) if Instant::now() >= until => {
                        return Err(Denied::Ours(not_rebuilt(
                            "what the session held",
                            "nothing, for too long",
                        )));
                    }
                    // The next attempt finds where the primary is now.
                    Err(Failure::Lost) => tokio::time::sleep(RETRY_PAUSE).await,
                }
            }
        };
        let attached: Result<(Attached, _), Denied> = tokio::select! {
            attached = attaching => attached,
            () = self.relay.client_gone() => return Next::End,
            () = self.shared.stop.cancelled() => Err(Denied::Ours(stopping())),
        };
        let attached = match attached {
            Ok((attached, failed)) => {
                failed.iter().for_each(|name| self.relay.tracker.forget_statement(name));
                attached
            }
            Err(denied) => return self.denied(denied).await,
        };
        let Attached { server, primary, answer } = attached;
        let mut params = Params::default();
        for (name, value) in &answer.params {
            params.set(name, value);
        }
        self.go_on_at(server, primary, params, &answer.rest);
        // What changed while we were attaching.
        self.look_again()
    }

    /// There is no server for the request that waits.
    async fn denied(&mut self, denied: Denied) -> Next {
        match denied {
            Denied::Ours(error) if error.severity == "ERROR" => {
                self.relay.abort_with(error.bytes());
                Next::GoOn
            }
            denied => {
                self.relay.down.insert(&denied.fatal());
                self.say_rest().await;
                Next::End
            }
        }
    }

    /// The session has that server, which has reported `params`. `rest`: what else has come from it. The client is told of
    /// what is not as it knows it.
    fn go_on_at(&mut self, server: Server, primary: Primary, params: Params, rest: &[u8]) {
        if !self.relay.params.is(&params) {
            let mut changes = Vec::new();
            for (name, value) in params.iter() {
                if self.relay.params.set(name, value) {
                    parameter_status(&mut changes, name, value);
                }
            }
            if self.relay.params == params {
                // One copy for all who know the same.
                self.relay.params = params;
            }
            self.relay.down.insert(&changes);
        }
        self.relay.down.put_back(rest);
        self.primary = primary;
        self.relay.attach(server);
    }

    fn look_again(&self) -> Next {
        self.relay.slot.signal();
        Next::GoOn
    }

    /// Says why the session ends, if the client can be told.
    async fn fatal(&mut self, error: ErrorReply) {
        if self.relay.down.at_boundary() && !self.relay.fatal_sent {
            self.relay.detach();
            self.relay.down.insert(&error.bytes());
        }
        self.say_rest().await;
    }

    async fn say_rest(&mut self) {
        // A client that does not listen is not waited for.
        let _ = timeout(FAREWELL_DEADLINE, self.relay.flush_client()).await;
    }
}

fn not_rebuilt(what: &str, why: &str) -> ErrorReply {
    ErrorReply::fatal(
        "57P01",
        format!("the session's server is gone, and {what} could not be made at the new one"),
    )
    .detail(format!("The new server says: {why}"))
    .hint("Connect again, and make it anew.")
}

fn aborted(why: &str) -> ErrorReply {
    ErrorReply::error("40001", format!("the transaction was lost with its server: {why}"))
        .detail("Nothing of it has been committed.")
        .hint("Retry the transaction.")
}
