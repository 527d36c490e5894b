//! Who may give orders: one operator login, proved by SCRAM-SHA-256 against a verifier. The password itself is
//! never here, and an unknown name is answered as slowly and in the same words as a wrong password.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pgwire::api::auth::sasl::scram::ScramSecret;
use pgwire::api::auth::{AuthSource, LoginInfo, Password};
use pgwire::error::{PgWireError, PgWireResult};
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, as PostgreSQL keeps it in `rolpassword`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: usize,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

/// What every verifier begins with.
pub const VERIFIER_PREFIX: &str = "SCRAM-SHA-256$";

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

/// Says nothing of the text itself, which is a secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a SCRAM-SHA-256 verifier")]
pub struct BadVerifier;

impl From<ParseIntError> for BadVerifier {
    fn from(_: ParseIntError) -> Self {
        BadVerifier
    }
}

impl FromStr for Verifier {
    type Err = BadVerifier;

    fn from_str(text: &str) -> Result<Self, BadVerifier> {
        let rest = text.trim().strip_prefix(VERIFIER_PREFIX).ok_or(BadVerifier)?;
        let (how, keys) = rest.split_once('$').ok_or(BadVerifier)?;
        let (iterations, salt) = how.split_once(':').ok_or(BadVerifier)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(BadVerifier)?;
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| BadVerifier);
        let verifier = Verifier {
            iterations: iterations.parse()?,
            salt: decode(salt)?,
            stored_key: decode(stored_key)?,
            server_key: decode(server_key)?,
        };
        let keys_fit = verifier.stored_key.len() == SHA256_BYTES && verifier.server_key.len() == SHA256_BYTES;
        if keys_fit && !verifier.salt.is_empty() && verifier.iterations > 0 {
            Ok(verifier)
        } else {
            Err(BadVerifier)
        }
    }
}

const SHA256_BYTES: usize = 32;

impl Verifier {
    fn secret(&self) -> ScramSecret {
        ScramSecret::Verifier {
            salt: self.salt.clone(),
            iterations: self.iterations,
            stored_key: self.stored_key.clone(),
            server_key: self.server_key.clone(),
        }
    }

    /// A verifier that no password fits, with a salt that is always the same for the same name: so that asking
    /// twice does not tell a made-up salt from a kept one.
    fn nobody(&self, name: &str) -> Verifier {
        use hmac::{Hmac, Mac};
        let mut salt = self.salt.clone();
        if let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(&self.server_key) {
            mac.update(name.as_bytes());
            salt = mac.finalize().into_bytes()[..self.salt.len().min(SHA256_BYTES)].to_vec();
        }
        let random: [u8; SHA256_BYTES] = rand::random();
        Verifier { salt, stored_key: random.to_vec(), server_key: random.to_vec(), ..self.clone() }
    }
}

/// The login of the admin port.
#[derive(Clone, Debug)]
pub struct Operator {
    pub user: String,
    pub verifier: Verifier,
}

#[async_trait::async_trait]
impl AuthSource for Operator {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        Err(PgWireError::InvalidPassword(login.user().unwrap_or_default().to_owned()))
    }

    async fn get_scram_secret(&self, login: &LoginInfo) -> PgWireResult<(ScramSecret, Option<()>)> {
        let user = login.user().unwrap_or_default();
        let verifier = if user == self.user { self.verifier.clone() } else { self.verifier.nobody(user) };
        Ok((verifier.secret(), None))
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Of the password `admin`, made by PostgreSQL 15.
    pub const ADMIN: &str = "SCRAM-SHA-256$4096:edQII+Zg9I4dlNRo7edPoA==$aSUCNXWHJKuh358C6VHd9MW/STw2S7+BlnAAVUM7yow=:xm23s4p1xA4qDQCQ/g8+15093MDeF+73zrfMZmIQWaU=";

    #[test]
    fn reads_postgresqls_form_and_nothing_else() {
        assert!(ADMIN.parse::<Verifier>().is_ok());
        assert!(format!("{ADMIN}\n").parse::<Verifier>().is_ok());
        for bad in
            ["", "admin", "md5abc", "SCRAM-SHA-256$4096:AA==$AA==:AA==", "SCRAM-SHA-256$x:AA==$AA==:AA=="]
        {
            assert_eq!(bad.parse::<Verifier>(), Err(BadVerifier), "{bad}");
        }
    }

    #[test]
    fn an_unknown_name_has_one_salt_and_no_password() {
        let real: Verifier = ADMIN.parse().unwrap();
        let (a, b) = (real.nobody("eve"), real.nobody("eve"));
        assert_eq!(a.salt, b.salt);
        assert_eq!(a.salt.len(), real.salt.len());
        assert_ne!(a.salt, real.nobody("mallory").salt);
        assert_ne!(a.stored_key, b.stored_key);
    }
}
