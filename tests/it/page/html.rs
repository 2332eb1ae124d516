//! Reads a page, as far as the tests need it.

use std::collections::BTreeMap;

/// A page.
#[derive(Debug)]
pub struct Html {
    pub source: String,
    tables: Vec<Table>,
}

/// A table: its caption, and its rows with the texts of their cells.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub caption: String,
    pub rows: Vec<Vec<String>>,
}

impl Html {
    pub fn of(source: &str) -> Self {
        let table = |html: &str| Table {
            caption: first(html, "caption").map(text).unwrap_or_default(),
            rows: all(html, "tr").into_iter().map(cells).collect(),
        };
        Self { source: source.to_owned(), tables: all(source, "table").into_iter().map(table).collect() }
    }

    /// Returns the rows of the table whose caption contains these words, without its head.
    pub fn rows(&self, words: &str) -> Vec<Vec<String>> {
        let table = self.tables.iter().find(|table| table.caption.contains(words));
        let table = table.unwrap_or_else(|| panic!("no table {words} in {:#?}", self.tables));
        table.rows[1..].to_vec()
    }

    /// Returns the second cell of each row by the first, of a table of pairs.
    pub fn pairs(&self, words: &str) -> BTreeMap<String, String> {
        let table = self.tables.iter().find(|table| table.caption.contains(words)).unwrap();
        table.rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect()
    }

    /// The text of the page, without its markup.
    pub fn text(&self) -> String {
        text(self.source.split_once("<body>").unwrap().1)
    }
}

fn cells(row: &str) -> Vec<String> {
    let mut cells = Vec::new();
    let mut rest = row;
    while let Some(at) = rest.find("<t") {
        rest = &rest[at..];
        let name = &rest[1..3];
        let Some(end) = rest.find(&format!("</{name}>")) else { break };
        cells.push(text(&rest[..end]));
        rest = &rest[end..][5..];
    }
    cells
}

/// The contents of the elements of a name. They do not contain each other.
fn all<'h>(html: &'h str, name: &str) -> Vec<&'h str> {
    let mut found = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find(&format!("<{name}")) {
        rest = &rest[at + name.len() + 1..];
        if !rest.starts_with([' ', '>']) {
            continue;
        }
        let end = rest.find(&format!("</{name}>")).unwrap_or_else(|| panic!("{name} has no end"));
        found.push(&rest[rest.find('>').unwrap() + 1..end]);
    }
    found
}

fn first<'h>(html: &'h str, name: &str) -> Option<&'h str> {
    all(html, name).into_iter().next()
}

/// The text of markup: tags end, and references are resolved.
pub fn text(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        text += &rest[..at];
        text.push(' ');
        rest = &rest[at..][rest[at..].find('>').unwrap_or(0) + 1..];
    }
    text += rest;
    for (reference, character) in
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " "), ("&amp;", "&")]
    {
        text = text.replace(reference, character);
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
