//! What stands behind the name of an option in `ALTER … SET`.

use crate::admin::error::AdminError;
use crate::admin::language::phrase::Phrase;

/// Reads `= value`. `values` says what is expected, for the hint; `read` says why a value is none.
pub fn value<T>(
    phrase: &mut Phrase<'_>,
    values: &'static str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, AdminError> {
    phrase.symbol('=')?;
    let at = phrase.at();
    let text = phrase.text_or_number(values)?;
    read(&text).map_err(|error| {
        AdminError::new("22023", error).with_position(at).with_hint(format!("Expected {values}."))
    })
}

/// As [`value`], of an option whose values have names.
pub fn named<T>(
    phrase: &mut Phrase<'_>,
    option: &str,
    values: &'static str,
    named: impl Fn(&str) -> Option<T>,
) -> Result<T, AdminError> {
    value(phrase, values, |text| named(text).ok_or_else(|| format!("\"{text}\" is no value of {option}")))
}
