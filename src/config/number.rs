//! Numbers that may be given as text, as in environment variables.

use std::{fmt::Display, str::FromStr};

use serde::{Deserialize, Deserializer, de::Error};

/// Reads a number, or a text that is a number.
pub(super) fn from_text_or_number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display> + Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "no number, expected a whole number")]
    enum TextOrNumber<T> {
        Number(T),
        Text(String),
    }
    match TextOrNumber::deserialize(deserializer)? {
        TextOrNumber::Number(number) => Ok(number),
        // The message does not show the text, which may be a secret entered here by mistake.
        TextOrNumber::Text(text) => {
            text.trim().parse().map_err(|_| D::Error::custom("no number, expected a whole number"))
        }
    }
}

/// Reads a number like [`from_text_or_number`], for a setting without a default.
pub(super) fn from_text_or_number_if_any<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display> + Deserialize<'de>,
{
    from_text_or_number(deserializer).map(Some)
}
