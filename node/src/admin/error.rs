//! What the admin port says when it does not do as told: an SQLSTATE that PostgreSQL would use, one sentence, and
//! where possible what to do instead.

use super::context::ProposeError;
use pgwire::error::{ErrorInfo, PgWireError};
use quorate_model::Refusal;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminError {
    pub code: &'static str,
    pub message: String,
    pub hint: Option<String>,
    /// Characters into the query, from 1.
    pub position: Option<usize>,
}

impl AdminError {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        AdminError { code, message: message.into(), hint: None, position: None }
    }

    pub fn syntax(message: impl Into<String>, position: usize) -> Self {
        AdminError::new("42601", message).with_position(position)
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn with_position(mut self, position: usize) -> Self {
        self.position = Some(position);
        self
    }

    pub fn into_info(self, severity: &str) -> ErrorInfo {
        let mut info = ErrorInfo::new(severity.to_owned(), self.code.to_owned(), self.message);
        info.severity_nonlocalized = Some(severity.to_owned());
        info.hint = self.hint;
        info.position = self.position.map(|p| p.to_string());
        info
    }
}

impl From<AdminError> for PgWireError {
    fn from(error: AdminError) -> Self {
        PgWireError::UserError(Box::new(error.into_info("ERROR")))
    }
}

impl From<Refusal> for AdminError {
    fn from(refusal: Refusal) -> Self {
        let (code, hint) = match &refusal {
            Refusal::NoSuchServer(_) | Refusal::NoSuchReplica(_) => ("42704", None),
            Refusal::NoSuchDatabase(_) => ("3D000", Some("SHOW DATABASES lists them.".to_owned())),
            Refusal::NoSuchNode(_) => ("42704", Some("SHOW NODES lists them.".to_owned())),
            Refusal::NoSuchOperation(_) => ("42704", Some("SHOW OPERATIONS lists them.".to_owned())),
            Refusal::AlreadyExists(what) if what.starts_with("database") => ("42P04", None),
            Refusal::AlreadyExists(_) => ("42710", None),
            Refusal::InvalidName(_) => ("42602", None),
            Refusal::ServerNotEmpty(_) => ("2BP01", None),
            Refusal::Stale { .. } => ("40001", Some("Give the order again.".to_owned())),
            Refusal::WrongPhase(_) => ("55000", None),
            Refusal::Busy(id) => ("55006", Some(format!("WAIT OPERATION {id} tells when it ends."))),
            Refusal::Superseded { .. } => ("40001", None),
            Refusal::NotCancellable { .. } => ("55000", None),
            Refusal::KeyTaken { operation, .. } => {
                ("42710", Some(format!("SHOW OPERATIONS tells what {operation} is; take another key.")))
            }
            Refusal::Unsafe(_) => ("55000", None),
            Refusal::LimitReached(_) => ("53400", None),
        };
        AdminError { hint, ..AdminError::new(code, refusal.to_string()) }
    }
}

impl From<ProposeError> for AdminError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(refusal) => refusal.into(),
            ProposeError::NoLeader => AdminError::new(
                "57P03",
                "the nodes have no leader now, so nothing can be changed",
            )
            .with_hint("More than half of the map's voters must run and reach each other; SHOW NODES tells which do."),
            ProposeError::Unknown => AdminError::new(
                "08007",
                "no answer came in time; the order may or may not have been carried out",
            )
            .with_hint("SHOW OPERATIONS and SHOW DATABASES tell."),
            ProposeError::Unavailable(reason) => AdminError::new("57P03", reason),
        }
    }
}
