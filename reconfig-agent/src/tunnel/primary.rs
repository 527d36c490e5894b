//! One stream at the primary's node, from its hello to its end.
//!
//! The connection to the instance is started before the stream is accepted, with a startup packet of our own, so that an
//! instance that is starting, full or hung is a refusal which the other end tries again, and the standby's
//! connection never sees it.

use super::hello::{Answer, Hello, Refusal};
use super::relay::Relay;
use super::startup;
use super::telemetry::{self, Side, Traffic};
use super::upstream::{Ticket, Upstreams};
use super::{downstream::SOCKET_NAME, relay::End};
use bytes::Bytes;
use quorate_model::NodeId;
use quorate_transport::{LocalStream, PeerStream, decode, encode, write_frame};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long the instance may take to say that a connection is wanted.
const INSTANCE_LIMIT: Duration = Duration::from_secs(3);

/// How long the other end may take for an answer of one frame.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What is read of the instance's first words: enough for everything before the first command, or for an error.
const FIRST_WORDS_BYTES: usize = 4096;

pub(super) async fn serve_primary(upstreams: &Upstreams, from: NodeId, hello: Bytes, mut peer: PeerStream) {
    let Ok(hello) = decode::<Hello>(&hello) else {
        tracing::warn!(node = %from, "a tunnel was asked for in words that cannot be read");
        return refuse(&mut peer, Refusal::BadHello).await;
    };
    let (database, replica, epoch, purpose) = (hello.database, hello.replica, hello.epoch, hello.purpose);
    let mut ticket = match upstreams.enter(from, &hello) {
        Ok(ticket) => ticket,
        Err(refusal) => {
            tracing::debug!(node = %from, %database, %replica, %epoch, reason = %refusal, "tunnel refused");
            return refuse(&mut peer, refusal).await;
        }
    };
    let opened = tokio::select! {
        biased;
        () = ticket.leash.was_cut() => return refuse(&mut peer, Refusal::NotAdmitted).await,
        opened = open(&ticket.socket_dir, &hello) => opened,
    };
    let (instance, first_words) = match opened {
        Ok(opened) => opened,
        Err(refusal) => {
            tracing::debug!(node = %from, %database, %replica, %epoch, reason = %refusal, "tunnel refused");
            return refuse(&mut peer, refusal).await;
        }
    };
    if answer(&mut peer, &Answer::Accepted).await.is_err() {
        return;
    }
    tracing::info!(node = %from, %database, %replica, %epoch, ?purpose, "tunnel open");
    let end = relay(&mut ticket, instance, peer, &first_words).await;
    tracing::info!(node = %from, %database, %replica, %epoch, ?purpose, reason = %end, "tunnel closed");
}

async fn relay(ticket: &mut Ticket<'_>, instance: LocalStream, peer: PeerStream, first_words: &[u8]) -> End {
    let Some(sentry) = ticket.sentry.take() else { return End::Cut };
    match Relay::new(peer, instance, sentry, first_words, Traffic::new(Side::Upstream)) {
        Ok(relay) => ticket.leash.run(relay).await,
        Err(malformed) => malformed.into(),
    }
}

/// Starts a replication connection to the instance. Returns it with what it said first.
async fn open(socket_dir: &Path, hello: &Hello) -> Result<(LocalStream, Vec<u8>), Refusal> {
    let opening = async {
        let mut instance = UnixStream::connect(socket_dir.join(SOCKET_NAME)).await?;
        instance.write_all(&startup::write(hello.replica, hello.purpose)).await?;
        let mut words = Vec::with_capacity(FIRST_WORDS_BYTES);
        if instance.read_buf(&mut words).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok((LocalStream::try_from(instance)?, words))
    };
    let (instance, words) = match timeout(INSTANCE_LIMIT, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return Err(Refusal::not_ready(error)),
        Err(_) => return Err(Refusal::not_ready(format_args!("no answer within {INSTANCE_LIMIT:?}"))),
    };
    // An error comes in one piece and before anything else, or after authentication has succeeded.
    if words[0] == b'E' {
        return Err(Refusal::not_ready(startup::explain(words.get(5..).unwrap_or_default())));
    }
    Ok((instance, words))
}

async fn refuse(peer: &mut PeerStream, refusal: Refusal) {
    telemetry::refused(refusal.name());
    // Whoever does not hear it asks again.
    let _ = answer(peer, &Answer::Refused(refusal)).await;
    let _ = timeout(ANSWER_LIMIT, peer.shutdown()).await;
}

async fn answer(peer: &mut PeerStream, answer: &Answer) -> io::Result<()> {
    timeout(ANSWER_LIMIT, write_frame(peer, &encode(answer))).await.unwrap_or_else(|late| Err(late.into()))
}
