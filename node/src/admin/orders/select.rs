//! `SELECT` of a constant: what pools and drivers send to see whether the connection lives. Everything else of
//! SQL belongs to the client port.

use super::Spec;
use crate::admin::answer::{Answer, Column, Value, int, text};
use crate::admin::error::AdminError;
use crate::admin::language::lexer::Token;
use crate::admin::language::phrase::Phrase;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

pub const SPEC: Spec = Spec { words: &["SELECT"], syntax: "SELECT 1", help: "", parse };

fn parse(phrase: &mut Phrase<'_>) -> Result<Arc<dyn Order>, AdminError> {
    let not_sql = AdminError::new("0A000", "this is the admin port: it speaks orders, not SQL")
        .with_position(phrase.at())
        .with_hint("SHOW HELP lists the orders. SQL goes to the client port of any node.");
    let chosen = match phrase.peek().map(|l| &l.token) {
        Some(Token::Number(number)) => Select::Value(INT, (*number).into()),
        Some(Token::Text(value)) => Select::Value(TEXT, value.as_str().into()),
        Some(Token::Word(word)) => match word.as_str() {
            "version" => Select::Value(VERSION, format!("Quorate {}", crate::VERSION).into()),
            "current_database" => Select::Value(DATABASE, crate::admin::server::DATABASE.into()),
            "current_user" | "session_user" | "user" => Select::User,
            "true" => Select::Value(TEXT, "t".into()),
            _ => return Err(not_sql),
        },
        _ => return Err(not_sql),
    };
    phrase.skip();
    for symbol in ['(', ')'] {
        if phrase.peek().map(|l| &l.token) == Some(&Token::Symbol(symbol)) {
            phrase.skip();
        }
    }
    if phrase.peek().is_some() { Err(not_sql) } else { Ok(Arc::new(chosen)) }
}

const INT: &[Column] = &[int("?column?")];
const TEXT: &[Column] = &[text("?column?")];
const VERSION: &[Column] = &[text("version")];
const DATABASE: &[Column] = &[text("current_database")];
const USER: &[Column] = &[text("current_user")];

#[derive(Debug)]
enum Select {
    Value(&'static [Column], Value),
    User,
}

#[async_trait::async_trait]
impl Order for Select {
    fn columns(&self) -> &'static [Column] {
        match self {
            Select::Value(columns, _) => columns,
            Select::User => USER,
        }
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let value = match self {
            Select::Value(_, value) => value.clone(),
            Select::User => session.user.as_str().into(),
        };
        Ok(Answer::Rows { tag: "SELECT", columns: self.columns(), rows: vec![vec![value]] })
    }
}
