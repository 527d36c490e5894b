//! The tables.

use super::load::Run;
use super::logins::Logins;
use comfy_table::{CellAlignment, Table, presets};
use std::collections::BTreeMap;
use std::fmt;

/// What was run how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub mode: &'static str,
    pub clients: usize,
    pub side: &'static str,
}

#[derive(Debug, Default)]
pub struct Report {
    /// In the order in which they were first run.
    pub runs: Vec<(Sample, Vec<Run>)>,
    pub copies: BTreeMap<&'static str, Vec<f64>>,
    pub logins: BTreeMap<&'static str, Vec<Logins>>,
    /// Clients, and bytes of each.
    pub idle_clients: Vec<(&'static str, usize, f64)>,
    pub idle_us_per_second: Vec<(&'static str, f64)>,
}

impl Report {
    pub fn add(&mut self, sample: Sample, run: Run) {
        match self.runs.iter_mut().find(|(known, _)| *known == sample) {
            Some((_, runs)) => runs.push(run),
            None => self.runs.push((sample, vec![run])),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn queries(&self) -> Table {
        let header = ["pgbench -S", "clients", "by", "tps", "p50", "p99", "proxy CPU a transaction"];
        let mut table = table(&header, 3);
        for (sample, runs) in &self.runs {
            let of = |value: fn(&Run) -> f64| median(runs.iter().map(value));
            let cpu = of(|r| r.cpu_us);
            table.add_row([
                sample.mode.to_owned(),
                sample.clients.to_string(),
                sample.side.to_owned(),
                format!("{:.0}", of(|r| r.tps)),
                format!("{:.0} us", of(|r| r.p50_us)),
                format!("{:.0} us", of(|r| r.p99_us)),
                if cpu > 0.0 { format!("{cpu:.1} us") } else { String::new() },
            ]);
        }
        table
    }

    fn copies(&self) -> Table {
        let mut table = table(&["COPY TO STDOUT, 300 MB", "MB a second"], 1);
        for (side, rates) in &self.copies {
            table.add_row([(*side).to_owned(), format!("{:.0}", median(rates.iter().copied()))]);
        }
        table
    }

    fn logins(&self) -> Table {
        let mut table = table(&["SCRAM logins", "a second", "proxy CPU a login"], 1);
        for (side, runs) in &self.logins {
            let of = |value: fn(&Logins) -> f64| median(runs.iter().map(value));
            table.add_row([
                (*side).to_owned(),
                format!("{:.0}", of(|l| l.a_second)),
                format!("{:.0} us", of(|l| l.cpu_us)),
            ]);
        }
        table
    }

    fn idle_clients(&self) -> Table {
        let mut table = table(&["idle clients", "how many", "memory of the proxy for each"], 1);
        for (side, count, bytes) in &self.idle_clients {
            table.add_row([(*side).to_owned(), count.to_string(), format!("{bytes:.0} bytes")]);
        }
        table
    }

    fn idle(&self) -> Table {
        let mut table = table(&["with no client", "CPU a second"], 1);
        for (side, us) in &self.idle_us_per_second {
            table.add_row([(*side).to_owned(), format!("{:.1} ms", us / 1000.0)]);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\n{}\n\n{}", self.queries(), self.copies(), self.logins())?;
        writeln!(f, "\n{}\n\n{}", self.idle_clients(), self.idle())
    }
}

/// Columns from the `numbers`th on are numbers.
fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header.to_vec());
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
