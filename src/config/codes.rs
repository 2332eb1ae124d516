//! A list of codes of the API, each a text or a whole number; in an environment variable, separated by commas or in
//! the form of the file.

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
    let listed = |codes: Vec<Code>| -> Vec<String> {
        let text = |code| match code {
            Code::Number(number) => number.to_string(),
            Code::Text(text) => text.trim().to_owned(),
        };
        codes.into_iter().map(text).collect()
    };
    let codes = match ListOrText::deserialize(deserializer)? {
        ListOrText::List(codes) => listed(codes),
        // In the form of the file, as a variable may have it, too.
        ListOrText::Text(text) if text.trim_start().starts_with('[') => {
            listed(serde_json::from_str(&text).map_err(|_| D::Error::custom(EXPECTED))?)
        }
        ListOrText::Text(text) => text.split(',').map(|code| code.trim().to_owned()).collect(),
    };
    // The API never sends such a code, so it is a mistake: an empty one, or the marks of another form of a list.
    let is_mistake = |code: &String| code.is_empty() || code.contains(['[', ']', '"', '\'', ';', ' ']);
    if codes.iter().any(is_mistake) { Err(D::Error::custom(EXPECTED)) } else { Ok(codes) }
}
