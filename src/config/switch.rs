//! Settings that are on or off, and may be given as text, as in environment variables.

use serde::{Deserialize, Deserializer, de::Error};

/// Reads `true` or `false`, or a text that is one of them.
pub(super) fn from_text_or_bool<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    const EXPECTED: &str = "neither true nor false";
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "neither true nor false")]
    enum TextOrBool {
        Bool(bool),
        Text(String),
    }
    match TextOrBool::deserialize(deserializer)? {
        TextOrBool::Bool(is_on) => Ok(is_on),
        // The message does not show the text, which may be a secret entered here by mistake.
        TextOrBool::Text(text) => text.trim().parse().map_err(|_| D::Error::custom(EXPECTED)),
    }
}
