//! Getting a server for a session: on this node or at the gate of another one.

use super::follow::{Attempt, Denied, Follow, Primary};
use super::shared::Shared;
use crate::config::{ATTACH_DEADLINE, GATE_WAIT, MAX_ANSWER_BYTES};
use crate::gate::pass::Pass;
use crate::gate::serve::connect;
use crate::gate::slot::{Backend, Slot};
use crate::relay::Server;
use crate::route::Target;
use crate::stream::Stream;
use crate::wire::control::{CONTROL, Control, Hello};
use crate::wire::header::{HEADER_BYTES, c_string};
use crate::wire::lane::{Front, Lane};
use crate::wire::reply::{ErrorReply, field};
use quorate_transport::{StreamKind, encode};
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

/// A server that is ready for queries.
pub struct Attached {
    pub server: Server,
    pub primary: Primary,
    pub answer: Answer,
}

/// What a server says before its first ReadyForQuery.
#[derive(Debug, Default)]
pub struct Answer {
    pub params: Vec<(Vec<u8>, Vec<u8>)>,
    /// Notices, as they came.
    pub notices: Vec<u8>,
    pub pid: i32,
    pub secret: u32,
    /// What came behind the ReadyForQuery.
    pub rest: Vec<u8>,
}

impl Shared {
    /// A server at the primary of the target's database, waited for until then. The error is to be told to the client.
    pub async fn attach(
        &self,
        slot: &Arc<Slot>,
        target: &Target,
        parameters: &[(String, String)],
        until: Instant,
    ) -> Result<Attached, Denied> {
        let mut follow = Follow::new(self, target, until);
        loop {
            let primary = follow.primary().await?;
            let attempt = tokio::select! {
                attempt = self.attach_at(primary, slot, target, parameters, until) => attempt,
                () = follow.moved(primary) => Err(Attempt::Again("the primary moved".to_owned())),
                () = tokio::time::sleep_until(until) => Err(Attempt::Again("the primary does not answer".to_owned())),
            };
            match attempt {
                Ok(attached) => return Ok(attached),
                Err(Attempt::Refused(denied)) => return Err(denied),
                Err(Attempt::Again(why)) => follow.again(why).await?,
            }
        }
    }

    async fn attach_at(
        &self,
        primary: Primary,
        slot: &Arc<Slot>,
        target: &Target,
        parameters: &[(String, String)],
        until: Instant,
    ) -> Result<Attached, Attempt> {
        let mut server = if primary.node == self.config.node {
            self.local(primary, slot, target, parameters, until).await?
        } else {
            self.remote(primary, target, parameters).await?
        };
        let answer =
            timeout(ATTACH_DEADLINE, read_answer(&mut server.stream)).await.unwrap_or_else(|_| {
                self.peers.give_up_shared(primary.node);
                Err(Attempt::Again("the server does not answer".to_owned()))
            })?;
        if let Some(pass) = &server.pass {
            until_vouched(pass, until).await?;
        }
        self.note_backend(slot, target, primary, answer.pid, answer.secret);
        Ok(Attached { server, primary, answer })
    }

    /// Cancel requests find the session's server from now on.
    pub fn note_backend(&self, slot: &Slot, target: &Target, at: Primary, pid: i32, secret: u32) {
        slot.set_backend(Some(Backend { node: at.node, database: target.database, pid, secret }));
    }

    async fn local(
        &self,
        primary: Primary,
        slot: &Arc<Slot>,
        target: &Target,
        parameters: &[(String, String)],
        until: Instant,
    ) -> Result<Server, Attempt> {
        let gate = self
            .gates
            .find(target.database)
            .ok_or_else(|| Attempt::Again("the gate is closed".to_owned()))?;
        let wait = until.min(Instant::now() + GATE_WAIT);
        let (pass, socket) =
            gate.enter(slot, primary.epoch, wait).await.map_err(|why| Attempt::Again(why.to_string()))?;
        let stream = connect(&socket, &target.user, &target.name, parameters)
            .await
            .map_err(|_| Attempt::Again("the server does not answer".to_owned()))?;
        Ok(Server::local(Stream::Unix(stream), pass, socket))
    }

    async fn remote(
        &self,
        primary: Primary,
        target: &Target,
        parameters: &[(String, String)],
    ) -> Result<Server, Attempt> {
        let hello = Hello {
            database: target.database,
            epoch: primary.epoch,
            user: target.user.clone(),
            name: target.name.clone(),
            parameters: parameters.to_vec(),
        };
        let opened =
            self.peers.open_shared(primary.node, StreamKind::Gate, encode(&hello), ATTACH_DEADLINE).await;
        let stream = opened.map_err(|error| {
            tracing::debug!(node = %primary.node, %error, "a gate could not be reached");
            Attempt::Again("the primary's node cannot be reached".to_owned())
        })?;
        Ok(Server::remote(Stream::Peer(Box::new(stream))))
    }
}

async fn until_vouched(pass: &Pass, until: Instant) -> Result<(), Attempt> {
    if pass.is_vouched(until).await {
        return Ok(());
    }
    let why =
        if pass.may_enter() { "nobody vouches for what the gate lets out" } else { "the gate was closed" };
    Err(Attempt::Again(why.to_owned()))
}

/// Reads up to the first ReadyForQuery.
async fn read_answer(stream: &mut Stream) -> Result<Answer, Attempt> {
    let mut lane = Lane::default();
    let mut answer = Answer::default();
    let mut read = 0;
    loop {
        let front = lane.front(|_| false).map_err(|_| malformed())?;
        let header = match front {
            Front::Whole(header) => header,
            Front::Nothing => {
                let n = stream.read(lane.space()).await.map_err(|_| lost())?;
                if n == 0 {
                    return Err(lost());
                }
                lane.fill(n);
                read += n;
                if read > MAX_ANSWER_BYTES {
                    return Err(malformed());
                }
                continue;
            }
            _ => return Err(malformed()),
        };
        let message = &lane.unjudged()[..header.total];
        if take(message, &mut answer)? {
            lane.remove(header.total);
            answer.rest = lane.unjudged().to_vec();
            return Ok(answer);
        }
        lane.remove(header.total);
    }
}

fn lost() -> Attempt {
    Attempt::Again("the server closed the connection".to_owned())
}

fn malformed() -> Attempt {
    Attempt::Again("the server sent a malformed message".to_owned())
}

/// Takes one message of the answer. True: it was the last.
fn take(message: &[u8], answer: &mut Answer) -> Result<bool, Attempt> {
    let body = &message[HEADER_BYTES..];
    match message[0] {
        b'Z' => return Ok(true),
        b'R' if body == [0; 4] => {}
        b'R' => {
            let error = ErrorReply::fatal("28000", "the server asks the node for a password")
                .hint("The instance's pg_hba.conf was changed; it must trust local connections.");
            return Err(Attempt::Refused(error.into()));
        }
        b'S' => {
            let (name, rest) = c_string(body).ok_or_else(malformed)?;
            let (value, _) = c_string(rest).ok_or_else(malformed)?;
            answer.params.push((name.to_vec(), value.to_vec()));
        }
        b'K' => {
            let (pid, secret) = body.split_first_chunk::<4>().ok_or_else(malformed)?;
            answer.pid = i32::from_be_bytes(*pid);
            answer.secret = u32::from_be_bytes(<[u8; 4]>::try_from(secret).map_err(|_| malformed())?);
        }
        b'N' => answer.notices.extend_from_slice(message),
        b'E' => {
            // Going down, or not up yet: somebody else, or it later, will do.
            if matches!(field(body, b'C'), Some(b"57P01" | b"57P02" | b"57P03")) {
                return Err(Attempt::Again("the server is starting or stopping".to_owned()));
            }
            return Err(Attempt::Refused(Denied::Theirs(message.to_vec())));
        }
        CONTROL => {
            return Err(match Control::parse(body) {
                Some(Control::NotOpen { why } | Control::Ended { why, .. }) => Attempt::Again(why),
                None => malformed(),
            });
        }
        _ => {}
    }
    Ok(false)
}
