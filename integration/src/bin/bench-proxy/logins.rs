//! Logins, as fast as they are taken, and clients that do nothing: a client of a few lines, which derives its key from the
//! password once, because what is measured is the other side.

use super::peers::Side;
use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use quorate_integration::Endpoint;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Clients that log in at the same time.
const AT_ONCE: usize = 16;
const LIMIT: Duration = Duration::from_secs(30);

type Key = [u8; 32];
/// By salt and iterations.
type Keys = Arc<Mutex<HashMap<(String, u32), Key>>>;

#[derive(Clone, Copy, Debug)]
pub struct Logins {
    pub a_second: f64,
    /// Of the proxy, a login.
    pub cpu_us: f64,
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> anyhow::Result<Key> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)?;
    parts.iter().for_each(|part| mac.update(part));
    Ok(mac.finalize().into_bytes().into())
}

/// `SaltedPassword` of RFC 5802.
fn salted(password: &str, salt: &str, iterations: u32) -> anyhow::Result<Key> {
    let mut last = hmac(password.as_bytes(), &[&STANDARD.decode(salt)?, &1u32.to_be_bytes()])?;
    let mut sum = last;
    for _ in 1..iterations {
        last = hmac(password.as_bytes(), &[&last])?;
        sum.iter_mut().zip(last).for_each(|(sum, byte)| *sum ^= byte);
    }
    Ok(sum)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

async fn next(stream: &mut TcpStream) -> anyhow::Result<(u8, Vec<u8>)> {
    let tag = stream.read_u8().await?;
    let mut body = vec![0; (stream.read_u32().await? as usize).saturating_sub(4)];
    stream.read_exact(&mut body).await?;
    if tag == b'E' {
        bail!("refused: {}", String::from_utf8_lossy(&body).replace('\0', " "));
    }
    Ok((tag, body))
}

/// A session that is ready for queries.
async fn log_in(port: &Endpoint, keys: &Keys) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect((port.host.as_str(), port.port)).await?;
    stream.set_nodelay(true)?;
    let said = format!("user\0{}\0database\0{}\0\0", port.user, port.database);
    let packet = [&(said.len() as u32 + 8).to_be_bytes()[..], &196_608u32.to_be_bytes(), said.as_bytes()];
    stream.write_all(&packet.concat()).await?;
    let (tag, _) = next(&mut stream).await?;
    ensure!(tag == b'R', "not asked to authenticate");
    let nonce = STANDARD.encode(rand::random::<[u8; 18]>());
    let bare = format!("n=,r={nonce}");
    let first = format!("n,,{bare}");
    let body = [b"SCRAM-SHA-256\0", &(first.len() as u32).to_be_bytes()[..], first.as_bytes()].concat();
    stream.write_all(&message(b'p', &body)).await?;
    let (_, challenge) = next(&mut stream).await?;
    let challenge = String::from_utf8(challenge.get(4..).context("a short challenge")?.to_vec())?;
    let field =
        |name: &str| challenge.split(',').find_map(|f| f.strip_prefix(name)).context("a malformed challenge");
    let (salt, iterations) = (field("s=")?.to_owned(), field("i=")?.parse()?);
    let known = keys.lock().unwrap_or_else(PoisonError::into_inner).get(&(salt.clone(), iterations)).copied();
    let key = match known {
        Some(key) => key,
        None => {
            let key = salted(&port.password, &salt, iterations)?;
            keys.lock().unwrap_or_else(PoisonError::into_inner).insert((salt, iterations), key);
            key
        }
    };
    let client_key = hmac(&key, &[b"Client Key"])?;
    let without_proof = format!("c=biws,r={}", field("r=")?);
    let auth = [bare.as_bytes(), b",", challenge.as_bytes(), b",", without_proof.as_bytes()];
    let signature = hmac(&Sha256::digest(client_key), &auth)?;
    let proof: Vec<u8> = client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    let last = format!("{without_proof},p={}", STANDARD.encode(proof));
    stream.write_all(&message(b'p', last.as_bytes())).await?;
    loop {
        if next(&mut stream).await?.0 == b'Z' {
            return Ok(stream);
        }
    }
}

async fn within(what: impl Future<Output = anyhow::Result<TcpStream>>) -> anyhow::Result<TcpStream> {
    tokio::time::timeout(LIMIT, what).await.context("no answer in time")?
}

/// Logs in, and leaves, as often as it goes.
pub async fn rate(side: &Side, seconds: u64) -> anyhow::Result<Logins> {
    let keys = Keys::default();
    within(log_in(&side.port, &keys)).await?;
    let before = side.cpu()?;
    let (began, until) = (Instant::now(), Instant::now() + Duration::from_secs(seconds));
    let mut clients = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (port, keys) = (side.port.clone(), Arc::clone(&keys));
        clients.spawn(async move {
            let mut count = 0u32;
            while Instant::now() < until {
                let mut stream = within(log_in(&port, &keys)).await?;
                stream.write_all(&message(b'X', b"")).await?;
                // A proxy that has read it closes; so nothing of this login is left to the next.
                let _ = stream.read(&mut [0; 1]).await;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(done) = clients.join_next().await {
        count += done??;
    }
    let cpu = side.cpu()?.saturating_sub(before);
    Ok(Logins {
        a_second: f64::from(count) / began.elapsed().as_secs_f64(),
        cpu_us: cpu.as_micros() as f64 / f64::from(count.max(1)),
    })
}

/// Bytes of the proxy's own memory for each of `count` clients that have logged in and do nothing.
pub async fn idle_bytes(side: &Side, count: usize) -> anyhow::Result<f64> {
    let keys = Keys::default();
    let mut held = Vec::with_capacity(count);
    // What is made once is not of the clients. The first is one of `count`, which may be all that a tenant is allowed.
    held.push(within(log_in(&side.port, &keys)).await?);
    let before = side.memory()?;
    while held.len() < count {
        let wave = (0..AT_ONCE.min(count - held.len())).map(|_| within(log_in(&side.port, &keys)));
        held.extend(futures::future::try_join_all(wave).await?);
    }
    // The last of them are still being served.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = side.memory()?;
    drop(held);
    Ok(after.saturating_sub(before) as f64 / count.saturating_sub(1).max(1) as f64)
}
