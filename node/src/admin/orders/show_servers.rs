//! `SHOW SERVERS`: the tenants.

use super::Spec;
use crate::admin::answer::{Answer, Column, int, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "SERVERS"],
    syntax: "SHOW SERVERS",
    help: "the logical servers (tenants), their logins, how many databases they have, and from where their clients may come",
    parse: |_| Ok(Arc::new(ShowServers)),
};

const COLUMNS: &[Column] = &[text("server"), text("admin"), int("databases"), text("allow")];

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
                let allow = s.allow.to_string();
                vec![s.name.as_str().into(), s.admin.as_str().into(), databases.into(), allow.into()]
            })
            .collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}
