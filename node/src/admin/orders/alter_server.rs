//! `ALTER SERVER … SET`: the options of a logical server.

use super::{Spec, lookup, option};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::Phrase;
use crate::admin::order::{Order, Session};
use quorate_model::{AllowList, ClientAuth, Command, ServerOption};
use quorate_proxy::certificate::ClientAuthorities;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["ALTER", "SERVER"],
    syntax: "ALTER SERVER s SET allow = 'all' | '10.0.0.0/8, 192.0.2.7', \
        or client_auth = 'password' | 'certificate' | 'either' | 'both', or client_ca = '-----BEGIN CERTIFICATE-----…'",
    help: "allow: from which addresses its clients may connect; \
        client_auth: what they show to log in, the role's password or a certificate whose common name is the role; \
        client_ca: who signs these certificates (PEM; '' for nobody). Sessions that are there stay",
    parse: |phrase| {
        let name = phrase.name("the name of a server")?;
        phrase.keyword("SET")?;
        let option = read(phrase)?;
        Ok(Arc::new(AlterServer { name, option }))
    },
};

fn read(phrase: &mut Phrase<'_>) -> Result<ServerOption, AdminError> {
    if phrase.has("ALLOW") {
        return option::value(phrase, "'all', or addresses and networks with commas between them", |text| {
            AllowList::parse(text).map(ServerOption::Allow).map_err(|error| error.to_string())
        });
    }
    if phrase.has("CLIENT_AUTH") {
        let named = |text: &str| ClientAuth::named(text).map(ServerOption::ClientAuth);
        return option::named(phrase, "client_auth", "'password', 'certificate', 'either' or 'both'", named);
    }
    if phrase.has("CLIENT_CA") {
        return option::value(phrase, "certificates of authorities in PEM, or ''", |text| {
            if !text.trim().is_empty() {
                ClientAuthorities::parse(text).map_err(|error| format!("client_ca: {error}"))?;
            }
            Ok(ServerOption::ClientCa(text.trim().to_owned()))
        });
    }
    Err(phrase.unexpected(&["ALLOW", "CLIENT_AUTH", "CLIENT_CA"]))
}

#[derive(Debug)]
struct AlterServer {
    name: String,
    option: ServerOption,
}

#[async_trait::async_trait]
impl Order for AlterServer {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        lookup::server(&*session.fresh_map().await, &self.name)?;
        let command = Command::SetServerOption { server: self.name.clone(), option: self.option.clone() };
        session.propose(&format!("alter server {} set {}", self.name, self.option), command).await?;
        Ok(Answer::Done("ALTER SERVER"))
    }
}
