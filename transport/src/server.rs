//! The answering end of connections.

use crate::ahead::ReadAhead;
use crate::dial::tune;
use crate::frame::{MAX_FRAME_BYTES, put_frame, read_frame, write_frame};
use crate::identity::node_of;
use crate::link::{BUFFER_BYTES, MAX_CALLS_IN_FLIGHT};
use crate::message::{Answer, Call, MAX_PREFACE_BYTES, Preface};
use crate::mux::{Connection, MAX_STREAMS, Opened, drive};
use crate::{Fault, PeerStream, Peers, StreamKind};
use bytes::Bytes;
use quorate_model::NodeId;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;

/// Connections that a node has taken from others at a time: a few for calls, one a tunnel, one a remote
/// session.
pub const MAX_CONNECTIONS: usize = 65_536;
/// A stranger has this long to prove who it is and to say what it wants.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failure to accept, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop`.
pub(crate) async fn serve(peers: Arc<Peers>, listener: TcpListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropped at the end, which closes what is still open.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(node = %peers.me(), %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(node = %peers.me(), limit = MAX_CONNECTIONS, "too many connections; refused one");
            continue;
        };
        let peers = peers.clone();
        connections.spawn(async move {
            let _place = place;
            serve_connection(&peers, tcp).await;
        });
    }
}

async fn serve_connection(peers: &Arc<Peers>, tcp: TcpStream) {
    let welcomed = timeout(HANDSHAKE_TIMEOUT, welcome(peers, tcp)).await;
    let (from, preface, stream) = match welcomed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(welcomed) => welcomed,
        Err(error) => {
            tracing::info!(node = %peers.me(), %error, "refused a connection");
            return;
        }
    };
    peers.heard_of(from);
    match preface {
        Preface::Rpc => {
            let error = serve_calls(peers, from, stream).await;
            tracing::debug!(node = %peers.me(), peer = %from, %error, "a connection for calls ended");
            peers.tell_lost(from);
        }
        Preface::Stream(kind, hello) => {
            if let Some(handler) = peers.stream_handler(kind) {
                handler.accept(from, hello, PeerStream::own(stream)).await;
            }
        }
        Preface::Streams => {
            let error = serve_streams(peers, from, stream).await;
            tracing::debug!(node = %peers.me(), peer = %from, %error, "a connection for streams ended");
        }
    }
}

/// Learns who is there and what it wants, and says whether it may.
async fn welcome(peers: &Peers, tcp: TcpStream) -> io::Result<(NodeId, Preface, TlsStream<ReadAhead>)> {
    tune(&tcp, false)?;
    let tls = TlsAcceptor::from(peers.identity().server()).accept(ReadAhead::new(tcp)).await?;
    let from = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(node_of);
    let mut stream = TlsStream::Server(tls);
    let preface = read_frame(&mut stream, MAX_PREFACE_BYTES).await?;
    let verdict = match (from, Preface::decode(preface)) {
        (None, _) => Err("the certificate names no node".to_owned()),
        (_, Err(reason)) => Err(reason),
        (Some(from), Ok(preface)) => match &preface {
            Preface::Stream(kind, _) if peers.stream_handler(*kind).is_none() => {
                Err("this node does not take such streams (yet)".to_owned())
            }
            _ => Ok((from, preface)),
        },
    };
    match verdict {
        Ok((from, preface)) => {
            write_frame(&mut stream, &[]).await?;
            Ok((from, preface, stream))
        }
        Err(reason) => {
            write_frame(&mut stream, reason.as_bytes()).await?;
            stream.shutdown().await?;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
        }
    }
}

type Outcome = (u64, Result<Bytes, Fault>);

/// Serves the streams of a connection until it ends, and says how it did.
async fn serve_streams(peers: &Arc<Peers>, from: NodeId, stream: TlsStream<ReadAhead>) -> io::Error {
    if let Err(error) = tune(stream.get_ref().0.tcp(), true) {
        return error;
    }
    let connection = Connection::new(stream);
    let (opened, mut to_serve) = mpsc::channel::<Opened>(MAX_STREAMS);
    // There is room for as many as a connection has.
    let mut accept = move |stream| drop(opened.try_send(stream));
    let serving = async {
        // Dropped at the end of the connection, which is theirs as well.
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = streams.join_next() => {}
                Some(Opened { kind, hello, stream }) = to_serve.recv() => {
                    let handler = StreamKind::from_wire(kind).and_then(|kind| peers.stream_handler(kind));
                    // A stream that nobody takes is reset.
                    if let Some(handler) = handler {
                        streams.spawn(async move {
                            handler.accept(from, hello, PeerStream::shared(stream)).await;
                        });
                    }
                }
                else => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        error = drive(&connection, Some(&mut accept)) => error,
        never = serving => never,
    }
}

/// Answers calls until the connection ends, and says how it did.
async fn serve_calls(peers: &Arc<Peers>, from: NodeId, stream: TlsStream<ReadAhead>) -> io::Error {
    if let Err(error) = tune(stream.get_ref().0.tcp(), true) {
        return error;
    }
    let (reader, writer) = tokio::io::split(stream);
    let (outcomes, to_write) = mpsc::channel(MAX_CALLS_IN_FLIGHT);
    tokio::select! {
        error = read_calls(peers, from, reader, outcomes) => error,
        error = write_answers(writer, to_write) => error,
    }
}

async fn read_calls(
    peers: &Arc<Peers>,
    from: NodeId,
    reader: impl AsyncRead + Unpin,
    outcomes: mpsc::Sender<Outcome>,
) -> io::Error {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    // Callers that gave up leave calls running here, so the caller's own limit is not enough.
    let turns = Arc::new(Semaphore::new(MAX_CALLS_IN_FLIGHT));
    loop {
        let frame = match read_frame(&mut reader, MAX_FRAME_BYTES).await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        let Some(Call { id, service, body }) = Call::decode(frame) else {
            return io::Error::new(io::ErrorKind::InvalidData, "not a call");
        };
        let outcomes = outcomes.clone();
        let Ok(turn) = turns.clone().try_acquire_owned() else {
            let refusal = Err(Fault::new("too many calls are in flight"));
            if outcomes.send((id, refusal)).await.is_err() {
                return io::ErrorKind::BrokenPipe.into();
            }
            continue;
        };
        let call = peers.dispatch(from, service, body);
        // Not in the connection's own set: what was begun for a caller is finished even if the connection
        // breaks.
        tokio::spawn(async move {
            let outcome = call.await;
            // A connection that ended meanwhile needs no answer.
            let _ = outcomes.send((id, outcome)).await;
            drop(turn);
        });
    }
}

async fn write_answers(writer: impl AsyncWrite + Unpin, mut outcomes: mpsc::Receiver<Outcome>) -> io::Error {
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
    loop {
        // `None` cannot happen before the reader has ended, which ends this too.
        let Some(first) = outcomes.recv().await else { return io::ErrorKind::BrokenPipe.into() };
        let mut next = Some(first);
        while let Some((id, outcome)) = next {
            if let Err(error) = put_answer(&mut writer, id, outcome).await {
                return error;
            }
            next = outcomes.try_recv().ok();
        }
        if let Err(error) = writer.flush().await {
            return error;
        }
    }
}

async fn put_answer(
    writer: &mut (impl AsyncWrite + Unpin),
    id: u64,
    outcome: Result<Bytes, Fault>,
) -> io::Result<()> {
    match outcome {
        Ok(body) if body.len() + Answer::head(id, false).len() <= MAX_FRAME_BYTES => {
            put_frame(writer, &Answer::head(id, false), &body).await
        }
        Ok(_) => put_frame(writer, &Answer::head(id, true), b"the answer is larger than is allowed").await,
        Err(Fault(text)) => put_frame(writer, &Answer::head(id, true), text.as_bytes()).await,
    }
}
