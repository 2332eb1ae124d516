//! A list of codes of the API, each a text or a whole number; in an environment variable, separated by commas.

use serde::{Deserialize, Deserializer, de::Error};

/// The expected form, which ends the message about another value.
const EXPECTED: &str = "no list of codes, expected a list of codes, e.g. [19734]";

/// Reads the list. The codes are compared as text with those of the API, so a number is the same as its digits.
pub(super) fn from_list_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "no list of codes, expected a list of codes, e.g. [19734]")]
    enum ListOrText {
        List(Vec<Code>),
        Text(String),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Code {
        Number(i64),
        Text(String),
    }
    let codes: Vec<String> = match ListOrText::deserialize(deserializer)? {
        ListOrText::List(codes) => codes
            .into_iter()
            .map(|code| match code {
                Code::Number(number) => number.to_string(),
                Code::Text(text) => text.trim().to_owned(),
            })
            .collect(),
        ListOrText::Text(text) => text.split(',').map(|code| code.trim().to_owned()).collect(),
    };
    // An empty code would be one that the API never sends, so it is a mistake.
    if codes.iter().any(String::is_empty) { Err(D::Error::custom(EXPECTED)) } else { Ok(codes) }
}
