//! `SET` and `SHOW` of PostgreSQL's settings: taken because clients send them, without effect here.

use super::Spec;
use crate::admin::answer::{Answer, Column, text};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::Phrase;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

pub const SET: Spec =
    Spec { words: &["SET"], syntax: "SET", help: "", parse: |phrase| ignore(phrase, "SET") };
pub const RESET: Spec =
    Spec { words: &["RESET"], syntax: "RESET", help: "", parse: |phrase| ignore(phrase, "RESET") };
pub const DISCARD: Spec =
    Spec { words: &["DISCARD"], syntax: "DISCARD", help: "", parse: |phrase| ignore(phrase, "DISCARD ALL") };

fn ignore(phrase: &mut Phrase<'_>, tag: &'static str) -> Result<Arc<dyn Order>, AdminError> {
    while phrase.peek().is_some() {
        phrase.skip();
    }
    Ok(Arc::new(Ignored(tag)))
}

#[derive(Debug)]
struct Ignored(&'static str);

#[async_trait::async_trait]
impl Order for Ignored {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, _session: &Session) -> Result<Answer, AdminError> {
        Ok(Answer::Done(self.0))
    }
}

macro_rules! settings {
    ($($name:ident = $value:expr),* $(,)?) => {
        const SETTINGS: &[(&str, &str, &[Column])] =
            &[$((stringify!($name), $value, &[text(stringify!($name))])),*];
    };
}

settings! {
    server_version = crate::admin::server::SERVER_VERSION,
    server_version_num = crate::admin::server::SERVER_VERSION_NUM,
    server_encoding = "UTF8",
    client_encoding = "UTF8",
    standard_conforming_strings = "on",
    integer_datetimes = "on",
    is_superuser = "off",
    transaction_isolation = "read committed",
    default_transaction_isolation = "read committed",
    transaction_read_only = "off",
    default_transaction_read_only = "off",
    in_hot_standby = "off",
    search_path = "\"$user\", public",
    datestyle = "ISO, MDY",
    intervalstyle = "postgres",
    timezone = "Etc/UTC",
    statement_timeout = "0",
    lock_timeout = "0",
    idle_in_transaction_session_timeout = "0",
    max_identifier_length = "63",
    extra_float_digits = "1",
}

fn find(name: &str) -> Option<&'static (&'static str, &'static str, &'static [Column])> {
    SETTINGS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name))
}

pub fn is_known(name: &str) -> bool {
    find(name).is_some() || name == "transaction"
}

/// Reads the name that follows `SHOW`.
pub fn parse(phrase: &mut Phrase<'_>) -> Result<Arc<dyn Order>, AdminError> {
    let mut name = phrase.name("a setting")?;
    if name == "transaction" {
        phrase.keyword("ISOLATION")?;
        phrase.keyword("LEVEL")?;
        name = "transaction_isolation".to_owned();
    }
    phrase.end()?;
    let (_, value, columns) = find(&name).ok_or_else(|| {
        AdminError::new("42704", format!("unrecognized configuration parameter \"{name}\""))
    })?;
    Ok(Arc::new(ShowSetting { columns, value }))
}

#[derive(Debug)]
struct ShowSetting {
    columns: &'static [Column],
    value: &'static str,
}

#[async_trait::async_trait]
impl Order for ShowSetting {
    fn columns(&self) -> &'static [Column] {
        self.columns
    }

    async fn run(&self, _session: &Session) -> Result<Answer, AdminError> {
        Ok(Answer::Rows { tag: "SHOW", columns: self.columns, rows: vec![vec![self.value.into()]] })
    }
}
