//! Finds in the map what an order names, or says that it is not there and what was probably meant.

use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::language::suggest::closest;
use quorate_model::{Database, DatabaseId, NodeId, NodeRecord, PartitionMap, Refusal};

pub fn node<'m>(map: &'m PartitionMap, name: &str) -> Result<&'m NodeRecord, AdminError> {
    map.node_named(name).ok_or_else(|| {
        let names = map.nodes.values().map(|n| n.name.as_str());
        meant(Refusal::NoSuchNode(name.to_owned()), name, names)
    })
}

pub fn server(map: &PartitionMap, name: &str) -> Result<(), AdminError> {
    if map.server_named(name).is_some() {
        return Ok(());
    }
    let names = map.servers.values().map(|s| s.name.as_str());
    let error = meant(Refusal::NoSuchServer(name.to_owned()), name, names);
    if error.hint.is_some() {
        return Err(error);
    }
    Err(error.with_hint("SHOW SERVERS lists them; CREATE SERVER makes one."))
}

pub fn database<'m>(map: &'m PartitionMap, name: &DatabaseName) -> Result<&'m Database, AdminError> {
    server(map, &name.server)?;
    map.database_named(&name.server, &name.database).ok_or_else(|| {
        let full = name.to_string();
        let names: Vec<String> = map.databases.values().map(|d| map.full_name(d)).collect();
        meant(Refusal::NoSuchDatabase(full.clone()), &full, names.iter().map(String::as_str))
    })
}

/// The database that an order is for. One that was given with this key before is for the database it found then,
/// which may be gone.
pub fn target(map: &PartitionMap, name: &DatabaseName, key: Option<&str>) -> Result<DatabaseId, AdminError> {
    let known = key.and_then(|k| map.operation_keyed(k)).filter(|o| o.target == name.to_string());
    match known {
        Some(operation) => Ok(operation.database),
        None => database(map, name).map(|d| d.id),
    }
}

/// Whether an order was given with this key before: what it found then need not be there any more.
pub fn is_repeated(map: &PartitionMap, key: Option<&String>) -> bool {
    key.is_some_and(|k| map.operation_keyed(k).is_some())
}

fn meant<'a>(refusal: Refusal, name: &str, known: impl Iterator<Item = &'a str>) -> AdminError {
    let error = AdminError::from(refusal);
    match closest(name, known) {
        Some(near) => error.with_hint(format!("Did you mean \"{near}\"?")),
        None => error,
    }
}

/// The name of a node, as people gave it.
pub fn node_name(map: &PartitionMap, node: NodeId) -> String {
    map.nodes.get(&node).map_or_else(|| node.to_string(), |n| n.name.clone())
}
