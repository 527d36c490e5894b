//! The packets before a session: encryption asked for or begun, a cancel request, or who the client is.

use super::shared::Shared;
use crate::config::{FAREWELL_DEADLINE, LINGER, LOGIN_DEADLINE, MAX_STARTUP_PACKETS};
use crate::stream::Stream;
use crate::tls::ALPN;
use crate::wire::reply::ErrorReply;
use crate::wire::startup::{BadStartup, Packet, Startup, body_length, parse};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// What a client that goes on sending after its session ended may send before it is cut off.
const MAX_LINGER_BYTES: u64 = 1024 * 1024;

/// The first byte of a TLS handshake. A startup packet never begins with it: it would be too long.
const TLS_HANDSHAKE: u8 = 0x16;

/// A client that said what it wants.
pub struct Greeting {
    pub stream: Stream,
    pub startup: Startup,
    pub channel: Channel,
}

/// What a client has of TLS.
#[derive(Debug, Default)]
pub struct Channel {
    encrypted: bool,
    /// What a login can be bound to.
    pub end_point: Option<Vec<u8>>,
    /// The host name that the client asked for.
    pub host: Option<String>,
    /// What it has shown, its own first. Its key is with it; whether that is worth anything is not decided.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Reads what a client wants. None: there is nothing more to do for it.
pub async fn greet(shared: &Shared, tcp: TcpStream) -> Option<Greeting> {
    let mut channel = Channel::default();
    let mut stream = Stream::Tcp(tcp);
    if begins_with_tls(&stream).await {
        stream = take_tls(shared, stream, &mut channel).await?;
        let Stream::Tls(tls) = &stream else { return None };
        // Without it, what is not meant for a database could be carried to one (ALPACA).
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            tracing::debug!("a client began with TLS and did not name the protocol");
            return None;
        }
    }
    for _ in 0..MAX_STARTUP_PACKETS {
        let packet = match timeout(LOGIN_DEADLINE, read_packet(&mut stream)).await {
            Ok(Ok(Some(packet))) => packet,
            Ok(Ok(None)) => return None,
            Ok(Err(bad)) => {
                end(stream, &ErrorReply::fatal(bad.sqlstate(), bad.to_string()).bytes()).await;
                return None;
            }
            Err(_) => {
                end(stream, &ErrorReply::fatal("08P01", "no startup packet in time").bytes()).await;
                return None;
            }
        };
        match packet {
            Packet::Startup(startup) => return Some(Greeting { stream, startup, channel }),
            Packet::Cancel { pid, secret } => {
                shared.cancels.cancel(pid, &secret).await;
                return None;
            }
            Packet::GssEnc => refuse(&mut stream).await?,
            Packet::Ssl if !channel.encrypted && shared.config.tls.is_some() => {
                stream.write_all(b"S").await.ok()?;
                // Nothing was read beyond the request: what comes now is TLS.
                stream = take_tls(shared, stream, &mut channel).await?;
            }
            Packet::Ssl => refuse(&mut stream).await?,
        }
    }
    let error = ErrorReply::fatal("08P01", "too many packets before the startup packet");
    end(stream, &error.bytes()).await;
    None
}

/// One packet; none when the client left, as a port check does.
async fn read_packet(stream: &mut Stream) -> Result<Option<Packet>, BadStartup> {
    let mut length = [0; 4];
    if stream.read_exact(&mut length).await.is_err() {
        return Ok(None);
    }
    let mut body = vec![0; body_length(length)?];
    if stream.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    parse(&body).map(Some)
}

async fn refuse(stream: &mut Stream) -> Option<()> {
    stream.write_all(b"N").await.ok()?;
    stream.flush().await.ok()
}

/// Whether a client begins with a TLS handshake, without asking first.
async fn begins_with_tls(stream: &Stream) -> bool {
    let Stream::Tcp(tcp) = stream else { return false };
    let mut first = [0];
    matches!(timeout(LOGIN_DEADLINE, tcp.peek(&mut first)).await, Ok(Ok(1)) if first[0] == TLS_HANDSHAKE)
}

async fn take_tls(shared: &Shared, stream: Stream, channel: &mut Channel) -> Option<Stream> {
    let (Stream::Tcp(tcp), Some(tls)) = (stream, &shared.config.tls) else { return None };
    let served = tls.current();
    // Some clients ask their users when a server asks for a certificate.
    let asks = shared.map.borrow().servers.values().any(|server| server.client_auth.takes_certificates());
    let config = if asks { &served.asking } else { &served.config };
    let accepting = TlsAcceptor::from(Arc::clone(config)).accept(tcp);
    match timeout(LOGIN_DEADLINE, accepting).await {
        Ok(Ok(tls)) => {
            *channel = Channel {
                encrypted: true,
                end_point: served.end_point.clone(),
                host: tls.get_ref().1.server_name().map(str::to_owned),
                certificates: tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec(),
            };
            Some(Stream::Tls(Box::new(tls)))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a client's TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Says the last words to a client and closes, so that it can read them.
pub async fn end(mut stream: Stream, last: &[u8]) {
    let telling = async {
        stream.write_all(last).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    if !matches!(timeout(FAREWELL_DEADLINE, telling).await, Ok(Ok(()))) {
        return;
    }
    // Closing with unread bytes would reset the connection and take the words back.
    let mut rest = stream.take(MAX_LINGER_BYTES);
    let _ = timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}
