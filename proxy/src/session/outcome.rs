//! The outcome of a commit whose answer was lost with its server: found at the next primary, and told to the client in
//! place of that answer.

use super::follow::{Follow, Primary};
use super::shared::Shared;
use super::{Next, Session, aborted, stopping};
use crate::gate::control::Fate;
use crate::route::Target;
use crate::rpc::{Question, Reply};
use crate::wire::reply::ErrorReply;
use crate::wire::tracker::Committing;
use metrics::counter;
use std::fmt::Display;
use tokio::time::Instant;

/// Statements whose answers were lost, by what was found out.
pub const LOST_ANSWERS: &str = "quorate_lost_answers_total";

/// What is told of a commit.
enum Told {
    Committed,
    Aborted,
    /// Why it is not known.
    Unknown(String),
}

impl Shared {
    /// What became of a transaction that was committing at `from`. Asked until then.
    async fn fate(&self, target: &Target, from: Primary, id: u64, until: Instant) -> Told {
        let mut follow = Follow::new(self, target, until);
        let unknown = |error: ErrorReply| {
            Told::Unknown(
                [Some(error.message), error.detail].into_iter().flatten().collect::<Vec<_>>().join(". "),
            )
        };
        loop {
            let primary = match follow.primary().await {
                Ok(primary) => primary,
                Err(error) => return unknown(error),
            };
            let (database, since) = (target.database, from.epoch);
            let question = Question::Fate { database, epoch: primary.epoch, since, id };
            let reply = tokio::select! {
                reply = self.ask(primary.node, question) => reply,
                () = follow.moved(primary) => Err("the primary moved".to_owned()),
            };
            let why = match reply {
                Ok(Reply::Fate(Fate::Committed | Fate::CommittedHere)) => return Told::Committed,
                Ok(Reply::Fate(Fate::Aborted)) => return Told::Aborted,
                Ok(Reply::Fate(Fate::Unknown)) => {
                    return Told::Unknown("The primary does not know the transaction any more".to_owned());
                }
                Ok(Reply::Fate(Fate::InProgress)) => "the transaction has not ended".to_owned(),
                Ok(Reply::NotOpen(why)) | Err(why) => why,
                Ok(Reply::Role(_) | Reply::Done) => "the primary's node gave no answer".to_owned(),
            };
            if let Err(error) = follow.again(why).await {
                return unknown(error);
            }
        }
    }
}

impl Session {
    /// Finds out what became of the commit in flight, and says it.
    pub(super) async fn resolve(&mut self, committing: Committing, why: &str) -> Next {
        let Committing { id, answer, kept_if_committed, kept_if_aborted } = committing;
        let until = Instant::now() + self.shared.config.hold;
        let told = tokio::select! {
            told = self.shared.fate(&self.target, self.primary, id, until) => told,
            () = self.relay.client_gone() => return Next::End,
            () = self.shared.stop.cancelled() => {
                Told::Unknown(stopping().detail.unwrap_or_default())
            }
        };
        let (outcome, kept) = match told {
            Told::Committed => {
                self.relay.answer_with(&answer);
                ("committed", kept_if_committed)
            }
            Told::Aborted => {
                self.relay.abort_with(aborted(why).bytes());
                ("aborted", kept_if_aborted)
            }
            Told::Unknown(reason) => return self.unknown(why, Some(reason), kept_if_aborted).await,
        };
        counter!(LOST_ANSWERS, "outcome" => outcome).increment(1);
        tracing::info!(database = %self.target.database, id, outcome, "the outcome of a lost commit was found");
        match kept {
            None => Next::GoOn,
            Some(kept) => self.lost_state(why, &kept).await,
        }
    }

    /// What was in flight may have been committed or not.
    pub(super) async fn unknown(&mut self, why: &str, reason: Option<String>, kept: Option<String>) -> Next {
        counter!(LOST_ANSWERS, "outcome" => "unknown").increment(1);
        let error = unknown(why, reason);
        match kept {
            None => {
                self.relay.abort_with(error.bytes());
                Next::GoOn
            }
            Some(kept) => {
                let detail = error.detail.clone().unwrap_or_default();
                let error = ErrorReply { severity: "FATAL", ..error }
                    .detail(format!("{detail} The session also held {kept}, which cannot be moved."));
                self.fatal(error).await;
                Next::End
            }
        }
    }

    /// The session ends for what it held.
    pub(super) async fn lost_state(&mut self, why: &str, kept: &str) -> Next {
        let error = ErrorReply::fatal("57P01", format!("the session's server is gone: {why}"))
            .detail(format!("The session held {kept} on it, which cannot be moved."))
            .hint("Connect again, and make it anew.");
        self.fatal(error).await;
        Next::End
    }
}

fn unknown(why: impl Display, reason: Option<String>) -> ErrorReply {
    let mut detail =
        "The outcome of the statement that was running is unknown: it may have been committed or not."
            .to_owned();
    if let Some(reason) = reason {
        detail += &format!(" {}.", reason.trim_end_matches('.'));
    }
    ErrorReply::error("08007", format!("the session's server is gone: {why}"))
        .detail(detail)
        .hint("Ask the database whether the change is there before repeating it.")
}
