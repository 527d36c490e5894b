//! `SHOW EVENTS`: every reconfiguration: when, why, who reported it, and how long each step took.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column, Row, float, int, text};
use crate::admin::clock::iso8601;
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::{Event, PartitionMap, StepTime};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "EVENTS"],
    syntax: "SHOW EVENTS",
    help: "what happened: every reconfiguration, its reason, and how long each step took",
    parse: |_| Ok(Arc::new(ShowEvents)),
};

const COLUMNS: &[Column] = &[
    int("id"),
    text("time"),
    text("database"),
    text("event"),
    text("epoch"),
    text("reason"),
    text("reported_by"),
    text("from"),
    text("to"),
    float("total_ms"),
    text("steps"),
];

#[derive(Debug)]
struct ShowEvents;

#[async_trait::async_trait]
impl Order for ShowEvents {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let rows = map.events.iter().map(|e| row(&map, e)).collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}

fn row(map: &PartitionMap, event: &Event) -> Row {
    vec![
        event.id.into(),
        iso8601(event.at_ms).into(),
        event.target.as_str().into(),
        event.kind.name().into(),
        event.epoch.to_string().into(),
        event.reason.as_str().into(),
        event.reported_by.map(|n| lookup::node_name(map, n)).into(),
        event.from.map(|r| r.to_string()).into(),
        event.to.map(|r| r.to_string()).into(),
        total_ms(&event.steps).into(),
        steps(&event.steps).into(),
    ]
}

/// None for an event without measured steps.
fn total_ms(steps: &[StepTime]) -> Option<f64> {
    let micros: u64 = steps.iter().map(|s| s.micros).sum();
    (!steps.is_empty()).then(|| (micros as f64 / 100.0).round() / 10.0)
}

fn steps(steps: &[StepTime]) -> String {
    let told: Vec<String> =
        steps.iter().map(|s| format!("{} {:.1} ms", s.name, s.micros as f64 / 1000.0)).collect();
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_in_milliseconds() {
        let times = [("detect", 12_080), ("fence", 3_200)]
            .map(|(name, micros)| StepTime { name: name.to_owned(), micros });
        assert_eq!(steps(&times), "detect 12.1 ms, fence 3.2 ms");
        assert_eq!(total_ms(&times), Some(15.3));
        assert_eq!((total_ms(&[]), steps(&[]).as_str()), (None, ""));
    }
}
