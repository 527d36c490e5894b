//! The packets before a session: encryption asked for, a cancel request, or who the client is.

use super::shared::Shared;
use crate::config::{FAREWELL_DEADLINE, LINGER, LOGIN_DEADLINE, MAX_STARTUP_PACKETS};
use crate::stream::Stream;
use crate::wire::reply::ErrorReply;
use crate::wire::startup::{BadStartup, Packet, Startup, body_length, parse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// What a client that goes on sending after its session ended may send before it is cut off.
const MAX_LINGER_BYTES: u64 = 1024 * 1024;

/// Reads what a client wants. None: there is nothing more to do for it.
pub async fn greet(shared: &Shared, tcp: TcpStream) -> Option<(Stream, Startup)> {
    let mut stream = Stream::Tcp(tcp);
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
            Packet::Startup(startup) => return Some((stream, startup)),
            Packet::Cancel { pid, secret } => {
                shared.cancels.cancel(pid, secret).await;
                return None;
            }
            Packet::GssEnc => stream.write_all(b"N").await.ok()?,
            Packet::Ssl => stream = offer_tls(shared, stream).await?,
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

async fn offer_tls(shared: &Shared, stream: Stream) -> Option<Stream> {
    match (stream, &shared.config.tls) {
        (Stream::Tcp(mut tcp), Some(config)) => {
            tcp.write_all(b"S").await.ok()?;
            // Nothing was read beyond the request: what comes now is TLS.
            let accepting = TlsAcceptor::from(config.clone()).accept(tcp);
            match timeout(LOGIN_DEADLINE, accepting).await {
                Ok(Ok(tls)) => Some(Stream::Tls(Box::new(tls))),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a client's TLS handshake failed");
                    None
                }
                Err(_) => None,
            }
        }
        (mut stream, _) => {
            stream.write_all(b"N").await.ok()?;
            Some(stream)
        }
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
