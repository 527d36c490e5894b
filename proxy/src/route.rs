//! Where a session belongs: from what a client says to a database, and from a database to its primary. Pure.

use crate::wire::reply::ErrorReply;
use quorate_model::{Database, DatabaseId, Epoch, NodeId, PartitionMap, Phase, ReplicaId, ServerId};

/// Logins that the daemon keeps for itself.
pub use quorate_model::map::RESERVED_LOGINS;

/// The database that a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub database: DatabaseId,
    pub server: ServerId,
    /// The role inside the instance.
    pub user: String,
    /// The database's name inside the instance.
    pub name: String,
    /// From this the salts of roles that do not exist are made; clients never see it.
    pub mock_secret: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("database \"{asked}\" does not exist")]
    Unknown { asked: String, server: Option<String> },
    #[error("database \"{asked}\" does not exist")]
    UnknownServer { asked: String, server: String },
    #[error("database name \"{name}\" is not unique")]
    Ambiguous { name: String, user: String },
    #[error("role \"{0}\" is reserved")]
    Reserved(String),
}

impl RouteError {
    pub fn reply(&self) -> ErrorReply {
        let code = if matches!(self, RouteError::Reserved(_)) { "28000" } else { "3D000" };
        let reply = ErrorReply::fatal(code, self.to_string());
        match self {
            RouteError::Unknown { server: Some(server), .. } => {
                reply.hint(format!("Server \"{server}\" has no such database. Create it with CREATE DATABASE on the admin port."))
            }
            RouteError::Unknown { .. } => {
                reply.hint("No logical server has a database of that name. Check the name, or create it with CREATE DATABASE on the admin port.")
            }
            RouteError::UnknownServer { server, .. } => {
                reply.hint(format!("There is no logical server \"{server}\". Check the part behind \"@\" in the user name, or before \".\" in the database name."))
            }
            RouteError::Ambiguous { name, user } => reply
                .detail("Several logical servers have a database of that name.")
                .hint(format!("Say which one: connect as user \"{user}@SERVER\", or to database \"SERVER.{name}\".")),
            RouteError::Reserved(_) => reply.hint("Connect as the login of your logical server."),
        }
    }
}

/// The logical server that a host name means: its first label (`acme.db.example.com`), if there is one of that name.
pub fn server_of_host<'a>(map: &PartitionMap, host: &'a str) -> Option<&'a str> {
    let (label, _) = host.split_once('.')?;
    map.server_named(label).map(|_| label)
}

/// Finds the database: by `user@server`, by `server.database`, by the host name that the client asked for in TLS, or
/// by a name that is unique.
pub fn route(map: &PartitionMap, user: &str, asked: &str, host: Option<&str>) -> Result<Target, RouteError> {
    let (user, by_user) = match user.rsplit_once('@') {
        Some((user, server)) => (user, Some(server)),
        None => (user, None),
    };
    // A database that was not named is named after the user.
    let asked_name =
        asked.strip_suffix(&by_user.map(|s| format!("@{s}")).unwrap_or_default()).unwrap_or(asked);
    let (name, by_name) = match asked_name.split_once('.') {
        Some((server, name)) => (name, Some(server)),
        None => (asked_name, None),
    };
    if RESERVED_LOGINS.contains(&user) {
        return Err(RouteError::Reserved(user.to_owned()));
    }
    let unknown = |server: Option<&str>| RouteError::Unknown {
        asked: asked.to_owned(),
        server: server.map(str::to_owned),
    };
    for server in by_user.iter().chain(&by_name) {
        if map.server_named(server).is_none() {
            return Err(RouteError::UnknownServer { asked: asked.to_owned(), server: (*server).to_owned() });
        }
    }
    let named = match (by_user, by_name) {
        (Some(a), Some(b)) if a != b => return Err(unknown(Some(a))),
        (by_user, by_name) => by_user.or(by_name).or(host),
    };
    let database = match named {
        Some(server) => map.database_named(server, name).ok_or_else(|| unknown(Some(server)))?,
        None => {
            let mut all = map.databases_called(name);
            match (all.next(), all.next()) {
                (None, _) => return Err(unknown(None)),
                (Some(only), None) => only,
                _ => return Err(RouteError::Ambiguous { name: name.to_owned(), user: user.to_owned() }),
            }
        }
    };
    Ok(target(map, database, user))
}

fn target(map: &PartitionMap, database: &Database, user: &str) -> Target {
    Target {
        database: database.id,
        server: database.server,
        user: user.to_owned(),
        name: database.name.clone(),
        mock_secret: map
            .servers
            .get(&database.server)
            .map(|s| s.verifier.clone().into_bytes())
            .unwrap_or_default(),
    }
}

/// Where the primary of a database is, as far as the map knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    At {
        node: NodeId,
        replica: ReplicaId,
        epoch: Epoch,
    },
    /// Nowhere yet: the phase says why.
    Nowhere(&'static str),
    /// The database is no more.
    Gone,
}

pub fn place(map: &PartitionMap, database: DatabaseId) -> Place {
    let Some(database) = map.databases.get(&database) else { return Place::Gone };
    if database.phase == Phase::Dropping {
        return Place::Gone;
    }
    match database.primary().and_then(|replica| Some((replica, database.node_of(replica)?))) {
        Some((replica, node)) => Place::At { node, replica, epoch: database.epoch },
        None => Place::Nowhere(database.phase.name()),
    }
}

/// What a phase means for somebody who waits.
pub fn phase_of(map: &PartitionMap, database: DatabaseId) -> &'static str {
    map.databases.get(&database).map_or("dropped", |d| d.phase.name())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use quorate_model::{Command, NodeRecord};

    fn map() -> PartitionMap {
        let mut map = PartitionMap::default();
        for id in 1..=3 {
            let record = NodeRecord {
                id: NodeId(id),
                name: format!("n{id}"),
                fault_domain: format!("f{id}"),
                update_domain: format!("u{id}"),
                region: String::new(),
                peer: String::new(),
                client: String::new(),
                admin: String::new(),
                http: String::new(),
                version: String::new(),
            };
            map.apply(Command::RegisterNode(record)).unwrap();
        }
        for server in ["acme", "beta"] {
            let (name, admin) = (server.to_owned(), server.to_owned());
            let verifier = crate::scram::verifier("x");
            map.apply(Command::CreateServer { name, admin, verifier }).unwrap();
        }
        for (server, name) in [("acme", "app"), ("beta", "app"), ("acme", "only")] {
            let placement = vec![NodeId(1), NodeId(2)];
            map.apply(Command::CreateDatabase {
                server: server.into(),
                name: name.into(),
                placement,
                now_ms: 0,
            })
            .unwrap();
        }
        map
    }

    #[test]
    fn finds_by_every_form() {
        let map = map();
        let found = |user: &str, name: &str| {
            route(&map, user, name, None).map(|t| (t.user, map.full_name(&map.databases[&t.database])))
        };
        assert_eq!(found("u", "only").unwrap(), ("u".into(), "acme.only".into()));
        assert_eq!(found("u@beta", "app").unwrap(), ("u".into(), "beta.app".into()));
        assert_eq!(found("u", "acme.app").unwrap(), ("u".into(), "acme.app".into()));
        assert_eq!(found("only@acme", "only@acme").unwrap(), ("only".into(), "acme.only".into()));
        assert!(matches!(found("u", "app"), Err(RouteError::Ambiguous { .. })));
        assert!(matches!(found("u@beta", "only"), Err(RouteError::Unknown { .. })));
        assert!(matches!(found("u@beta", "acme.app"), Err(RouteError::Unknown { .. })));
        assert!(matches!(found("u@x", "only"), Err(RouteError::UnknownServer { .. })));
        assert!(matches!(found("u", "nothing"), Err(RouteError::Unknown { server: None, .. })));
        assert!(matches!(found("quorate@acme", "app"), Err(RouteError::Reserved(_))));
        assert_eq!(found("u", "nothing").unwrap_err().reply().code, "3D000");
        let by_host = |host: &str, user: &str, name: &str| {
            let target = route(&map, user, name, server_of_host(&map, host))?;
            Ok::<_, RouteError>(map.full_name(&map.databases[&target.database]))
        };
        assert_eq!(by_host("beta.db.example.com", "u", "app").unwrap(), "beta.app");
        assert_eq!(
            by_host("beta.db.example.com", "u@acme", "app").unwrap(),
            "acme.app",
            "the user's word counts"
        );
        assert_eq!(by_host("node1.example.com", "u", "only").unwrap(), "acme.only", "no server, so no word");
        assert!(matches!(by_host("beta.db.example.com", "u", "only"), Err(RouteError::Unknown { .. })));
        assert!(matches!(by_host("beta", "u", "app"), Err(RouteError::Ambiguous { .. })));
    }

    #[test]
    fn a_database_being_made_is_nowhere() {
        let map = map();
        let id = *map.databases.keys().next().unwrap();
        assert_eq!(place(&map, id), Place::Nowhere("creating"));
        assert_eq!(place(&map, DatabaseId(999)), Place::Gone);
    }
}
