//! The JSON of a message. `text` is what Slack shows, so text from outside can inject no link and no mention there.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::journal::{Alert, MessageKind, PrintLine, Told};
use crate::text::{counted_noun, escaped, thousands};

/// The most characters of an entity, and of a message or hint.
const ENTITY_CHARS_MAX: usize = 120;
const MESSAGE_CHARS_MAX: usize = 1_000;
/// The command about everything.
const STATUS: &str = "elven-sync status";
/// A character without width, at which no link and no mention is recognized.
const WORD_JOINER: char = '\u{2060}';

#[derive(Serialize)]
struct Message<'a> {
    r#type: &'a str,
    timestamp: String,
    text: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    name: &'a str,
    severity: &'a str,
    entities: Vec<String>,
    count: i64,
    since: String,
    message: String,
    hint: String,
    print: Option<&'a PrintLine>,
}

/// Returns the JSON of a message about the alerts of a name. `alerts`: worst first; none at an end. `holds_below`: the
/// name still holds with a severity that is not told. `print`: the latest print of the journal, of which the receiver
/// becomes a witness.
pub(super) fn json(
    name: &str,
    told: &Told,
    alerts: &[&Alert],
    holds_below: bool,
    print: Option<&PrintLine>,
) -> String {
    let message = shortened(&message(alerts, holds_below), MESSAGE_CHARS_MAX);
    let hint = shortened(&hint(alerts), MESSAGE_CHARS_MAX);
    let message = Message {
        r#type: told.kind.as_ref(),
        timestamp: rfc3339(told.at),
        text: text(name, told, &message, &hint),
        data: Data {
            name,
            severity: told.severity.as_ref(),
            entities: told.entities.iter().map(|entity| shortened(entity, ENTITY_CHARS_MAX)).collect(),
            count: told.count,
            since: rfc3339(told.since),
            message,
            hint,
            print,
        },
    };
    ascii(&serde_json::json!(message).to_string())
}

/// Writes JSON in ASCII, which each encoding of a database has.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

/// Returns what is wrong: the message of the only alert, or of the worst one as an example.
fn message(alerts: &[&Alert], holds_below: bool) -> String {
    match alerts {
        [] if holds_below => "it ended with this severity, and holds with a lower one".to_owned(),
        [] => "it ended".to_owned(),
        [only] => only.message.clone(),
        [worst, ..] => match &worst.entity_id {
            Some(entity_id) => format!("{entity_id}: {}", worst.message),
            None => worst.message.clone(),
        },
    }
}

/// Returns the command to begin with: for several entities, the one that is about all of them.
fn hint(alerts: &[&Alert]) -> String {
    let Some(first) = alerts.first() else { return STATUS.to_owned() };
    let of_all = |hint: &str| hint.split(" --entity ").next().unwrap_or_default().to_owned();
    if alerts.iter().all(|alert| alert.hint == first.hint) {
        first.hint.clone()
    } else if alerts.iter().all(|alert| of_all(&alert.hint) == of_all(&first.hint)) {
        of_all(&first.hint)
    } else {
        STATUS.to_owned()
    }
}

/// The text in the markup of Slack.
fn text(name: &str, told: &Told, message: &str, hint: &str) -> String {
    let verb = match told.kind {
        MessageKind::Began => "began",
        MessageKind::Worse => "is worse",
        MessageKind::Ended => "ended",
    };
    let mut text = format!("*{name}* {verb}: {}", told.severity.as_ref());
    if !told.entities.is_empty() {
        let listed: Vec<String> =
            told.entities.iter().map(|entity| code(&shortened(entity, ENTITY_CHARS_MAX))).collect();
        let _ = write!(text, ", {}: {}", counted_noun(told.count, "entity", "entities"), listed.join(", "));
        let more = told.count - i64::try_from(told.entities.len()).unwrap_or(i64::MAX);
        if more > 0 {
            let _ = write!(text, " and {} more", thousands(more));
        }
    } else if told.count > 1 {
        let _ = write!(text, ", {}", counted_noun(told.count, "alert", "alerts"));
    }
    let _ = write!(text, ", since {}", told.since.format("%Y-%m-%d %H:%M:%SZ"));
    let _ = write!(text, "\n{}", code(message));
    if told.kind != MessageKind::Ended {
        let _ = write!(text, "\nhint: {}", code(hint));
    }
    text
}

/// Returns text from outside as code, in which Slack and programs like it show no markup. A mention (`<!channel>`,
/// `@channel`) and a link (`<url|text>`, `https://`) lose their effect also where a program shows them in code.
fn code(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + 2);
    for c in escaped(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '`' => safe.push('\''),
            '@' => safe.extend(['@', WORD_JOINER]),
            c => safe.push(c),
        }
    }
    let safe = safe.replace("://", &format!(":{WORD_JOINER}//"));
    // Two code spans need something between their marks, and an empty one is no code.
    if safe.is_empty() { "` `".to_owned() } else { format!("`{safe}`") }
}

/// Shortens a text to a number of characters.
fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Severity;

    fn time(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    fn alert(entity_id: Option<&str>, message: &str, hint: &str) -> Alert {
        Alert {
            name: "Failing".to_owned(),
            severity: Severity::Critical,
            entity_id: entity_id.map(str::to_owned),
            since: time("2026-12-01T10:00:00Z"),
            message: message.to_owned(),
            hint: hint.to_owned(),
        }
    }

    fn told(kind: MessageKind, count: i64, entities: &[&str]) -> Told {
        Told {
            kind,
            at: time("2026-12-01T11:30:15.25Z"),
            severity: Severity::Critical,
            count,
            since: time("2026-12-01T10:00:00Z"),
            entities: entities.iter().map(|entity| (*entity).to_owned()).collect(),
            subjects: Vec::new(),
        }
    }

    fn read(told: &Told, alerts: &[&Alert]) -> Value {
        let json = json("Failing", told, alerts, false, None);
        assert!(json.is_ascii(), "{json}");
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn message_has_what_the_contract_names() {
        let one =
            alert(Some("acme"), "the last attempt failed: no", "elven-sync errors list --entity 'acme'");
        let told = told(MessageKind::Began, 1, &["acme"]);
        assert_eq!(
            read(&told, &[&one]),
            json!({
                "type": "alert.began",
                "timestamp": "2026-12-01T11:30:15Z",
                "text": "*Failing* began: critical, 1 entity: `acme`, since 2026-12-01 10:00:00Z\n\
                         `the last attempt failed: no`\nhint: `elven-sync errors list --entity 'acme'`",
                "data": {
                    "name": "Failing",
                    "severity": "critical",
                    "entities": ["acme"],
                    "count": 1,
                    "since": "2026-12-01T10:00:00Z",
                    "message": "the last attempt failed: no",
                    "hint": "elven-sync errors list --entity 'acme'",
                },
            })
        );
    }

    #[test]
    fn several_alerts_have_one_example_and_a_hint_about_all() {
        let two = [
            alert(Some("acme"), "no", "elven-sync errors list --entity 'acme'"),
            alert(Some("beta"), "never", "elven-sync errors list --entity 'beta'"),
        ];
        let two: Vec<&Alert> = two.iter().collect();
        let message = read(&told(MessageKind::Worse, 5_000, &["acme", "beta"]), &two);
        assert_eq!(message["data"]["message"], "acme: no");
        assert_eq!(message["data"]["hint"], "elven-sync errors list");
        let text = message["text"].as_str().unwrap();
        assert!(
            text.starts_with(
                "*Failing* is worse: critical, 5,000 entities: `acme`, `beta` and 4,998 more, since"
            ),
            "{text}"
        );
        let ended = read(&told(MessageKind::Ended, 2, &["acme", "beta"]), &[]);
        assert_eq!(ended["data"]["message"], "it ended");
        assert!(!ended["text"].as_str().unwrap().contains("hint"), "{ended}");
        let resume = [
            alert(Some("acme"), "no", "elven-sync entity resume 'acme'"),
            alert(Some("beta"), "no", "elven-sync entity resume 'beta'"),
        ];
        let resume: Vec<&Alert> = resume.iter().collect();
        assert_eq!(read(&told(MessageKind::Began, 2, &[]), &resume)["data"]["hint"], "elven-sync status");
    }

    /// What Slack, or a program like it, would show as a link, a mention or markup.
    #[test]
    fn text_from_outside_injects_no_link_mention_or_markup() {
        let hostile = "<!channel> <https://evil.example|paid> @channel https://evil.example *b* `x` &amp; \u{202e}\n> q";
        let one = alert(Some(hostile), hostile, hostile);
        let message = read(&told(MessageKind::Began, 1, &[hostile]), &[&one]);
        let text = message["text"].as_str().unwrap();
        for harmful in ["<", ">", "://", "@channel", "\u{202e}", "&amp; "] {
            assert!(!text.contains(harmful), "{harmful}: {text}");
        }
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(text.matches('`').count(), 6, "each text is one span of code: {text}");
        assert!(text.contains("&lt;!channel&gt;") && text.contains("&amp;amp;"), "{text}");
        assert_eq!(message["data"]["message"], hostile, "data is exact");
        assert_eq!(message["data"]["entities"], json!([hostile]));
    }

    #[test]
    fn message_stays_small() {
        let long = "é".repeat(100_000);
        let one = alert(Some(&long), &long, &long);
        let listed = vec![long.as_str(); 20];
        let json = json("Failing", &told(MessageKind::Began, 20, &listed), &[&one], false, None);
        assert!(json.len() < 60_000, "{}", json.len());
    }
}
