//! I10: data is given up only by an operator's word, each time by one.

use quorate_model::Database;

/// `words` is how often an operator has accepted a loss of this database.
pub fn record(record: &Database, words: u64) -> Result<(), String> {
    if record.epoch.data_loss <= words {
        return Ok(());
    }
    Err(format!(
        "I10: {}: epoch {} says that data was given up, and an operator's word was given {words} times",
        record.id, record.epoch
    ))
}
