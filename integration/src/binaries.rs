//! Where the programs are that a test runs.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};

/// The daemon under test: `QUORATE_BIN`, or `quorate` in the directory of Cargo's output this test lies in.
pub fn quorate() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("QUORATE_BIN") {
        let given = PathBuf::from(given);
        anyhow::ensure!(given.is_file(), "QUORATE_BIN={} is no file", given.display());
        return Ok(given);
    }
    let me = std::env::current_exe().context("where is this program")?;
    // target/release/deps/lose_node-…, or target/release/bench-failover
    for directory in me.ancestors().skip(1).take(2) {
        let candidate = directory.join("quorate");
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("no `quorate` beside {}: run `make build`, or set QUORATE_BIN", me.display())
}

/// A program of PostgreSQL: in `QUORATE_PG_BIN`, else on PATH, else in the newest of the usual directories.
pub fn postgres(program: &str) -> anyhow::Result<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    if let Some(given) = std::env::var_os("QUORATE_PG_BIN") {
        directories.push(PathBuf::from(given));
    }
    if let Some(path) = std::env::var_os("PATH") {
        directories.extend(std::env::split_paths(&path));
    }
    directories.extend(installed());
    directories
        .iter()
        .map(|d| d.join(program))
        .find(|p| p.is_file())
        .with_context(|| format!("no {program} found: run scripts/setup, or set QUORATE_PG_BIN"))
}

/// `/usr/lib/postgresql/*/bin`, newest first.
fn installed() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let mut versions: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, bin)| bin).collect()
}

/// A Python that can import psycopg: `QUORATE_PYTHON`, the venv that scripts/setup makes, or the system's.
pub fn python() -> anyhow::Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    candidates.extend(std::env::var_os("QUORATE_PYTHON").map(PathBuf::from));
    candidates.extend(cache().map(|c| c.join("venv/bin/python")));
    candidates.push(PathBuf::from("python3"));
    candidates.push(PathBuf::from("/usr/bin/python3"));
    candidates
        .into_iter()
        .find(|python| {
            std::process::Command::new(python)
                .args(["-c", "import psycopg"])
                .stderr(std::process::Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
        .context("no Python with psycopg: run scripts/setup, or set QUORATE_PYTHON")
}

/// Patroni's directory of programs: `QUORATE_PATRONI_BIN`, or the venv that `scripts/setup --bench` makes. Run as root,
/// that one lies where the instances' user can read it.
pub fn patroni() -> anyhow::Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    candidates.extend(std::env::var_os("QUORATE_PATRONI_BIN").map(PathBuf::from));
    candidates.push(PathBuf::from("/var/cache/quorate/patroni/bin"));
    candidates.extend(cache().map(|c| c.join("patroni/bin")));
    let found =
        candidates.into_iter().find(|d| d.join("patroni").is_file() && d.join("patronictl").is_file());
    found.context("no Patroni: run scripts/setup --bench, or set QUORATE_PATRONI_BIN")
}

/// A program on PATH, or in one of the directories of the system that an ordinary PATH leaves out.
pub fn system(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/bin", "/usr/sbin"].map(PathBuf::from));
    let found = directories.iter().map(|d| d.join(program)).find(|p| p.is_file());
    found.with_context(|| format!("no {program} found: run scripts/setup --bench"))
}

/// Where scripts/setup keeps what it makes.
pub fn cache() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    cache.map(|c| c.join("quorate"))
}

/// Whether this runs as root: instances then run as `postgres`, and so does what a test starts itself.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// This package's directory. Clones share what is compiled, so it is asked for when a test runs: the clone that compiled
/// it may be gone.
pub fn sources() -> PathBuf {
    let given = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    given.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}
