//! The page of the sandbox, and the same content as JSON. It changes nothing.

use std::sync::Arc;

use askama::Template;
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
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)];
    match render(&shared.memory(), &lock(&shared.sources)) {
        Ok(text) => (headers, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
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

/// The page.
#[derive(Template)]
#[template(path = "sandbox/page.html")]
struct Page {
    /// Numbers and what they mean.
    figures: Vec<(String, &'static str)>,
    tables: Vec<Table>,
}

/// A table with a title. A column whose name begins with `#` has numbers, aligned to the right.
struct Table {
    title: String,
    columns: &'static [&'static str],
    rows: Vec<Row>,
}

/// A row of a table.
struct Row {
    class: &'static str,
    cells: Vec<String>,
}

impl Table {
    fn new(title: &str, columns: &'static [&'static str], rows: impl Iterator<Item = Vec<String>>) -> Self {
        let rows = rows.map(|cells| Row { class: "", cells }).collect();
        Self { title: title.to_owned(), columns, rows }
    }
}

fn render(memory: &Store, sources: &Sources) -> askama::Result<String> {
    let tables = vec![
        credentials(memory),
        accounts(memory),
        source_list(&sources.list),
        request_list(memory),
        record_list(memory),
    ];
    Page { figures: figures(memory, sources), tables }.render()
}

fn figures(memory: &Store, sources: &Sources) -> Vec<(String, &'static str)> {
    let Sums { requests, refused, failed, records, body_bytes } = &memory.total;
    vec![
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
    ]
}

fn credentials(memory: &Store) -> Table {
    let columns = &["credential", "#records", "#requests", "#refused", "#failed", "#bytes"];
    let rows = memory.credentials.iter().map(|(label, sums)| {
        let Sums { requests, refused, failed, records, body_bytes } = sums;
        let numbers = [records, requests, refused, failed, body_bytes].map(|number| grouped(*number));
        [label.clone()].into_iter().chain(numbers).collect()
    });
    Table::new("Credentials", columns, rows)
}

fn accounts(memory: &Store) -> Table {
    let title = match memory.accounts.len() {
        all @ 0..=ROWS_MAX => format!("Accounts ({all})"),
        all => format!("Accounts ({ROWS_MAX} of {})", grouped(all as u64)),
    };
    let rows = memory.accounts.iter().take(ROWS_MAX);
    let rows = rows.map(|(account, records)| vec![account.clone(), grouped(*records)]);
    Table::new(&title, &["account", "#records"], rows)
}

fn source_list(sources: &[Source]) -> Table {
    let rows = sources.iter().rev().take(ROWS_MAX).map(|source| {
        let created_by = if source.made_by_import { "an import without a sourceId" } else { "" };
        let kind = source.kind.word().to_owned();
        vec![source.source_id.clone(), source.name.clone(), kind, created_by.to_owned()]
    });
    Table::new("Sources", &["source", "name", "type", "created by"], rows)
}

fn request_list(memory: &Store) -> Table {
    let rows = memory.requests.iter().rev().take(ROWS_MAX).map(|request| {
        let status = request.status.map_or("cut".to_owned(), |status| status.to_string());
        let succeeded = !request.refused && request.status.is_some_and(|status| (200..300).contains(&status));
        let cells = vec![
            grouped(request.seq),
            request.at.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
            request.credential.as_deref().unwrap_or("unknown").to_owned(),
            format!("{} {}", request.method, request.path),
            status,
            grouped(request.records),
            grouped(request.body_bytes),
            remark(request),
        ];
        Row { class: if succeeded { "" } else { "bad" }, cells }
    });
    Table {
        title: "Latest requests, newest first".to_owned(),
        columns: &["#no.", "time (UTC)", "credential", "request", "#status", "#records", "#bytes", "remark"],
        rows: rows.collect(),
    }
}

/// Why a request was refused, or which fault struck it.
fn remark(request: &Request) -> String {
    let fault = request.fault.as_ref().map(|names| format!("fault: {names}"));
    [fault, request.message.clone()].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn record_list(memory: &Store) -> Table {
    let columns = &["account", "currency", "source", "datetime", "#balance", "#request", "credential"];
    let rows = memory.received.iter().rev().take(ROWS_MAX).map(|record| {
        vec![
            record.entity_account_id.clone(),
            record.currency.clone(),
            record.source_id.clone().unwrap_or_default(),
            record.datetime.clone(),
            record.balance.clone(),
            grouped(record.request),
            record.credential.clone(),
        ]
    });
    Table::new("Latest records, newest first", columns, rows)
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
        let page = render(&memory, &Sources::of([&hostile.to_owned()])).unwrap();
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;&quot;&amp;&#39;").count(), 14, "{page}");
    }

    #[test]
    fn the_newest_in_order() {
        assert_eq!(newest([1, 2, 3].iter(), Some(2)), [&2, &3]);
        assert_eq!(newest([1, 2, 3].iter(), None), [&1, &2, &3]);
    }
}
