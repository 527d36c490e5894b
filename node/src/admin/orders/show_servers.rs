//! `SHOW SERVERS`: the tenants.

use super::Spec;
use crate::admin::answer::{Answer, Column, int, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_proxy::certificate::ClientAuthorities;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "SERVERS"],
    syntax: "SHOW SERVERS",
    help: "the logical servers (tenants), their logins, how many databases they have, from where their clients may come, and how they show who they are",
    parse: |_| Ok(Arc::new(ShowServers)),
};

const COLUMNS: &[Column] =
    &[text("server"), text("admin"), int("databases"), text("allow"), text("client_auth"), text("client_ca")];

#[derive(Debug)]
struct ShowServers;

#[async_trait::async_trait]
impl Order for ShowServers {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let rows = map
            .servers
            .values()
            .map(|s| {
                let databases = map.databases.values().filter(|d| d.server == s.id).count();
                let authorities = ClientAuthorities::parse(&s.client_ca).map(|a| a.names().join(", "));
                vec![
                    s.name.as_str().into(),
                    s.admin.as_str().into(),
                    databases.into(),
                    s.allow.to_string().into(),
                    s.client_auth.name().into(),
                    authorities.unwrap_or_default().into(),
                ]
            })
            .collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}
