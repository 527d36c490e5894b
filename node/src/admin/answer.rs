//! Answers as values, and their form on the wire. Columns are an interface: scripts read them by name, so their
//! names and order stand as constants beside each order.

use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse, Response, Tag};
use pgwire::error::PgWireResult;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Int,
    Bool,
    Float,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

pub const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

pub const fn int(name: &'static str) -> Column {
    Column { name, kind: Kind::Int }
}

pub const fn boolean(name: &'static str) -> Column {
    Column { name, kind: Kind::Bool }
}

pub const fn float(name: &'static str) -> Column {
    Column { name, kind: Kind::Float }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Text(String),
    Int(i64),
    Bool(bool),
    Float(f64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Value::Int(i64::from(number))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Bool(truth)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Float(number)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

pub type Row = Vec<Value>;

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Rows {
        tag: &'static str,
        columns: &'static [Column],
        rows: Vec<Row>,
    },
    /// Carried out, nothing to show; the command tag.
    Done(&'static str),
    /// BEGIN and its like. Orders are carried out at once; the words are taken because drivers send them.
    Begin,
    End(&'static str),
}

impl Answer {
    /// In the wire's form; `format` is what the client asked for.
    pub fn into_response(self, format: &Format) -> PgWireResult<Response> {
        let (tag, columns, rows) = match self {
            Answer::Done(tag) => return Ok(Response::Execution(Tag::new(tag))),
            Answer::Begin => return Ok(Response::TransactionStart(Tag::new("BEGIN"))),
            Answer::End(tag) => return Ok(Response::TransactionEnd(Tag::new(tag))),
            Answer::Rows { tag, columns, rows } => (tag, columns, rows),
        };
        let fields = Arc::new(fields(columns, format));
        let mut encoder = DataRowEncoder::new(fields.clone());
        let mut encoded = Vec::with_capacity(rows.len());
        for row in rows {
            debug_assert_eq!(row.len(), columns.len(), "{tag}");
            for (value, column) in row.iter().zip(columns) {
                encode(&mut encoder, value, column.kind)?;
            }
            encoded.push(Ok(encoder.take_row()));
        }
        let mut response = QueryResponse::new(fields, futures::stream::iter(encoded));
        response.set_command_tag(tag);
        Ok(Response::Query(response))
    }
}

fn encode(encoder: &mut DataRowEncoder, value: &Value, kind: Kind) -> PgWireResult<()> {
    match (value, kind) {
        (Value::Text(text), _) => encoder.encode_field(text),
        (Value::Int(number), _) => encoder.encode_field(number),
        (Value::Bool(truth), _) => encoder.encode_field(truth),
        (Value::Float(number), _) => encoder.encode_field(number),
        (Value::Null, Kind::Text) => encoder.encode_field(&None::<String>),
        (Value::Null, Kind::Int) => encoder.encode_field(&None::<i64>),
        (Value::Null, Kind::Bool) => encoder.encode_field(&None::<bool>),
        (Value::Null, Kind::Float) => encoder.encode_field(&None::<f64>),
    }
}

/// Descriptions of the columns in the formats asked for.
pub fn fields(columns: &[Column], format: &Format) -> Vec<FieldInfo> {
    columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let (datatype, size) = match column.kind {
                Kind::Text => (Type::TEXT, -1),
                Kind::Int => (Type::INT8, 8),
                Kind::Bool => (Type::BOOL, 1),
                Kind::Float => (Type::FLOAT8, 8),
            };
            FieldInfo::new(column.name.to_owned(), None, None, datatype, format_of(format, i))
                .with_type_size(size)
        })
        .collect()
}

/// `Format::format_for` panics when a client names fewer formats than there are columns.
fn format_of(format: &Format, column: usize) -> FieldFormat {
    match format {
        Format::Individual(codes) => codes.get(column).copied().map_or(FieldFormat::Text, FieldFormat::from),
        unified => unified.format_for(0),
    }
}
