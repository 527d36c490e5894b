//! Making anew, at another server, what the former one held for the session.

use super::attach::Answer;
use crate::config::{ATTACH_DEADLINE, MAX_REBUILD_ANSWER_BYTES};
use crate::stream::Stream;
use crate::wire::control::CONTROL;
use crate::wire::header::{HEADER_BYTES, c_string};
use crate::wire::inquiry::Making;
use crate::wire::lane::{Front, Lane};
use crate::wire::reply::field;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Why it did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server is gone, or says nothing.
    Lost,
    /// It would not: what, and its reason.
    Refused { what: String, why: String },
}

/// Makes everything in order. What the server says of its parameters, and what came behind the last answer, is added to
/// `answer`. Returns the statements that could not be prepared any more.
pub async fn rebuild(
    stream: &mut Stream,
    answer: &mut Answer,
    all: &[Making],
) -> Result<Vec<Box<[u8]>>, Failure> {
    if all.is_empty() {
        return Ok(Vec::new());
    }
    timeout(ATTACH_DEADLINE, make(stream, answer, all)).await.unwrap_or(Err(Failure::Lost))
}

async fn make(stream: &mut Stream, answer: &mut Answer, all: &[Making]) -> Result<Vec<Box<[u8]>>, Failure> {
    // At once, so that it takes one round trip: what is answered is less than the kernel holds for us.
    let bytes: Vec<u8> = all.iter().flat_map(|making| making.bytes.iter().copied()).collect();
    stream.write_all(&bytes).await.map_err(|_| Failure::Lost)?;
    stream.flush().await.map_err(|_| Failure::Lost)?;
    let mut lane = Lane::default();
    let mut taken = std::mem::take(&mut answer.rest);
    let mut makings = all.iter();
    let mut making = makings.next();
    let (mut failed, mut read) = (Vec::new(), 0);
    loop {
        while !taken.is_empty() {
            let space = lane.space();
            let n = space.len().min(taken.len());
            space[..n].copy_from_slice(&taken[..n]);
            lane.fill(n);
            taken.drain(..n);
        }
        let Some(current) = making else {
            answer.rest.extend_from_slice(lane.unjudged());
            return Ok(failed);
        };
        let header = match lane.front(|_| true).map_err(|_| Failure::Lost)? {
            Front::Whole(header) => header,
            Front::Nothing => {
                let n = stream.read(lane.space()).await.map_err(|_| Failure::Lost)?;
                read += n;
                if n == 0 || read > MAX_REBUILD_ANSWER_BYTES {
                    return Err(Failure::Lost);
                }
                lane.fill(n);
                continue;
            }
            Front::Large(_) | Front::Part(_) => return Err(Failure::Lost),
        };
        let message = &lane.unjudged()[..header.total];
        let body = &message[HEADER_BYTES..];
        match header.tag {
            b'Z' if current.fails && body != b"E" => return Err(Failure::Lost),
            b'Z' => making = makings.next(),
            b'S' => {
                if let Some((name, rest)) = c_string(body)
                    && let Some((value, _)) = c_string(rest)
                {
                    answer.params.push((name.to_vec(), value.to_vec()));
                }
            }
            // It listens already.
            b'A' => answer.rest.extend_from_slice(message),
            b'E' if matches!(field(body, b'V'), Some(b"FATAL" | b"PANIC")) => return Err(Failure::Lost),
            b'E' if current.fails => {}
            b'E' if current.statement.is_some() => failed.extend(current.statement.clone()),
            b'E' => {
                let why = String::from_utf8_lossy(field(body, b'M').unwrap_or_default()).into_owned();
                return Err(Failure::Refused { what: current.what.clone(), why });
            }
            CONTROL => return Err(Failure::Lost),
            _ => {}
        }
        lane.remove(header.total);
    }
}
