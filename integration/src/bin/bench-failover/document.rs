//! The tables in a document, between two marks: what stands around them is written by people.

use super::report::Report;
use anyhow::Context;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const BEGIN: &str = "<!-- figures: written by make bench-failover -->";
const END: &str = "<!-- end of figures -->";

pub fn write(path: &Path, report: &Report, took: Duration) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let figures = format!("{}\n\n{report}", machine(took));
    let text = between_marks(&text, &figures).with_context(|| format!("no marks in {}", path.display()))?;
    Ok(std::fs::write(path, text)?)
}

fn between_marks(text: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", figures.trim()))
}

/// On what, and when.
fn machine(took: Duration) -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|m| m.1.trim()));
    let cores = cpus.lines().filter(|l| l.starts_with("processor")).count();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let version =
        quorate_integration::binaries::postgres("postgres").map(|p| said(Command::new(p).arg("--version")));
    let patroni = quorate_integration::binaries::patroni()
        .map(|p| said(Command::new(p.join("patroni")).arg("--version")));
    format!(
        "{}; {cores} cores ({}), {} GiB; Linux {}; {}; {}. The run took {} minutes.",
        said(Command::new("date").arg("+%Y-%m-%d")),
        model.unwrap_or("unknown"),
        kib >> 20,
        said(Command::new("uname").arg("-r")),
        version.unwrap_or_default(),
        patroni.unwrap_or_else(|_| "without Patroni".to_owned()),
        took.as_secs() / 60,
    )
}

fn said(command: &mut Command) -> String {
    let output = command.output();
    output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let text = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let new = between_marks(&text, "new").unwrap();
        assert_eq!(new, format!("above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n"));
        assert_eq!(between_marks(&new, "new").unwrap(), new);
        assert!(between_marks("no marks", "new").is_none());
    }
}
