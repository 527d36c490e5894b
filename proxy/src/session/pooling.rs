//! The servers of a session that shares them: one for each transaction.

use super::attach::{Answer, Attached};
use super::follow::{Denied, Follow, Primary};
use super::params::Params;
use super::rebuild::{Failure, rebuild};
use super::shared::Shared;
use super::{Next, Session, not_rebuilt, stopping};
use crate::config::{RETRY_PAUSE, TELL_WAIT_AFTER};
use crate::gate::slot::Slot;
use crate::pool::server::{Idle, State};
use crate::pool::{Key, Line, Place, Waiting};
use crate::relay::Server;
use crate::route::Target;
use crate::wire::inquiry::{Known, Making, closing, failing, makings, resetting};
use crate::wire::reply::ErrorReply;
use crate::wire::statements::OnServer;
use quorate_model::PoolMode;
use std::sync::Arc;
use tokio::time::{Instant, sleep_until};

/// A session's part in the pool of its database.
pub struct Member {
    pub key: Arc<Key>,
    /// Of the server that it has.
    pub place: Option<Place>,
    pid: i32,
    secret: u32,
}

impl Member {
    pub fn new(key: Arc<Key>) -> Member {
        Member { key, place: None, pid: 0, secret: 0 }
    }

    /// The session has that server.
    pub fn has(&mut self, place: Place, pid: i32, secret: u32) {
        *self = Member { key: Arc::clone(&self.key), place: Some(place), pid, secret };
    }
}

/// What a session is to find on its server.
struct Wanted {
    known: Known,
    /// It is in a transaction block that has failed.
    failed_block: bool,
}

/// A server of the pool for a session.
struct Taken {
    server: Server,
    primary: Primary,
    pid: i32,
    secret: u32,
    params: Params,
    statements: OnServer,
    /// What came from the server and is for the client.
    rest: Vec<u8>,
}

impl Shared {
    /// Whether sessions of that database that begin now share servers.
    pub fn pools(&self, target: &Target) -> bool {
        let map = self.map.borrow();
        map.databases.get(&target.database).is_some_and(|d| d.options.pool_mode == PoolMode::Transaction)
    }

    pub fn ask_for_place(&self, target: &Target, key: &Arc<Key>) -> Line {
        let size = self.map.borrow().databases.get(&target.database).map_or(1, |d| d.options.pool_size);
        self.pools.ask(target.database, target.server, size, key)
    }

    /// A server for the place: the idle one that is in it, or another. On it is then what is `wanted`, and nothing else.
    async fn server_for(
        &self,
        place: &mut Place,
        slot: &Arc<Slot>,
        target: &Target,
        parameters: &[(String, String)],
        wanted: &Wanted,
        until: Instant,
    ) -> Result<Taken, Denied> {
        loop {
            let idle = place.take_server();
            let reused = match idle {
                None => None,
                Some((idle, is_ours)) => {
                    let primary = Follow::new(self, target, until).primary().await?;
                    idle.take(slot, primary, is_ours)
                }
            };
            let (server, state, mut answer) = match reused {
                Some((server, state)) => (server, state, Answer::default()),
                None => {
                    let Attached { server, primary, answer } =
                        self.attach(slot, target, parameters, until).await?;
                    (server, fresh(primary, &answer), answer)
                }
            };
            let State { primary, pid, secret, mut params, settings, mut statements } = state;
            let mut all: Vec<Making> = closing(&statements.to_close()).into_iter().collect();
            if settings != wanted.known.settings {
                all.extend((!settings.is_empty()).then(resetting));
                all.extend(makings(&wanted.known, &Default::default()));
            }
            all.extend(wanted.failed_block.then(failing));
            let mut server = server;
            match rebuild(&mut server.stream, &mut answer, &all).await {
                // Only the client's own statements can fail, and those are not among them.
                Ok(_) => {}
                Err(Failure::Refused { what, why }) => return Err(Denied::Ours(not_rebuilt(&what, &why))),
                Err(Failure::Lost) if Instant::now() >= until => {
                    return Err(Denied::Ours(not_rebuilt("what the session held", "nothing, for too long")));
                }
                Err(Failure::Lost) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            }
            for (name, value) in &answer.params {
                params.set(name, value);
            }
            self.note_backend(slot, target, primary, pid, secret);
            return Ok(Taken { server, primary, pid, secret, params, statements, rest: answer.rest });
        }
    }
}

/// Of a server that was just made.
fn fresh(primary: Primary, answer: &Answer) -> State {
    let (pid, secret) = (answer.pid, answer.secret);
    State {
        primary,
        pid,
        secret,
        params: Params::default(),
        settings: Vec::new(),
        statements: OnServer::default(),
    }
}

impl Session {
    /// Gets a server of the pool for the request that waits.
    pub(super) async fn attach_shared(&mut self) -> Next {
        let until = Instant::now() + self.shared.config.hold;
        let Some(member) = &self.member else { return Next::GoOn };
        let line = self.shared.ask_for_place(&self.target, &member.key);
        let mut place = match line {
            Line::Place(place) => place,
            Line::Full => {
                let error = ErrorReply::error(
                    "53300",
                    "too many clients of this logical server wait for a server connection",
                )
                .detail("The pool of its database on this node is in use.")
                .hint(
                    "Retry later, or let more share: ALTER DATABASE s.d SET pool_size = n on the admin port.",
                );
                self.relay.abort_with(error.bytes());
                return Next::GoOn;
            }
            Line::Wait(waiting) => match self.stand_in_line(waiting, until).await {
                Ok(place) => place,
                Err(next) => return next,
            },
        };
        let slot = Arc::clone(&self.relay.slot);
        let tracker = &self.relay.tracker;
        let wanted = Wanted { known: tracker.kept().known().clone(), failed_block: tracker.status() == b'E' };
        let attaching =
            self.shared.server_for(&mut place, &slot, &self.target, &self.parameters, &wanted, until);
        let taken = tokio::select! {
            biased;
            taken = attaching => taken,
            () = self.relay.client_gone() => return Next::End,
            () = self.shared.stop.cancelled() => Err(Denied::Ours(stopping())),
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(denied) => return self.denied(denied).await,
        };
        let Taken { server, primary, pid, secret, params, statements, rest } = taken;
        self.go_on_at(server, primary, params, &rest);
        if let Some(naming) = &mut self.relay.naming {
            naming.attach(statements);
        }
        if let Some(member) = &mut self.member {
            member.has(place, pid, secret);
        }
        self.look_again()
    }

    /// Waits until one of those that share has done with its server. The client is told when that takes long.
    async fn stand_in_line(&mut self, mut waiting: Waiting, until: Instant) -> Result<Place, Next> {
        let mut tell = Some(Instant::now() + TELL_WAIT_AFTER);
        loop {
            let telling = async {
                match tell {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                place = waiting.granted() => match place {
                    Some(place) => return Ok(place),
                    None => return Err(self.not_served()),
                },
                () = self.relay.client_gone() => return Err(Next::End),
                () = self.shared.stop.cancelled() => {
                    self.fatal(stopping()).await;
                    return Err(Next::End);
                }
                () = sleep_until(until) => return Err(self.not_served()),
                () = telling => {
                    tell = None;
                    let notice = ErrorReply {
                        severity: "NOTICE",
                        ..ErrorReply::error("01000", "waiting for a server connection")
                    }
                    .detail("All server connections of the pool of this database on this node are in use.")
                    .hint("Long transactions hold them; see SHOW POOLS on the admin port of this node.");
                    self.relay.down.insert(&notice.notice_bytes());
                    self.say_rest().await;
                }
            }
        }
    }

    fn not_served(&mut self) -> Next {
        let error = ErrorReply::error("53300", "no server connection of the pool has become free in time")
            .detail(format!("The request waited for {} seconds.", self.shared.config.hold.as_secs()))
            .hint("Long transactions hold the pool; see SHOW POOLS on the admin port of this node, or let more share: ALTER DATABASE s.d SET pool_size = n.");
        self.relay.abort_with(error.bytes());
        Next::GoOn
    }

    /// Leaves the server to whoever comes next.
    pub(super) fn release(&mut self) -> Next {
        let statements = self.relay.naming.as_mut().map(|naming| naming.detach()).unwrap_or_default();
        let (server, member) = (self.relay.detach(), self.member.as_mut());
        if let Some(server) = server
            && let Some(member) = member
            && let Some(place) = member.place.take()
        {
            let state = State {
                primary: self.primary,
                pid: member.pid,
                secret: member.secret,
                params: self.relay.params.clone(),
                settings: self.relay.tracker.kept().known().settings.clone(),
                statements,
            };
            place.release(Idle::new(server, state));
        }
        Next::GoOn
    }
}
