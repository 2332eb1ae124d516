//! The figures: a table for people, JSON for machines.

use std::fmt;
use std::path::Path;

use elven_sync::config::SyncSettings;
use elven_sync::output::{line, lines, table};
use serde_json::{Value, json};

use crate::Arguments;

/// The target of a median.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn is_reached(self, median: f64) -> bool {
        match self {
            Self::AtLeast(least) => median >= least,
            Self::AtMost(most) => median <= most,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {}", shown(*least)),
            Self::AtMost(most) => write!(f, "<= {}", shown(*most)),
        }
    }
}

/// One figure, as measured in each run. `None`: not available on this machine.
#[derive(Debug)]
struct Figure {
    scenario: &'static str,
    name: String,
    unit: &'static str,
    runs: Vec<Option<f64>>,
    target: Option<Target>,
}

impl Figure {
    fn is_reached(&self) -> Option<bool> {
        Some(self.target?.is_reached(median(&self.runs)?))
    }
}

pub(crate) struct Report {
    head: Value,
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(server: &Value, settings: &SyncSettings, arguments: &Arguments) -> Self {
        let head = json!({
            "date": chrono::Utc::now().format("%Y-%m-%d %H:%M:%SZ").to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "server": server,
            "rows": arguments.rows,
            "entities": arguments.entities,
            "idle_entities": arguments.idle_entities,
            "runs": arguments.runs,
            "latency_ms": arguments.latency,
            "large": arguments.large,
            "covering": arguments.covering,
            "settings": {
                "batch_rows": settings.batch_rows,
                "entities_at_once": settings.entities_at_once,
                "requests_in_flight": settings.requests_in_flight,
            },
        });
        Self { head, figures: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn add(
        &mut self,
        scenario: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        target: Option<Target>,
        runs: impl IntoIterator<Item = Option<f64>>,
    ) {
        let runs = runs.into_iter().collect();
        self.figures.push(Figure { scenario, name: name.into(), unit, runs, target });
    }

    /// Notes for the reader.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Prints the table, and writes JSON to the file. For `-` prints only JSON.
    pub(crate) fn print(&self, json: Option<&Path>) -> anyhow::Result<()> {
        match json {
            Some(path) if path == "-" => line(format_args!("{:#}", self.json())),
            Some(path) => {
                std::fs::write(path, format!("{:#}\n", self.json()))?;
                self.print_table();
            }
            None => self.print_table(),
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let figures = self.figures.iter().map(|figure| {
            json!({
                "scenario": figure.scenario,
                "name": figure.name,
                "unit": figure.unit,
                "median": median(&figure.runs),
                "runs": figure.runs,
                "target": figure.target.map(|target| target.to_string()),
                "reached": figure.is_reached(),
            })
        });
        let mut json = self.head.clone();
        json["figures"] = figures.collect();
        json["notes"] = json!(self.notes);
        json
    }

    fn print_table(&self) {
        let text = |name: &str| self.head[name].to_string();
        let setting = |name: &str| self.head["server"][name].as_str().unwrap_or("?").to_owned();
        line(format_args!(
            "{}, {} cores, PostgreSQL {}, fsync {}, synchronous_commit {}; medians of {} runs\n",
            self.head["date"].as_str().unwrap_or_default(),
            text("cores"),
            setting("server_version"),
            setting("fsync"),
            setting("synchronous_commit"),
            text("runs")
        ));
        let header = ["scenario", "figure", "median", "lowest", "highest", "unit", "target", "reached"];
        let rows = self.figures.iter().map(|figure| {
            let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), shown);
            let runs = || figure.runs.iter().copied().flatten();
            vec![
                figure.scenario.to_owned(),
                figure.name.clone(),
                number(median(&figure.runs)),
                number(runs().min_by(f64::total_cmp)),
                number(runs().max_by(f64::total_cmp)),
                figure.unit.to_owned(),
                figure.target.map_or_else(String::new, |target| target.to_string()),
                figure.is_reached().map_or("", |reached| if reached { "yes" } else { "NO" }).to_owned(),
            ]
        });
        lines(table(&header, &[2, 3, 4], rows));
        for note in &self.notes {
            line(format_args!("note: {note}"));
        }
    }
}

/// Returns the median, the mean of the two middle values for an even number. `None` when a figure is missing.
pub(crate) fn median(runs: &[Option<f64>]) -> Option<f64> {
    let mut runs: Vec<f64> = runs.iter().copied().collect::<Option<_>>()?;
    runs.sort_by(f64::total_cmp);
    let middle = |count: usize| runs.get(count / 2).copied();
    Some(f64::midpoint(middle(runs.len().checked_sub(1)?)?, middle(runs.len())?))
}

/// Formats about four digits, with groups of three in large numbers.
fn shown(number: f64) -> String {
    let decimals = match number.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{number:.decimals$}");
    if decimals > 0 {
        return text;
    }
    let mut grouped = String::new();
    for (place, digit) in text.char_indices() {
        if place > 0 && (text.len() - place) % 3 == 0 && digit != '-' {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
