//! Which crate may know which. The drawing is a table here, so that a new edge is a decision somebody makes in a
//! commit and not something that happened: `node` on top, pure words at the bottom, and only `partition-map`
//! between the daemon and Raft.

use anyhow::{Context, ensure};
use serde_json::Value;
use std::process::Command;

/// Crates of the workspace, each with those it may depend on. Names without the `quorate-` prefix.
const DRAWN: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("transport", &["model"]),
    ("ring", &["model"]),
    ("throttle", &["model"]),
    ("partition-map", &["model", "transport"]),
    ("reconfig-agent", &["model", "transport"]),
    ("proxy", &["model", "transport", "throttle"]),
    ("node", &["model", "transport", "ring", "throttle", "partition-map", "reconfig-agent", "proxy"]),
    // Runs the daemon's control plane in one process, on a ground of its own.
    ("sim", &["model", "transport", "ring", "partition-map", "reconfig-agent", "proxy", "node"]),
    // Looks at the daemon from outside, as its users do.
    ("integration", &["model"]),
    // Runs the daemon's decisions inside models.
    ("checker", &["model", "ring", "reconfig-agent"]),
    ("xtask", &[]),
];

/// Foreign crates that only one crate may name, so that replacing one stays a change of one crate.
const KEPT: &[(&str, &[&str])] = &[
    ("openraft", &["partition-map"]),
    ("redb", &["partition-map"]),
    ("foca", &["ring"]),
    ("pgwire", &["proxy", "node"]),
    ("axum", &["node"]),
    ("clap", &["node", "integration", "checker", "sim"]),
    ("stateright", &["checker"]),
    ("anyhow", &["node", "integration", "sim", "xtask"]),
];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub from: String,
    pub to: String,
    /// Whether `to` is a crate of this workspace.
    pub ours: bool,
}

/// The edges that Cargo sees, dev- and build-dependencies included.
pub fn of_workspace() -> anyhow::Result<Vec<Edge>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Clones share what is compiled: the one that compiled it may be gone.
    let directory =
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let manifest = format!("{directory}/Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1", "--manifest-path", &manifest])
        .output()
        .context("running cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    parse(&metadata)
}

fn parse(metadata: &Value) -> anyhow::Result<Vec<Edge>> {
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let name = |value: &Value| -> anyhow::Result<String> {
        let name = value["name"].as_str().context("a package without a name")?;
        Ok(name.strip_prefix("quorate-").unwrap_or(name).to_owned())
    };
    let members = packages.iter().map(name).collect::<anyhow::Result<Vec<String>>>()?;
    let mut edges = Vec::new();
    for package in packages {
        let from = name(package)?;
        for dependency in package["dependencies"].as_array().context("a package without dependencies")? {
            let to = name(dependency)?;
            // Rooms of this house are found by path; a foreign crate of the same short name is not one of them.
            let ours = dependency["path"].is_string() && members.contains(&to);
            edges.push(Edge { from: from.clone(), to, ours });
        }
    }
    edges.sort();
    edges.dedup();
    Ok(edges)
}

/// Says what is wrong with each edge that is not drawn.
pub fn wrong(edges: &[Edge]) -> Vec<String> {
    edges.iter().filter_map(fault).collect()
}

fn fault(edge: &Edge) -> Option<String> {
    let Edge { from, to, ours } = edge;
    if *ours {
        return match DRAWN.iter().find(|(name, _)| name == from) {
            None => Some(format!("{from} is not in the drawing: add it to xtask/src/edges.rs")),
            Some((_, allowed)) if !allowed.contains(&to.as_str()) => {
                Some(format!("{from} -> {to} (allowed: {})", allowed.join(", ")))
            }
            Some(_) => None,
        };
    }
    let (_, keepers) = KEPT.iter().find(|(name, _)| name == to)?;
    (!keepers.contains(&from.as_str()))
        .then(|| format!("{from} -> {to} (only {} may name it)", keepers.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str, ours: bool) -> Edge {
        Edge { from: from.to_owned(), to: to.to_owned(), ours }
    }

    #[test]
    fn the_workspace_is_as_drawn() -> anyhow::Result<()> {
        let found = of_workspace()?;
        assert!(
            found.iter().any(|e| e.from == "node" && e.to == "model"),
            "the reader sees edges: {found:?}"
        );
        assert_eq!(wrong(&found), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn every_member_is_drawn() -> anyhow::Result<()> {
        let found = of_workspace()?;
        for edge in &found {
            assert!(DRAWN.iter().any(|(name, _)| *name == edge.from), "{} is not drawn", edge.from);
        }
        Ok(())
    }

    #[test]
    fn an_edge_upwards_is_caught() {
        for (from, to) in [
            ("model", "transport"),
            ("ring", "transport"),
            ("proxy", "partition-map"),
            ("integration", "node"),
        ] {
            assert_eq!(wrong(&[edge(from, to, true)]).len(), 1, "{from} -> {to}");
        }
        assert_eq!(wrong(&[edge("node", "proxy", true), edge("proxy", "model", true)]), Vec::<String>::new());
    }

    #[test]
    fn a_foreign_crate_outside_its_room_is_caught() {
        assert_eq!(wrong(&[edge("node", "openraft", false)]).len(), 1);
        assert_eq!(wrong(&[edge("partition-map", "openraft", false)]), Vec::<String>::new());
    }

    #[test]
    fn a_crate_nobody_drew_is_caught() {
        assert_eq!(wrong(&[edge("sidecar", "model", true)]).len(), 1);
    }

    #[test]
    fn a_planted_edge_is_seen_in_the_manifest() -> anyhow::Result<()> {
        let metadata = serde_json::json!({ "packages": [
            { "name": "quorate-model", "dependencies": [{ "name": "quorate-proxy", "path": "/x/proxy" }] },
            { "name": "quorate-proxy", "dependencies": [{ "name": "serde" }] },
        ]});
        let found = parse(&metadata)?;
        assert_eq!(wrong(&found), ["model -> proxy (allowed: )"]);
        Ok(())
    }
}
