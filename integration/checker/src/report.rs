//! What a run prints.

use crate::run::Outcome;
use crate::suite::{Check, Trial};
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table
}

fn verdict(outcome: &Outcome) -> String {
    match &outcome.broken {
        Some(broken) => format!("{} BROKEN", broken.invariant()),
        None if outcome.complete => "all hold".to_owned(),
        None => "hold as far as it came in the time".to_owned(),
    }
}

/// One check, as soon as it has ended.
pub fn line(check: &Check) -> String {
    let o = &check.outcome;
    format!("{}: {} states, {} unique, {:.1} s, {}", check.name, o.states, o.unique, o.seconds, verdict(o))
}

pub fn checks(checks: &[Check]) -> String {
    let mut table =
        table(&["model", "bound", "states", "unique", "depth", "seconds", "healed", "properties"]);
    for check in checks {
        let o = &check.outcome;
        table.add_row([
            check.name.to_owned(),
            check.bound.clone(),
            o.states.to_string(),
            o.unique.to_string(),
            o.depth.to_string(),
            format!("{:.1}", o.seconds),
            check.healed.to_string(),
            verdict(o),
        ]);
    }
    table.to_string()
}

/// One line a property: in how many models it was checked, and whether it held.
pub fn properties(checks: &[Check]) -> String {
    let mut table = table(&["property", "checked in", "states", "holds"]);
    let mut named: Vec<&'static str> = Vec::new();
    for check in checks {
        named.extend(check.properties.iter().filter(|p| !named.contains(p)).copied().collect::<Vec<_>>());
    }
    for property in named {
        let of: Vec<&Check> = checks.iter().filter(|c| c.properties.contains(&property)).collect();
        let broken = of.iter().any(|c| c.outcome.broken.as_ref().is_some_and(|b| b.property == property));
        let states: usize = of.iter().map(|c| c.outcome.unique).sum();
        table.add_row([
            property.to_owned(),
            format!("{} models", of.len()),
            states.to_string(),
            if broken { "NO".to_owned() } else { "yes".to_owned() },
        ]);
    }
    table.to_string()
}

pub fn trials(trials: &[Trial]) -> String {
    let mut table = table(&["mutant", "model", "caught by", "steps", "states", "seconds"]);
    for trial in trials {
        let o = &trial.outcome;
        let (by, steps) = match &o.broken {
            Some(broken) => (broken.property.to_owned(), (trial.before + broken.steps.len()).to_string()),
            None => ("NOT CAUGHT".to_owned(), String::new()),
        };
        table.add_row([
            trial.mutant.to_owned(),
            trial.model.to_owned(),
            by,
            steps,
            o.states.to_string(),
            format!("{:.1}", o.seconds),
        ]);
    }
    table.to_string()
}

/// The way to a broken property, a step a line.
pub fn way(outcome: &Outcome) -> String {
    let Some(broken) = &outcome.broken else { return String::new() };
    let steps = broken.steps.iter().enumerate().map(|(at, step)| format!("  {:>3} {step}\n", at + 1));
    format!("{}\n{}", broken.property, steps.collect::<String>())
}
