//! The page of the sandbox, and the same content as JSON. It changes nothing.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    extract::{Query, State},
    http::{
        StatusCode,
        header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    },
    response::{IntoResponse, Redirect, Response},
};
use serde::{Deserialize, Serialize};

use super::shared::{Shared, lock};
use super::sources::{Source, Sources};
use super::store::{Received, Request, Store, Sums};

/// The most requests, records and accounts that the page shows.
const ROWS_MAX: usize = 200;
/// The page loads nothing else, and a value that was not escaped could have no effect.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
const STYLE: &str = include_str!("page.css");

/// `GET /`.
pub(super) async fn redirect() -> Redirect {
    Redirect::temporary("/sandbox")
}

/// `GET /sandbox`.
pub(super) async fn html(State(shared): State<Arc<Shared>>) -> Response {
    let text = render(&shared.memory(), &lock(&shared.sources));
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)];
    (headers, text).into_response()
}

/// The query string of a JSON view.
#[derive(Deserialize)]
pub(super) struct Filter {
    /// Only records of this account.
    account: Option<String>,
    /// Only this number of the newest entries; by default all.
    limit: Option<usize>,
}

/// `GET /sandbox/received?account=&limit=`: accepted records as a JSON array, oldest first.
pub(super) async fn received(State(shared): State<Arc<Shared>>, Query(filter): Query<Filter>) -> Response {
    let wanted = |record: &&Received| {
        filter.account.as_ref().is_none_or(|account| *account == record.entity_account_id)
    };
    json(&newest(shared.memory().received.iter().filter(wanted), filter.limit))
}

/// `GET /sandbox/requests?limit=`: requests to the API as a JSON array, in order.
pub(super) async fn requests(State(shared): State<Arc<Shared>>, Query(filter): Query<Filter>) -> Response {
    json(&newest(shared.memory().requests.iter(), filter.limit))
}

/// `GET /sandbox/sources?limit=`: sources as a JSON array, in the order of their creation.
pub(super) async fn sources(State(shared): State<Arc<Shared>>, Query(filter): Query<Filter>) -> Response {
    json(&newest(lock(&shared.sources).list.iter(), filter.limit))
}

/// Returns the last `limit` entries of a list, in its order.
fn newest<'m, T>(list: impl DoubleEndedIterator<Item = &'m T>, limit: Option<usize>) -> Vec<&'m T> {
    let mut newest: Vec<&T> = list.rev().take(limit.unwrap_or(usize::MAX)).collect();
    newest.reverse();
    newest
}

fn json<T: Serialize>(list: &[T]) -> Response {
    match serde_json::to_string(list) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn render(memory: &Store, sources: &Sources) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Elven sandbox</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style>\
         <h1>Elven sandbox</h1><p>A local stand-in for the Elven API. Nothing here has left this machine. \
         As JSON: <a href=\"/sandbox/received\">records</a>, <a href=\"/sandbox/requests\">requests</a>, <a href=\"/sandbox/sources\">sources</a>.</p>"
    );
    figures(&mut page, memory, sources);
    credentials(&mut page, memory);
    accounts(&mut page, memory);
    source_list(&mut page, &sources.list);
    request_list(&mut page, memory);
    record_list(&mut page, memory);
    page
}

fn figures(page: &mut String, memory: &Store, sources: &Sources) {
    let Sums { requests, refused, failed, records, body_bytes } = &memory.total;
    let figures = [
        (grouped(*records), "records accepted"),
        (
            grouped(memory.repeated() as u64),
            "of the kept records repeat an earlier account, currency and time",
        ),
        (grouped(*requests), "requests"),
        (grouped(*refused), "requests refused"),
        (grouped(*failed), "requests cut or answered with 5xx"),
        (grouped(*body_bytes), "bytes received"),
        (grouped(sources.made_by_imports), "sources created by imports without a sourceId"),
    ];
    page.push_str("<dl>");
    for (value, meaning) in figures {
        push(page, format_args!("<div><dd>{value}</dd><dt>{meaning}</dt></div>"));
    }
    page.push_str("</dl>");
}

fn credentials(page: &mut String, memory: &Store) {
    let columns = ["credential", "#records", "#requests", "#refused", "#failed", "#bytes"];
    table(page, "Credentials", &columns, |rows| {
        for (label, sums) in &memory.credentials {
            let Sums { requests, refused, failed, records, body_bytes } = sums;
            rows.text(label).number(*records).number(*requests).number(*refused).number(*failed);
            rows.number(*body_bytes).end("");
        }
    });
}

fn accounts(page: &mut String, memory: &Store) {
    let title = match memory.accounts.len() {
        all @ 0..=ROWS_MAX => format!("Accounts ({all})"),
        all => format!("Accounts ({ROWS_MAX} of {})", grouped(all as u64)),
    };
    table(page, &title, &["account", "#records"], |rows| {
        for (account, records) in memory.accounts.iter().take(ROWS_MAX) {
            rows.text(account).number(*records).end("");
        }
    });
}

fn source_list(page: &mut String, sources: &[Source]) {
    table(page, "Sources", &["source", "name", "type", "created by"], |rows| {
        for Source { source_id, name, kind, made_by_import } in sources.iter().rev().take(ROWS_MAX) {
            let created_by = if *made_by_import { "an import without a sourceId" } else { "" };
            rows.text(source_id).text(name).text(kind.word()).text(created_by).end("");
        }
    });
}

fn request_list(page: &mut String, memory: &Store) {
    let columns = ["#no.", "time (UTC)", "credential", "request", "#status", "#records", "#bytes", "remark"];
    table(page, "Latest requests, newest first", &columns, |rows| {
        for request in memory.requests.iter().rev().take(ROWS_MAX) {
            let status = request.status.map_or("cut".to_owned(), |status| status.to_string());
            let succeeded =
                !request.refused && request.status.is_some_and(|status| (200..300).contains(&status));
            rows.number(request.seq)
                .text(&request.at.format("%Y-%m-%d %H:%M:%S%.3f").to_string())
                .text(request.credential.as_deref().unwrap_or("unknown"))
                .text(&format!("{} {}", request.method, request.path))
                .figure(&status)
                .number(request.records)
                .number(request.body_bytes)
                .text(&remark(request))
                .end(if succeeded { "" } else { "bad" });
        }
    });
}

/// Why a request was refused, or which fault struck it.
fn remark(request: &Request) -> String {
    let fault = request.fault.as_ref().map(|names| format!("fault: {names}"));
    [fault, request.message.clone()].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn record_list(page: &mut String, memory: &Store) {
    let columns = ["account", "currency", "source", "datetime", "#balance", "#request", "credential"];
    table(page, "Latest records, newest first", &columns, |rows| {
        for record in memory.received.iter().rev().take(ROWS_MAX) {
            rows.text(&record.entity_account_id)
                .text(&record.currency)
                .text(record.source_id.as_deref().unwrap_or_default())
                .text(&record.datetime)
                .figure(&record.balance)
                .number(record.request)
                .text(&record.credential)
                .end("");
        }
    });
}

/// Adds a table with a title. A column whose name begins with `#` has numbers, aligned to the right.
fn table(page: &mut String, title: &str, columns: &[&str], fill: impl FnOnce(&mut Rows)) {
    push(page, format_args!("<h2>{}</h2><div class=\"wide\"><table><tr>", escape(title)));
    for column in columns {
        match column.strip_prefix('#') {
            Some(figures) => push(page, format_args!("<th class=\"n\">{}</th>", escape(figures))),
            None => push(page, format_args!("<th>{}</th>", escape(column))),
        }
    }
    page.push_str("</tr>");
    let mut rows = Rows::default();
    fill(&mut rows);
    if rows.finished.is_empty() {
        push(page, format_args!("<tr><td colspan=\"{}\" class=\"none\">none yet</td></tr>", columns.len()));
    }
    page.push_str(&rows.finished);
    page.push_str("</table></div>");
}

/// The rows of a table. Values become HTML only here, where all are escaped.
#[derive(Default)]
struct Rows {
    finished: String,
    cells: String,
}

impl Rows {
    fn text(&mut self, value: &str) -> &mut Self {
        push(&mut self.cells, format_args!("<td>{}</td>", escape(value)));
        self
    }

    fn figure(&mut self, value: &str) -> &mut Self {
        push(&mut self.cells, format_args!("<td class=\"n\">{}</td>", escape(value)));
        self
    }

    fn number(&mut self, value: u64) -> &mut Self {
        self.figure(&grouped(value))
    }

    fn end(&mut self, class: &'static str) {
        push(&mut self.finished, format_args!("<tr class=\"{class}\">{}</tr>", self.cells));
        self.cells.clear();
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    text.write_fmt(arguments).ok();
}

fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Formats 1234567 as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let cases =
            [(0, "0"), (999, "999"), (1_000, "1,000"), (200_000, "200,000"), (1_234_567, "1,234,567")];
        for (number, expected) in cases {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn no_value_becomes_markup() {
        let hostile = r#"<script>"&'"#;
        let mut memory = Store::default();
        memory.accounts.insert(hostile.to_owned(), 1);
        memory.credentials.insert(hostile.to_owned(), Sums::default());
        memory.received.push_back(Received {
            entity_account_id: hostile.to_owned(),
            currency: hostile.to_owned(),
            currency_field: "currency",
            source_id: Some(hostile.to_owned()),
            datetime: hostile.to_owned(),
            balance: hostile.to_owned(),
            request: 1,
            credential: hostile.to_owned(),
        });
        memory.requests.push_back(Request {
            method: hostile.to_owned(),
            path: hostile.to_owned(),
            credential: Some(hostile.to_owned()),
            message: Some(hostile.to_owned()),
            ..Request::default()
        });
        let page = render(&memory, &Sources::of([&hostile.to_owned()]));
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;&quot;&amp;&#39;").count(), 14, "{page}");
    }

    #[test]
    fn the_newest_in_order() {
        assert_eq!(newest([1, 2, 3].iter(), Some(2)), [&2, &3]);
        assert_eq!(newest([1, 2, 3].iter(), None), [&1, &2, &3]);
    }
}
