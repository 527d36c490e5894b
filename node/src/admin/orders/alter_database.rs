//! `ALTER DATABASE … SET`: the options of a database.

use super::{Spec, lookup, option};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::{DatabaseName, Phrase};
use crate::admin::order::{Order, Session};
use quorate_model::{Command, Commits, DatabaseOption, Outcomes, PoolMode, Reads};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["ALTER", "DATABASE"],
    syntax: "ALTER DATABASE s.d SET reads = 'lease' | 'confirm', or commits = 'guarded' | 'strict', \
        or outcomes = 'tracked' | 'untracked', or pool_mode = 'session' | 'transaction', or pool_size = 20",
    help: "reads: results leave the primary under a lease, or after a voter confirmed; \
        commits: acknowledged on Postgres's word, or on what the quorum has; \
        outcomes: whether a commit whose answer was lost with its primary is asked for at the next one; \
        pool_mode: clients that connect from now on have a server connection each, or share those of their node, \
        of which there are pool_size at most",
    parse: |phrase| {
        let name = phrase.database()?;
        phrase.keyword("SET")?;
        let option = read(phrase)?;
        Ok(Arc::new(AlterDatabase { name, option }))
    },
};

fn read(phrase: &mut Phrase<'_>) -> Result<DatabaseOption, AdminError> {
    if phrase.has("COMMITS") {
        let named = |value: &str| Commits::named(value).map(DatabaseOption::Commits);
        return option::named(phrase, "commits", "'guarded' or 'strict'", named);
    }
    if phrase.has("READS") {
        let named = |value: &str| Reads::named(value).map(DatabaseOption::Reads);
        return option::named(phrase, "reads", "'lease' or 'confirm'", named);
    }
    if phrase.has("OUTCOMES") {
        let named = |value: &str| Outcomes::named(value).map(DatabaseOption::Outcomes);
        return option::named(phrase, "outcomes", "'tracked' or 'untracked'", named);
    }
    if phrase.has("POOL_MODE") {
        let named = |value: &str| PoolMode::named(value).map(DatabaseOption::PoolMode);
        return option::named(phrase, "pool_mode", "'session' or 'transaction'", named);
    }
    if phrase.has("POOL_SIZE") {
        let named = |value: &str| value.parse().ok().filter(|n| *n > 0).map(DatabaseOption::PoolSize);
        return option::named(phrase, "pool_size", "a number from 1 to 65535", named);
    }
    Err(phrase.unexpected(&["READS", "COMMITS", "OUTCOMES", "POOL_MODE", "POOL_SIZE"]))
}

#[derive(Debug)]
struct AlterDatabase {
    name: DatabaseName,
    option: DatabaseOption,
}

#[async_trait::async_trait]
impl Order for AlterDatabase {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        lookup::database(&*session.fresh_map().await, &self.name)?;
        let command = Command::SetOption {
            server: self.name.server.clone(),
            name: self.name.database.clone(),
            option: self.option,
        };
        session.propose(&format!("alter database {} set {}", self.name, self.option), command).await?;
        Ok(Answer::Done("ALTER DATABASE"))
    }
}
