//! Where messages begin in a byte stream that arrives cut anywhere. Pure.
//!
//! After the startup packet every message of the PostgreSQL protocol is one type byte, a length (big endian, itself
//! included), and a body (protocol documentation, "Message Formats"). The tunnel forwards bytes as they come; it only
//! wants to see the head of each message. The scanner looks at the five bytes of the header and at the first
//! [`PEEK_BYTES`] of the body, and steps over the rest without touching it, so a message of any size passes in
//! constant memory. Bytes are kept only when a head is split between two reads.

/// How much of a body is shown: type byte, and two positions of the log ('w': start, end; 'r': write, flush).
pub const PEEK_BYTES: usize = 17;

/// Type byte and length.
const HEADER_BYTES: usize = 5;

const HEAD_BYTES: usize = HEADER_BYTES + PEEK_BYTES;

/// The longest message that is believed: what one PostgreSQL allocation can hold.
pub const FRAME_LIMIT_BYTES: u32 = 0x3fff_ffff;

/// The head of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    pub kind: u8,
    /// The first bytes of the body: all of it, or [`PEEK_BYTES`].
    pub body: &'a [u8],
    /// How long the body is.
    pub length: usize,
}

/// A length that no message can have: the two ends no longer agree where messages begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of type {kind:#04x} claims a length of {length} bytes")]
pub struct Malformed {
    pub kind: u8,
    pub length: u32,
}

/// Follows one direction of a connection.
#[derive(Debug, Default)]
pub struct Scanner {
    /// The beginning of a head that was split; `held` bytes of it are here.
    head: [u8; HEAD_BYTES],
    held: usize,
    /// Bytes of the current body still to step over.
    skip: usize,
}

impl Scanner {
    /// Whether the next byte begins a message.
    pub fn at_boundary(&self) -> bool {
        self.held == 0 && self.skip == 0
    }

    /// Takes the next bytes of the stream and shows the head of each message that becomes complete in them.
    pub fn feed(&mut self, mut bytes: &[u8], mut show: impl FnMut(Head<'_>)) -> Result<(), Malformed> {
        loop {
            let step = self.skip.min(bytes.len());
            self.skip -= step;
            bytes = &bytes[step..];
            if bytes.is_empty() {
                return Ok(());
            }
            if self.held == 0 {
                // The usual case: the head lies whole in the buffer, and is read where it is.
                match head_length(bytes)? {
                    Some((wanted, message)) if bytes.len() >= wanted => {
                        let length = message - HEADER_BYTES;
                        show(Head { kind: bytes[0], body: &bytes[HEADER_BYTES..wanted], length });
                        bytes = &bytes[wanted..];
                        self.skip = message - wanted;
                        continue;
                    }
                    _ => {
                        // Shorter than a head, so it fits.
                        self.head[..bytes.len()].copy_from_slice(bytes);
                        self.held = bytes.len();
                        return Ok(());
                    }
                }
            }
            let wanted = head_length(&self.head[..self.held])?.map_or(HEADER_BYTES, |(wanted, _)| wanted);
            let step = (wanted - self.held).min(bytes.len());
            self.head[self.held..self.held + step].copy_from_slice(&bytes[..step]);
            self.held += step;
            bytes = &bytes[step..];
            if let Some((wanted, message)) = head_length(&self.head[..self.held])?
                && self.held >= wanted
            {
                let length = message - HEADER_BYTES;
                show(Head { kind: self.head[0], body: &self.head[HEADER_BYTES..wanted], length });
                self.skip = message - wanted;
                self.held = 0;
            }
        }
    }
}

/// How many bytes the head of this message has and how many the whole message, once its header is there.
fn head_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let [kind, a, b, c, d, ..] = *bytes else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    if !(4..=FRAME_LIMIT_BYTES).contains(&length) {
        return Err(Malformed { kind, length });
    }
    let message = 1 + length as usize;
    Ok(Some((message.min(HEAD_BYTES), message)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    fn scan(pieces: &[&[u8]]) -> Result<Vec<(u8, Vec<u8>)>, Malformed> {
        let mut scanner = Scanner::default();
        let mut seen = Vec::new();
        for piece in pieces {
            scanner.feed(piece, |head| seen.push((head.kind, head.body.to_vec())))?;
        }
        Ok(seen)
    }

    #[test]
    fn bodies_of_every_small_length_at_every_cut() {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for length in 0..40u8 {
            let body: Vec<u8> = (0..length).map(|i| i ^ 0x5a).collect();
            stream.extend(message(b'd', &body));
            expected.push((b'd', body[..body.len().min(PEEK_BYTES)].to_vec()));
        }
        for cut in 0..=stream.len() {
            let (a, b) = stream.split_at(cut);
            assert_eq!(scan(&[a, b]).unwrap(), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(scan(&single).unwrap(), expected);
    }

    #[test]
    fn random_streams_at_random_cuts() {
        for seed in 0..300u64 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for _ in 0..rng.random_range(1..50) {
                let length =
                    if rng.random_bool(0.1) { rng.random_range(0..200_000) } else { rng.random_range(0..60) };
                let body: Vec<u8> = (0..length).map(|_| rng.random()).collect();
                let kind = *b"dWkCZSE".get(rng.random_range(0..7)).unwrap();
                stream.extend(message(kind, &body));
                expected.push((kind, body[..body.len().min(PEEK_BYTES)].to_vec()));
            }
            let mut pieces = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(rng.random_range(1..=rest.len().min(70_000)));
                pieces.push(piece);
                rest = tail;
            }
            assert_eq!(scan(&pieces).unwrap(), expected, "seed {seed}");
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0u32, 3, FRAME_LIMIT_BYTES + 1, u32::MAX] {
            let mut stream = message(b'Z', b"I");
            stream.push(b'd');
            stream.extend_from_slice(&length.to_be_bytes());
            let whole = scan(&[&stream]).unwrap_err();
            assert_eq!(whole, Malformed { kind: b'd', length });
            let single: Vec<&[u8]> = stream.chunks(1).collect();
            assert_eq!(scan(&single).unwrap_err(), whole);
        }
    }
}
