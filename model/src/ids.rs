//! Identities. Each is a number of its own type, handed out by the partition map and never reused.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// One machine that runs the daemon. Chosen by the operator, 1 or more.
    NodeId, "n"
);
id!(
    /// A logical server: a tenant.
    ServerId, "s"
);
id!(
    /// A database: the unit of replication, placement and failover.
    DatabaseId, "d"
);
id!(
    /// One copy of a database. A rebuilt copy is a new replica: the number is never reused, so that nothing
    /// said about a lost copy can be believed of its successor.
    ReplicaId, "r"
);
id!(
    /// A long-running change, recorded in the map.
    OperationId, "op"
);

impl ReplicaId {
    /// The name under which this replica's walreceiver is known to a primary: its `application_name`, its
    /// entry in `synchronous_standby_names`, and its replication slot.
    pub fn standby_name(self) -> String {
        self.to_string()
    }

    /// The inverse of [`ReplicaId::standby_name`].
    pub fn from_standby_name(name: &str) -> Option<Self> {
        name.strip_prefix('r')?.parse().ok().map(ReplicaId)
    }
}
