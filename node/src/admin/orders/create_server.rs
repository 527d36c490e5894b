//! `CREATE SERVER`: makes a tenant. Only a verifier of its password is ever kept.

use super::Spec;
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::Command;
use std::fmt;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["CREATE", "SERVER"],
    syntax: "CREATE SERVER s ADMIN u PASSWORD 'p'",
    help: "makes a logical server (tenant) with its login",
    parse: |phrase| {
        let name = phrase.name("the name of the new server")?;
        phrase.keyword("ADMIN")?;
        let admin = phrase.name("the name of the server's login")?;
        phrase.keyword("PASSWORD")?;
        let password = phrase.text("the password in single quotes")?;
        if password.is_empty() || password.len() > MAX_PASSWORD_BYTES {
            let message = format!("a password has 1 to {MAX_PASSWORD_BYTES} bytes");
            return Err(AdminError::new("22023", message));
        }
        Ok(Arc::new(CreateServer { name, admin, password: Password(password) }))
    },
};

/// Longest password, in bytes.
const MAX_PASSWORD_BYTES: usize = 1024;

/// Shows itself in no log.
struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[derive(Debug)]
struct CreateServer {
    name: String,
    admin: String,
    password: Password,
}

#[async_trait::async_trait]
impl Order for CreateServer {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let verifier = session.context.scram_verifier(&self.password.0);
        let command = Command::CreateServer { name: self.name.clone(), admin: self.admin.clone(), verifier };
        session.propose(&format!("create server {}", self.name), command).await?;
        Ok(Answer::Done("CREATE SERVER"))
    }
}
