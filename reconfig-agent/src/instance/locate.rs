//! Finding PostgreSQL: a directory that holds all the programs an instance needs, of a supported version.

use super::version::{OLDEST_MAJOR, Version};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The programs that are run. A directory without all of them is not used.
const PROGRAMS: [&str; 5] = ["postgres", "initdb", "pg_basebackup", "pg_controldata", "pg_rewind"];

/// Names the directory to use when no other was given.
const VARIABLE: &str = "QUORATE_PG_BIN";

/// One PostgreSQL installation.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    version: Version,
}

#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    #[error("{directory}: {reason}")]
    Unusable { directory: PathBuf, reason: String },
    #[error(
        "no PostgreSQL {OLDEST_MAJOR} or newer was found in PATH or where packages put it (/usr/lib/postgresql/*/bin); hint: install one with scripts/setup, or set {VARIABLE} to the directory of its programs"
    )]
    NotFound,
}

impl Postgres {
    /// `explicit`, else `QUORATE_PG_BIN`, else the first usable directory of PATH, else the newest installed one.
    /// A directory that was named and cannot be used is an error, never passed over.
    pub fn locate(explicit: Option<&Path>) -> Result<Arc<Postgres>, LocateError> {
        let named = explicit
            .map(Path::to_owned)
            .or_else(|| std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from));
        if let Some(directory) = named {
            return inspect(&directory)
                .map(Arc::new)
                .map_err(|reason| LocateError::Unusable { directory, reason });
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if let Some(found) = std::env::split_paths(&path).find_map(|dir| inspect(&dir).ok()) {
            return Ok(Arc::new(found));
        }
        installed()
            .into_iter()
            .filter_map(|dir| inspect(&dir).ok())
            .max_by_key(|found| found.version)
            .map(Arc::new)
            .ok_or(LocateError::NotFound)
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn bin(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// Where packages put it: `/usr/lib/postgresql/<major>/bin` (Debian), `/usr/lib/postgresql<major>/bin` (SUSE),
/// `/usr/libexec/postgresql<major>` (Alpine), `/usr/pgsql-<major>/bin` (the PGDG's RPMs). `scripts/setup` looks there too.
fn installed() -> Vec<PathBuf> {
    let in_directory = |parent: &str, prefix: &'static str| {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        entries
            .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path())
    };
    let with_bin = in_directory("/usr/lib/postgresql", "")
        .chain(in_directory("/usr/lib", "postgresql"))
        .chain(in_directory("/usr", "pgsql-"))
        .map(|path| path.join("bin"));
    with_bin.chain(in_directory("/usr/libexec", "postgresql")).collect()
}

fn inspect(directory: &Path) -> Result<Postgres, String> {
    for program in PROGRAMS {
        if !directory.join(program).is_file() {
            return Err(format!("the program {program} is missing"));
        }
    }
    let bin = directory.canonicalize().map_err(|e| e.to_string())?;
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| format!("postgres --version: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = Version::parse(&text).ok_or_else(|| "postgres --version says nothing known".to_owned())?;
    if version.major < OLDEST_MAJOR {
        return Err(format!("PostgreSQL {version} is too old, {OLDEST_MAJOR} or newer is needed"));
    }
    Ok(Postgres { bin, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_directory_is_never_passed_over() {
        let error = Postgres::locate(Some(Path::new("/nonexistent"))).err();
        assert!(matches!(error, Some(LocateError::Unusable { .. })), "{error:?}");
    }
}
