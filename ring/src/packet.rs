//! The datagrams of the ring. Little endian, at most [`MAX_DATAGRAM`] bytes, so that none is fragmented:
//!
//! ```text
//!  0  magic     "QR"
//!  2  version   1
//!  3  zero
//!  4  from      u64   node id of the sender
//! 12  to        u64   node id of the receiver
//! 20  incarn.   u64   which run of the sender's process
//! 28  sequence  u64   counts the datagrams of that run up, to whomever they go
//! 36  body      postcard of `Body`
//!  n  tag       16 bytes: HMAC-SHA256 of everything before, with the cluster's key, cut
//! ```
//!
//! The tag is checked before anything else is looked at, so a stranger's bytes reach no parser. Whether a
//! genuine datagram is also a new one is decided by [`crate::freshness`] from `incarnation` and `sequence`.

use crate::lease::LeaseEntry;
use crate::verdict::Verdict;
use hmac::{Hmac, Mac};
use quorate_model::NodeId;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Bytes of the largest datagram that is sent or accepted.
pub const MAX_DATAGRAM: usize = 1200;
/// Bytes before the body.
pub const HEADER: usize = 36;
/// Bytes of the tag.
pub const TAG: usize = 16;
/// Bytes of the largest body.
pub const MAX_BODY: usize = MAX_DATAGRAM - HEADER - TAG;
/// Bytes that a body needs around the bytes of [`Body::Gossip`]: its kind and a length.
const GOSSIP_OVERHEAD: usize = 1 + 3;
/// Bytes of the largest packet of the gossip protocol.
pub const MAX_GOSSIP: usize = MAX_BODY - GOSSIP_OVERHEAD;

const MAGIC: [u8; 4] = [b'Q', b'R', 1, 0];

/// Who sends what to whom, and which of its datagrams it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub from: NodeId,
    pub to: NodeId,
    pub incarnation: u64,
    pub sequence: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// To a run of a node that is not known here: prove that you are there now.
    Challenge {
        nonce: u64,
    },
    /// The proof.
    Answer {
        nonce: u64,
    },
    /// I am here. `reply`: and if you are not about to say the same to me anyway, say it.
    Heartbeat {
        reply: bool,
    },
    /// The sender's word about another node.
    Verdict(Verdict),
    /// Grant me leases for the databases named.
    LeaseRequest(LeaseRequest),
    LeaseAnswer(LeaseAnswer),
    /// A packet of the gossip protocol.
    Gossip(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Comes back in the answer, and names the moment at which this was sent.
    pub nonce: u64,
    /// For how long, counted by the requester from when it sent this.
    pub lease_us: u32,
    pub entries: Vec<LeaseEntry>,
}

/// Bit `i` of `granted` answers entry `i` of the request with this nonce.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseAnswer {
    pub nonce: u64,
    pub granted: Vec<u8>,
}

/// Why bytes are no datagram of this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("a datagram of {0} bytes cannot be of this protocol")]
    Size(usize),
    #[error("the tag does not fit: another cluster's key, or a forgery")]
    Tag,
    #[error("another version of the protocol")]
    Version,
    #[error("the body cannot be read")]
    Body,
    #[error("a body of {0} bytes does not fit into a datagram")]
    TooLarge(usize),
}

/// Seals and opens datagrams with the cluster's key. The key is not shown by `Debug`.
#[derive(Clone)]
pub struct Codec {
    mac: Hmac<Sha256>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codec")
    }
}

impl Codec {
    pub fn new(key: &[u8; 32]) -> Self {
        // HMAC takes keys of any length; one of up to a block is padded with zeros to a block.
        let mut block = [0; 64];
        block[..key.len()].copy_from_slice(key);
        Codec { mac: <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block.into()) }
    }

    pub fn seal(&self, envelope: &Envelope, body: &Body) -> Result<Vec<u8>, PacketError> {
        let mut bytes = Vec::with_capacity(MAX_DATAGRAM);
        bytes.extend_from_slice(&MAGIC);
        for word in [envelope.from.0, envelope.to.0, envelope.incarnation, envelope.sequence] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let mut bytes = postcard::to_extend(body, bytes).map_err(|_| PacketError::Body)?;
        let body_len = bytes.len() - HEADER;
        if body_len > MAX_BODY {
            return Err(PacketError::TooLarge(body_len));
        }
        let tag = self.mac.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag[..TAG]);
        Ok(bytes)
    }

    pub fn open(&self, bytes: &[u8]) -> Result<(Envelope, Body), PacketError> {
        if bytes.len() <= HEADER + TAG || bytes.len() > MAX_DATAGRAM {
            return Err(PacketError::Size(bytes.len()));
        }
        let (signed, tag) = bytes.split_at(bytes.len() - TAG);
        self.mac.clone().chain_update(signed).verify_truncated_left(tag).map_err(|_| PacketError::Tag)?;
        let (header, body) = signed.split_at(HEADER);
        if header[..4] != MAGIC {
            return Err(PacketError::Version);
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let envelope = Envelope {
            from: NodeId(word(4)),
            to: NodeId(word(12)),
            incarnation: word(20),
            sequence: word(28),
        };
        match postcard::take_from_bytes::<Body>(body) {
            Ok((body, [])) => Ok((envelope, body)),
            Ok(_) | Err(_) => Err(PacketError::Body),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::verdict::Word;
    use proptest::prelude::*;
    use quorate_model::{DatabaseId, Epoch};

    const ENVELOPE: Envelope = Envelope { from: NodeId(1), to: NodeId(2), incarnation: 3, sequence: 4 };

    fn codec() -> Codec {
        Codec::new(&[7; 32])
    }

    fn bodies() -> impl Strategy<Value = Body> {
        let entry = (any::<u64>(), any::<[u64; 3]>()).prop_map(|(database, [d, p, c])| LeaseEntry {
            database: DatabaseId(database),
            epoch: Epoch::new(d, p, c),
        });
        let word =
            prop_oneof![Just(Word::Alive), any::<u64>().prop_map(|silent_ms| Word::Suspect { silent_ms })];
        prop_oneof![
            any::<u64>().prop_map(|nonce| Body::Challenge { nonce }),
            any::<u64>().prop_map(|nonce| Body::Answer { nonce }),
            any::<bool>().prop_map(|reply| Body::Heartbeat { reply }),
            (any::<[u64; 4]>(), word).prop_map(|([subject, reporter, incarnation, number], word)| {
                let (subject, reporter) = (NodeId(subject), NodeId(reporter));
                Body::Verdict(Verdict { subject, reporter, incarnation, number, word })
            }),
            (any::<u64>(), any::<u32>(), proptest::collection::vec(entry, 0..25)).prop_map(
                |(nonce, lease_us, entries)| Body::LeaseRequest(LeaseRequest { nonce, lease_us, entries })
            ),
            (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..64))
                .prop_map(|(nonce, granted)| Body::LeaseAnswer(LeaseAnswer { nonce, granted })),
            proptest::collection::vec(any::<u8>(), 0..=MAX_GOSSIP).prop_map(Body::Gossip),
        ]
    }

    /// RFC 4231, test case 2: a short key and a known tag, so that other implementations can join.
    #[test]
    fn the_tag_is_hmac_sha256() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let tag = Codec::new(&key).mac.chain_update(b"what do ya want for nothing?").finalize();
        assert_eq!(tag.into_bytes()[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }

    #[test]
    fn another_key_opens_nothing() {
        let bytes = codec().seal(&ENVELOPE, &Body::Heartbeat { reply: true }).unwrap();
        assert_eq!(Codec::new(&[8; 32]).open(&bytes), Err(PacketError::Tag));
    }

    #[test]
    fn another_version_is_told_apart() {
        let codec = codec();
        let mut bytes = codec.seal(&ENVELOPE, &Body::Heartbeat { reply: true }).unwrap();
        bytes[2] = 2;
        let signed = bytes.len() - TAG;
        let tag = codec.mac.clone().chain_update(&bytes[..signed]).finalize().into_bytes();
        bytes[signed..].copy_from_slice(&tag[..TAG]);
        assert_eq!(codec.open(&bytes), Err(PacketError::Version));
    }

    #[test]
    fn what_is_too_large_is_not_sent() {
        let largest = Body::Gossip(vec![0; MAX_GOSSIP]);
        assert!(codec().seal(&ENVELOPE, &largest).unwrap().len() <= MAX_DATAGRAM);
        let larger = Body::Gossip(vec![0; MAX_DATAGRAM]);
        assert!(matches!(codec().seal(&ENVELOPE, &larger), Err(PacketError::TooLarge(_))));
        assert_eq!(codec().open(&[0; MAX_DATAGRAM + 1]), Err(PacketError::Size(MAX_DATAGRAM + 1)));
    }

    #[test]
    fn trailing_bytes_are_refused_even_when_signed() {
        let codec = codec();
        let mut bytes = codec.seal(&ENVELOPE, &Body::Heartbeat { reply: true }).unwrap();
        bytes.truncate(bytes.len() - TAG);
        bytes.push(0);
        let tag = codec.mac.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag[..TAG]);
        assert_eq!(codec.open(&bytes), Err(PacketError::Body));
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(body in bodies(), words in any::<[u64; 4]>()) {
            let [from, to, incarnation, sequence] = words;
            let envelope = Envelope { from: NodeId(from), to: NodeId(to), incarnation, sequence };
            let bytes = codec().seal(&envelope, &body).unwrap();
            prop_assert!(bytes.len() <= MAX_DATAGRAM);
            prop_assert_eq!(codec().open(&bytes), Ok((envelope, body)));
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
            prop_assert!(codec().open(&bytes).is_err());
        }

        /// Even with the right tag: a peer of a later version, or one that went mad, harms nobody.
        #[test]
        fn arbitrary_signed_bodies_do_not_panic(body in proptest::collection::vec(any::<u8>(), 1..MAX_BODY)) {
            let codec = codec();
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&[0; HEADER - 4]);
            bytes.extend_from_slice(&body);
            let tag = codec.mac.clone().chain_update(&bytes).finalize().into_bytes();
            bytes.extend_from_slice(&tag[..TAG]);
            let _ = codec.open(&bytes);
        }

        #[test]
        fn a_flipped_bit_or_a_cut_is_noticed(body in bodies(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let bytes = codec().seal(&ENVELOPE, &body).unwrap();
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            prop_assert!(codec().open(&flipped).is_err());
            prop_assert!(codec().open(&bytes[..at.index(bytes.len())]).is_err());
        }
    }
}
