//! Where an instance's files are.
//!
//! `<replicas>/r<ID>/` belongs to the daemon and holds what PostgreSQL must not touch (the promise, the mark that
//! the data is complete, the log); `data/` in it belongs to the instance's user. The two socket directories are
//! apart from it, because a socket's path may have no more than 107 bytes.

use super::error::InstanceError;
use super::files;
use super::user::OsUser;
use quorate_model::ReplicaId;
use std::path::{Path, PathBuf};

/// `sun_path` without its closing zero byte.
pub const SOCKET_PATH_LIMIT_BYTES: usize = 107;

/// Every instance and every tunnel uses this name in its own directory.
pub const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The directory of the replica: the daemon writes it, others may only pass through to what they own below.
const ROOT_MODE: u32 = 0o711;
const PRIVATE_MODE: u32 = 0o700;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub root: PathBuf,
    /// PGDATA.
    pub data: PathBuf,
    /// Holds the instance's own socket.
    pub sockets: PathBuf,
    /// Holds the tunnel's socket: the host of `primary_conninfo`.
    pub tunnel: PathBuf,
    /// The replica's durable promise to an epoch; written by the agent.
    pub promise: PathBuf,
    pub log: PathBuf,
    /// Exists exactly when `data` was finished by bootstrap or seed.
    pub complete: PathBuf,
    /// Exists from before a promotion until its end is known to be in the log.
    pub promoting: PathBuf,
    /// Exists from before a rewind touches `data` until the instance has answered after it.
    pub rewinding: PathBuf,
    /// Exists from the end of a rewind until the replica is past its floor.
    pub rewound: PathBuf,
    /// Exists when the data cannot be trusted any more; holds the reason.
    pub distrusted: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error(
        "the socket path {path} has {bytes} bytes and the system allows {SOCKET_PATH_LIMIT_BYTES}: use a shorter run directory"
    )]
    TooLong { path: PathBuf, bytes: usize },
    #[error(
        "{0:?} cannot be written into a PostgreSQL configuration: it is relative, not UTF-8, or holds a control character"
    )]
    Unprintable(PathBuf),
}

impl Paths {
    pub fn new(replicas_dir: &Path, run_dir: &Path, replica: ReplicaId) -> Result<Paths, PathError> {
        let root = replicas_dir.join(replica.to_string());
        let paths = Paths {
            data: root.join("data"),
            sockets: run_dir.join(format!("{}s", replica.0)),
            tunnel: run_dir.join(format!("{}t", replica.0)),
            promise: root.join("promise"),
            log: root.join("postgres.log"),
            complete: root.join("complete"),
            promoting: root.join("promoting"),
            rewinding: root.join("rewinding"),
            rewound: root.join("rewound"),
            distrusted: root.join("distrusted"),
            root,
        };
        for path in [&paths.root, &paths.sockets, &paths.tunnel] {
            let printable = path.to_str().is_some_and(|s| !s.chars().any(char::is_control));
            if !printable || !path.is_absolute() {
                return Err(PathError::Unprintable(path.clone()));
            }
        }
        for directory in [&paths.sockets, &paths.tunnel] {
            let path = directory.join(SOCKET_NAME);
            let bytes = path.as_os_str().len();
            if bytes > SOCKET_PATH_LIMIT_BYTES {
                return Err(PathError::TooLong { path, bytes });
            }
        }
        Ok(paths)
    }

    /// Makes the directories that are missing, with their owners and modes, and checks that the instance's user
    /// gets through to them. Blocking.
    pub fn prepare(&self, user: &OsUser) -> Result<(), InstanceError> {
        files::make_directory(&self.root, ROOT_MODE)?;
        for directory in [&self.data, &self.sockets, &self.tunnel] {
            // A test, or an operator, may point the tunnel's directory elsewhere.
            if directory.is_symlink() {
                continue;
            }
            files::make_directory(directory, PRIVATE_MODE)?;
            user.own(directory)?;
        }
        user.check_reaches(&self.data)?;
        user.check_reaches(&self.sockets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_path_limit_is_checked_at_once() {
        let run = PathBuf::from(format!("/{}", "x".repeat(107 - 2 - 3 - SOCKET_NAME.len())));
        let replicas = Path::new("/var/lib/q");
        assert!(Paths::new(replicas, &run, ReplicaId(7)).is_ok());
        let error = Paths::new(replicas, &run, ReplicaId(10)).err();
        assert!(matches!(error, Some(PathError::TooLong { bytes: 108, .. })), "{error:?}");
        assert!(matches!(
            Paths::new(Path::new("relative"), Path::new("/run"), ReplicaId(1)),
            Err(PathError::Unprintable(_))
        ));
    }
}
