//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677; the channel binding is `tls-server-end-point` of RFC 5929),
//! the server's side, against the verifier that the database itself holds.
//!
//! The server needs no password and no PBKDF2: the verifier holds what both can be checked with. Pure: the nonce is
//! an argument. For a role that does not exist the exchange is the same, with a salt made from a secret that clients do
//! not know, so that it cannot be told from a wrong password.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

pub const MECHANISM: &[u8] = b"SCRAM-SHA-256";
pub const MECHANISM_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";
const BINDING: &str = "p=tls-server-end-point";
const DEFAULT_ITERATIONS: u32 = 4096;
const MOCK_SALT_BYTES: usize = 16;

/// The verifier of a password, as PostgreSQL stores it: `SCRAM-SHA-256$4096:salt$stored:server`, with a new random salt.
pub fn verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

type Key = [u8; 32];

/// What a password is checked against. It does not give the password away.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
    /// No password fits.
    mock: bool,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("malformed SCRAM message")]
    Malformed,
    #[error("client requires SCRAM channel binding, but it is not supported")]
    ChannelBinding,
    /// The client thinks that this server has no channel binding, but it was offered: somebody has taken it out.
    #[error("SCRAM channel binding negotiation error")]
    Downgraded,
    #[error("SCRAM channel binding check failed")]
    OtherChannel,
    #[error("password authentication failed")]
    WrongPassword,
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    // HMAC takes keys of any length; an error cannot occur, and an all-zero key would fit no proof.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Equality in a time that does not depend on where they differ.
fn same(a: &Key, b: &Key) -> bool {
    a.iter().zip(b).fold(0u8, |differ, (a, b)| differ | (a ^ b)) == 0
}

impl Verifier {
    /// Reads PostgreSQL's form (`pg_authid.rolpassword`).
    pub fn parse(text: &str) -> Option<Verifier> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (front, keys) = rest.split_once('$')?;
        let (iterations, salt) = front.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        Some(Verifier {
            iterations: iterations.parse().ok()?,
            salt: STANDARD.decode(salt).ok()?,
            stored_key: STANDARD.decode(stored).ok()?.try_into().ok()?,
            server_key: STANDARD.decode(server).ok()?.try_into().ok()?,
            mock: false,
        })
    }

    /// For a role without a password: always the same salt for the same role, and no password fits.
    pub fn mock(secret: &[u8], role: &str) -> Verifier {
        let salt = hmac(secret, &[b"mock salt", role.as_bytes()]);
        Verifier {
            iterations: DEFAULT_ITERATIONS,
            salt: salt[..MOCK_SALT_BYTES].to_vec(),
            stored_key: salt,
            server_key: salt,
            mock: true,
        }
    }
}

/// What the channel of a login can be bound to, and whether the client chose to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel<'a> {
    /// There is nothing to bind to: PLUS was not offered.
    Unbound,
    /// PLUS was offered, the client chose the other mechanism.
    Declined,
    /// The client chose PLUS; this is the end point that it must have seen.
    Bound(&'a [u8]),
}

/// An exchange between the client's two messages.
#[derive(Debug)]
pub struct Exchange {
    verifier: Verifier,
    /// What the client's `c=` must say: its header, and the end point if it is bound.
    binding: Vec<u8>,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

impl Exchange {
    /// Takes the client's first message; the second value is the answer to it. `nonce` is fresh and printable.
    pub fn begin(
        verifier: Verifier,
        client_first: &[u8],
        nonce: &str,
        channel: Channel<'_>,
    ) -> Result<(Exchange, String), ScramError> {
        let text = std::str::from_utf8(client_first).map_err(|_| ScramError::Malformed)?;
        let mut parts = text.splitn(3, ',');
        let (Some(binding), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Malformed);
        };
        let end_point = match (binding, channel) {
            ("n", Channel::Unbound | Channel::Declined) | ("y", Channel::Unbound) => &[][..],
            ("y", Channel::Declined) => return Err(ScramError::Downgraded),
            (BINDING, Channel::Bound(end_point)) => end_point,
            _ if binding.starts_with("p=") => return Err(ScramError::ChannelBinding),
            _ => return Err(ScramError::Malformed),
        };
        if !authzid.is_empty() {
            return Err(ScramError::Malformed);
        }
        // The name in it is ignored, as PostgreSQL does: the startup packet says who it is.
        let mut attributes = bare.split(',');
        let name = attributes.next().and_then(|a| a.strip_prefix("n="));
        let client_nonce = attributes.next().and_then(|a| a.strip_prefix("r="));
        let (Some(_), Some(client_nonce)) = (name, client_nonce) else { return Err(ScramError::Malformed) };
        let nonce = format!("{client_nonce}{nonce}");
        let server_first =
            format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let exchange = Exchange {
            verifier,
            binding: [format!("{binding},,").as_bytes(), end_point].concat(),
            client_first_bare: bare.to_owned(),
            server_first: server_first.clone(),
            nonce,
        };
        Ok((exchange, server_first))
    }

    /// Takes the client's last message; the value is the last answer, with which the server proves itself.
    pub fn finish(self, client_final: &[u8]) -> Result<String, ScramError> {
        let text = std::str::from_utf8(client_final).map_err(|_| ScramError::Malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c=")).ok_or(ScramError::Malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        if nonce != self.nonce {
            return Err(ScramError::Malformed);
        }
        if STANDARD.decode(binding).map_err(|_| ScramError::Malformed)? != self.binding {
            return Err(ScramError::OtherChannel);
        }
        let proof: Key =
            STANDARD.decode(proof).ok().and_then(|p| p.try_into().ok()).ok_or(ScramError::Malformed)?;
        let message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let signature = hmac(&self.verifier.stored_key, &[message.as_bytes()]);
        let mut client_key = proof;
        client_key.iter_mut().zip(signature).for_each(|(k, s)| *k ^= s);
        let stored_key: Key = Sha256::digest(client_key).into();
        if !same(&stored_key, &self.verifier.stored_key) || self.verifier.mock {
            return Err(ScramError::WrongPassword);
        }
        let signature = hmac(&self.verifier.server_key, &[message.as_bytes()]);
        Ok(format!("v={}", STANDARD.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    fn login(verifier: Verifier, password: &str) -> Result<(), ScramError> {
        login_by(verifier, password, ChannelBinding::unsupported(), Channel::Unbound)
    }

    fn login_by(
        verifier: Verifier,
        password: &str,
        binding: ChannelBinding,
        channel: Channel<'_>,
    ) -> Result<(), ScramError> {
        let mut client = ScramSha256::new(password.as_bytes(), binding);
        let (exchange, first) = Exchange::begin(verifier, client.message(), "serverNonce", channel)?;
        client.update(first.as_bytes()).unwrap();
        let last = exchange.finish(client.message())?;
        client.finish(last.as_bytes()).unwrap();
        Ok(())
    }

    #[test]
    fn the_right_password_passes_both_ways() {
        let stored = Verifier::parse(&verifier("secret")).unwrap();
        assert_eq!(login(stored.clone(), "secret"), Ok(()));
        assert_eq!(login(stored, "Secret"), Err(ScramError::WrongPassword));
    }

    #[test]
    fn a_bound_channel_must_be_the_one_that_the_client_sees() {
        let stored = || Verifier::parse(&verifier("secret")).unwrap();
        let seen = || ChannelBinding::tls_server_end_point(b"certificate".to_vec());
        let by = |binding, channel| login_by(stored(), "secret", binding, channel);
        assert_eq!(by(seen(), Channel::Bound(b"certificate")), Ok(()));
        assert_eq!(by(seen(), Channel::Bound(b"another")), Err(ScramError::OtherChannel));
        assert_eq!(by(seen(), Channel::Declined), Err(ScramError::ChannelBinding));
        assert_eq!(by(ChannelBinding::unsupported(), Channel::Declined), Ok(()));
        assert_eq!(by(ChannelBinding::unsupported(), Channel::Bound(b"x")), Err(ScramError::Malformed));
        // The client could, and was not offered it: fine without, a downgrade with.
        assert_eq!(by(ChannelBinding::unrequested(), Channel::Unbound), Ok(()));
        assert_eq!(by(ChannelBinding::unrequested(), Channel::Declined), Err(ScramError::Downgraded));
    }

    #[test]
    fn a_mock_is_stable_and_fits_nothing() {
        let mock = Verifier::mock(b"k", "nobody");
        assert_eq!(mock, Verifier::mock(b"k", "nobody"));
        assert_ne!(mock, Verifier::mock(b"k", "somebody"));
        assert_eq!(login(mock, "secret"), Err(ScramError::WrongPassword));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let stored = || Verifier::parse(&verifier("x")).unwrap();
        for first in ["", "n", "n,,", "n,,n=", "z,,n=,r=a", "n,a=b,n=,r=a", "p=tls-unique,,n=,r=a"] {
            assert!(Exchange::begin(stored(), first.as_bytes(), "s", Channel::Unbound).is_err(), "{first}");
        }
        for last in ["", "c=biws,r=as", "c=biws,r=other,p=AAAA", "c=biws,r=as,p=AAAA"] {
            let (exchange, _) = Exchange::begin(stored(), b"n,,n=,r=a", "s", Channel::Unbound).unwrap();
            assert_eq!(exchange.finish(last.as_bytes()), Err(ScramError::Malformed), "{last}");
        }
        assert_eq!(Verifier::parse("md5abc"), None);
        assert_eq!(Verifier::parse("SCRAM-SHA-256$x:AA==$AA==:AA=="), None);
    }
}
