//! Numbers that may come as text, since environment variables are nothing else.

use std::{fmt::Display, str::FromStr};

use serde::{Deserialize, Deserializer, de::Error};

/// Takes a number, or a text that is one.
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
        // Without the text: it may be a secret that was written here by mistake.
        TextOrNumber::Text(text) => {
            text.trim().parse().map_err(|_| D::Error::custom("no number, expected a whole number"))
        }
    }
}

/// The same for a setting that has no default.
pub(super) fn from_text_or_number_if_any<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display> + Deserialize<'de>,
{
    from_text_or_number(deserializer).map(Some)
}
