//! Tables in a document, between two marks: what stands around them is written by people.

use crate::binaries;
use anyhow::Context;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const END: &str = "<!-- end of figures -->";

fn begin(command: &str) -> String {
    format!("<!-- figures: written by make {command} -->")
}

/// Puts `figures` in place of those that `make command` wrote before, under a line that says on what they were had.
/// `beside`: what else was measured, with its version.
pub fn write(path: &Path, command: &str, figures: &str, beside: &str, took: Duration) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let figures = format!("{}\n\n{figures}", machine(beside, took));
    let text =
        between_marks(&text, command, &figures).with_context(|| format!("no marks in {}", path.display()))?;
    Ok(std::fs::write(path, text)?)
}

fn between_marks(text: &str, command: &str, figures: &str) -> Option<String> {
    let begin = begin(command);
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n\n{}\n\n{END}{after}", figures.trim()))
}

/// On what, and when.
fn machine(beside: &str, took: Duration) -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|m| m.1.trim()));
    let cores = cpus.lines().filter(|l| l.starts_with("processor")).count();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let version = binaries::postgres("postgres").map(|p| said(Command::new(p).arg("--version")));
    format!(
        "{}; {cores} cores ({}), {} GiB; Linux {}; {}; {beside}. The run took {} minutes.",
        said(Command::new("date").arg("+%Y-%m-%d")),
        model.unwrap_or("unknown"),
        kib >> 20,
        said(Command::new("uname").arg("-r")),
        version.unwrap_or_default(),
        took.as_secs() / 60,
    )
}

/// What a program prints, without the space around it.
pub fn said(command: &mut Command) -> String {
    let output = command.output();
    output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let text = format!("above\n{}\nold\n{END}\nbelow\n", begin("x"));
        let new = between_marks(&text, "x", "new").unwrap();
        assert_eq!(new, format!("above\n{}\n\nnew\n\n{END}\nbelow\n", begin("x")));
        assert_eq!(between_marks(&new, "x", "new").unwrap(), new);
        assert!(between_marks(&text, "y", "new").is_none());
    }
}
