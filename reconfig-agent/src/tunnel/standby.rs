//! One connection of a standby, from its startup packet to its end.
//!
//! A walreceiver that finds no primary gives up, and its server tries again after a pause. So it finds one: the
//! connection is taken and held without an answer, through a fence and for as long as the new primary is not there yet,
//! and goes on the moment that it is. Each attempt has its own stream between the nodes; only the accepted one is joined to
//! the standby's connection.

use super::downstream::{Shared, Ticket};
use super::hello::{ANSWER_LIMIT_BYTES, Answer, Purpose, Refusal};
use super::relay::Relay;
use super::startup::{self, Request, StartupError};
use super::telemetry::{Side, Traffic};
use quorate_transport::{CallError, LocalStream, PeerStream, StreamKind, decode, encode, read_frame};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long a connection may take for its startup packet.
const STARTUP_LIMIT: Duration = Duration::from_secs(5);

/// Requests before the startup packet: one for each kind of encryption.
const MAX_ENCRYPTION_REQUESTS: u32 = 2;

/// How long a connection is held at most, without a route and in vain attempts together.
const HOLD_LIMIT: Duration = Duration::from_secs(60);

/// How long the stream to the primary's node may take to open.
const OPEN_LIMIT: Duration = Duration::from_secs(2);

/// How long the primary's node may take to answer: longer than it waits for its own instance.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// Pauses between attempts double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// Why an attempt to reach the primary failed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Attempt {
    #[error(transparent)]
    Open(#[from] CallError),
    #[error("no answer: {0}")]
    NoAnswer(String),
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
}

/// Serves one connection. Cancelled at any point, it ends the connection.
pub(super) async fn serve_standby(shared: Arc<Shared>, mut connection: UnixStream) {
    let (database, replica) = (shared.database, shared.replica);
    let purpose = match timeout(STARTUP_LIMIT, start(&mut connection)).await {
        Ok(Ok(Some(purpose))) => purpose,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::debug!(%database, %replica, %error, "no startup packet"),
        Err(_) => return tracing::debug!(%database, %replica, "no startup packet in time"),
    };
    let Some((ticket, peer)) = reach(&shared, &mut connection, purpose).await else { return };
    let route = &ticket.route;
    let connection = match LocalStream::try_from(connection) {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!(%database, %replica, %error, "a tunnel cannot be watched"),
    };
    let relay = Relay::new(connection, peer, ticket.clerk(), &[], Traffic::new(Side::Downstream));
    let end = match relay {
        Ok(relay) => {
            tracing::info!(%database, %replica, primary = %route.primary, epoch = %route.epoch, ?purpose, "tunnel open");
            ticket.leash.run(relay).await
        }
        Err(malformed) => malformed.into(),
    };
    tracing::info!(%database, %replica, primary = %route.primary, epoch = %route.epoch, ?purpose, reason = %end, "tunnel closed");
}

/// Reads up to the startup packet. `None`: the connection has had its answer.
async fn start(connection: &mut UnixStream) -> io::Result<Option<Purpose>> {
    for _ in 0..=MAX_ENCRYPTION_REQUESTS {
        let mut word = [0; 4];
        connection.read_exact(&mut word).await?;
        let request = match startup::body_length(word) {
            Ok(length) => {
                let mut body = vec![0; length];
                connection.read_exact(&mut body).await?;
                startup::read(&body)
            }
            Err(error) => Err(error),
        };
        match request {
            Ok(Request::Encryption) => connection.write_all(b"N").await?,
            Ok(Request::Cancel) => return Ok(None),
            Ok(Request::Open(purpose)) => return Ok(Some(purpose)),
            Err(error) => return refuse(connection, &error).await.map(|()| None),
        }
    }
    refuse(connection, &StartupError::Layout).await.map(|()| None)
}

async fn refuse(connection: &mut UnixStream, error: &StartupError) -> io::Result<()> {
    connection.write_all(&startup::fatal(error.sqlstate(), &error.to_string())).await
}

/// Holds the connection until a primary takes it. `None`: the standby went away, or waited too long.
async fn reach(
    shared: &Arc<Shared>,
    connection: &mut UnixStream,
    purpose: Purpose,
) -> Option<(Ticket, PeerStream)> {
    let _held = shared.ledger.hold();
    let mut routes = shared.routes();
    let deadline = Instant::now() + HOLD_LIMIT;
    let too_long = loop {
        let route = tokio::select! {
            biased;
            () = gone(connection) => return None,
            () = sleep_until(deadline) => break "no primary is known",
            lane = routes.wait_for(|lane| lane.as_ref().is_some_and(|l| l.serves(purpose))) => {
                lane.ok()?.as_ref()?.route.clone()
            }
        };
        let Some(ticket) = shared.enter(route, purpose) else { continue };
        tokio::select! {
            biased;
            () = ticket.leash.was_cut() => {}
            () = gone(connection) => return None,
            () = sleep_until(deadline) => break "the primary cannot be reached",
            peer = persist(shared, &ticket) => return Some((ticket, peer)),
        }
    };
    let _ = timeout(STARTUP_LIMIT, connection.write_all(&startup::fatal("57P03", too_long))).await;
    None
}

/// Tries to reach the primary of the ticket's route until it is reached. The caller bounds it.
async fn persist(shared: &Shared, ticket: &Ticket) -> PeerStream {
    let (database, replica, route) = (shared.database, shared.replica, &ticket.route);
    let mut pause = FIRST_PAUSE;
    let mut told = None;
    loop {
        match attempt(shared, ticket).await {
            Ok(peer) => return peer,
            Err(error) => {
                // Refusals repeat until the primary is ready; each is told once.
                if told.as_ref() != Some(&error) {
                    tracing::info!(%database, %replica, node = %route.node, epoch = %route.epoch, reason = %error, "tunnel waits for the primary");
                    told = Some(error);
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn attempt(shared: &Shared, ticket: &Ticket) -> Result<PeerStream, Attempt> {
    let hello = encode(&ticket.hello());
    let mut peer = shared.peers.open(ticket.route.node, StreamKind::Tunnel, hello, OPEN_LIMIT).await?;
    let frame = match timeout(ANSWER_LIMIT, read_frame(&mut peer, ANSWER_LIMIT_BYTES)).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(error)) => return Err(Attempt::NoAnswer(error.to_string())),
        Err(_) => return Err(Attempt::NoAnswer(format!("none within {ANSWER_LIMIT:?}"))),
    };
    match decode::<Answer>(&frame) {
        Ok(Answer::Accepted) => Ok(peer),
        Ok(Answer::Refused(refusal)) => Err(refusal.into()),
        Err(fault) => Err(Attempt::NoAnswer(fault.to_string())),
    }
}

/// Resolves when the standby has closed its connection, or says something before it was answered.
async fn gone(connection: &UnixStream) {
    loop {
        if connection.readable().await.is_err() {
            return;
        }
        match connection.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}
