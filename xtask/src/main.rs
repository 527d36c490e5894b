//! `cargo xtask edges`: developer commands of this workspace.

mod edges;

use anyhow::bail;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("edges") => {
            let found = edges::of_workspace()?;
            let wrong = edges::wrong(&found);
            if !wrong.is_empty() {
                bail!("edges that ARCHITECTURE.md does not draw:\n  {}", wrong.join("\n  "));
            }
            println!("{} edges, all as drawn", found.len());
            Ok(())
        }
        _ => bail!("usage: cargo xtask edges    check that the crates depend on each other as drawn"),
    }
}
