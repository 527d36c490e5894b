//! Opening a connection to another node, up to the point where both sides have agreed what it is for.

use crate::ahead::ReadAhead;
use crate::frame::{read_frame, write_frame};
use crate::identity::{Identity, server_name};
use crate::message::Preface;
use crate::{CallError, Fault};
use quorate_model::NodeId;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

/// The longest text with which the other side refuses a connection.
pub(crate) const MAX_REPLY_BYTES: usize = 4 * 1024;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_PROBES: u32 = 3;
/// How long calls, and what streams that share a connection say, may stay unacknowledged by the other machine's TCP before the connection counts as broken.
/// Without it a connection that outlived a partition waits for a retransmission that may be tens of seconds
/// away.
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);

/// Connects, proves both sides, says what the connection is for, and waits until the other side has agreed.
/// The caller bounds the time.
pub(crate) async fn dial(
    identity: &Identity,
    node: NodeId,
    address: &str,
    preface: &Preface,
) -> Result<TlsStream<ReadAhead>, CallError> {
    let name = server_name(node).ok_or_else(|| CallError::Unreachable("it has no name".to_owned()))?;
    let tcp = TcpStream::connect(address).await.map_err(|e| unreachable("connecting", &e))?;
    let is_shared = matches!(preface, Preface::Rpc | Preface::Streams);
    tune(&tcp, is_shared).map_err(|e| unreachable("setting socket options", &e))?;
    let tls = TlsConnector::from(identity.client())
        .connect(name, ReadAhead::new(tcp))
        .await
        .map_err(|e| unreachable("proving identities", &e))?;
    let mut stream = TlsStream::Client(tls);
    write_frame(&mut stream, &preface.encode()).await.map_err(|e| unreachable("the preface", &e))?;
    // Under TLS 1.3 a client learns only from the first bytes it reads whether its certificate was accepted.
    let reply = read_frame(&mut stream, MAX_REPLY_BYTES)
        .await
        .map_err(|e| unreachable("the reply to the preface", &e))?;
    if reply.is_empty() {
        return Ok(stream);
    }
    Err(CallError::Refused(Fault(String::from_utf8_lossy(&reply).into_owned())))
}

/// Socket options of both ends of a connection. `is_shared`: it is read at any time, whatever becomes of a call or stream.
pub(crate) fn tune(tcp: &TcpStream, is_shared: bool) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    if is_shared {
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    }
    Ok(())
}

fn unreachable(step: &str, error: &io::Error) -> CallError {
    CallError::Unreachable(format!("{step}: {error}"))
}
