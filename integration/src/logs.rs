//! What a failed test shows: where the logs are, and how they end.

use std::path::{Path, PathBuf};

/// Lines of each log that are shown.
const TAIL_LINES: usize = 30;
/// How deep logs are looked for: `DIR/n1/replicas/r7/data/log/postgresql.log` and a little more.
const DEPTH: usize = 8;
/// Directories of PostgreSQL with very many files and no logs.
const SKIPPED: [&str; 6] = ["base", "pg_wal", "global", "pg_xact", "pg_stat", "pg_replslot"];

/// Every file that looks like a log, in name order.
pub fn find(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(directory, DEPTH, &mut found);
    found.sort();
    found
}

fn collect(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 && !SKIPPED.contains(&name.as_ref()) {
            collect(&path, depth - 1, found);
        } else if kind.is_file() && is_log(&name) {
            found.push(path);
        }
    }
}

/// A node's is called just `log`.
fn is_log(name: &str) -> bool {
    name == "log" || [".log", ".out", ".err"].iter().any(|ending| name.ends_with(ending))
}

/// Prints where the logs are and their last lines.
pub fn show(directory: &Path) {
    eprintln!("---- logs are under {} (kept) ----", directory.display());
    for log in find(directory) {
        let Ok(bytes) = std::fs::read(&log) else { continue };
        let tail = tail(&String::from_utf8_lossy(&bytes), TAIL_LINES);
        if !tail.is_empty() {
            eprintln!("---- {} ----\n{tail}", log.display());
        }
    }
    eprintln!("---- end of logs ----");
}

pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_logs_and_not_tables() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["n1/log", "n1/r1/data/base/1.log", "demo.out", "n1/node.toml"] {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let names: Vec<_> =
            find(directory.path()).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["demo.out", "log"]);
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
    }
}
