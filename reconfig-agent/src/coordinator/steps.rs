//! How long each step of a reconfiguration took, for events and metrics.

use quorate_model::StepTime;

/// A stopwatch with named laps; laps of the same name are added up.
#[derive(Debug, Default)]
pub struct Laps {
    last_us: u64,
    steps: Vec<StepTime>,
}

impl Laps {
    pub fn begin(detect_ms: u64, now_us: u64) -> Laps {
        let detect = StepTime { name: "detect".to_owned(), micros: detect_ms * 1_000 };
        Laps { last_us: now_us, steps: vec![detect] }
    }

    pub fn lap(&mut self, name: &str, now_us: u64) {
        let micros = now_us.saturating_sub(self.last_us);
        self.last_us = now_us;
        match self.steps.iter_mut().find(|s| s.name == name) {
            Some(step) => step.micros += micros,
            None => self.steps.push(StepTime { name: name.to_owned(), micros }),
        }
    }

    pub fn steps(&self) -> &[StepTime] {
        &self.steps
    }
}
