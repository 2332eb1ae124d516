//! All output: results on stdout, the log on stderr. No other module prints.

pub mod audit;
mod backfills;
pub mod check;
mod csv;
mod digest;
mod error_causes;
mod errors;
mod foreseen;
mod health;
mod json_log;
mod log;
pub mod maps;
mod progress;
pub mod reference;
pub mod row_trace;
mod run;
pub mod verification;

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use backfills::{backfill_report, backfills, rehearsal};
pub use digest::digest;
pub use error_causes::error_causes;
pub use errors::{ErrorFormat, ErrorRows, error_in_full, no_errors, no_match, no_row_matches};
pub use health::health;
pub use progress::{Watched, watch};
pub use run::{run_report, run_summary};

use crate::config::LogFormat;
use crate::journal::registering;
use crate::text::{chain, counted_noun, escaped, escaped_json, escaped_lines};

/// The summary of a run names each entity when there are at most this many.
const ENTITIES_SHOWN_MAX: usize = 20;

/// The first failure to write to stdout, e.g. because the disk is full. A closed pipe (`| head`) is no failure.
static WRITE_ERROR: Mutex<Option<std::io::Error>> = Mutex::new(None);

/// Writes one line to stdout, escaped: text from outside stays on this line and has no effect on a terminal. A failure
/// is kept for [`write_error`].
pub fn line(text: impl std::fmt::Display) {
    write(&escaped(&text.to_string()));
}

/// Writes text of several lines to stdout, escaped. The caller has to pass text from outside through [`escaped`] first,
/// since it may contain line breaks.
pub fn lines(text: impl std::fmt::Display) {
    write(&escaped_lines(&text.to_string()));
}

/// Writes JSON to stdout. Its texts are exact, and have no effect on a terminal.
pub fn json_line(json: &serde_json::Value) {
    write(&escaped_json(json));
}

fn write(text: &str) {
    write_part(&format!("{text}\n"));
}

/// Writes a generated document to stdout as it is. It has no text from outside.
pub fn document(text: &str) {
    write_part(text);
}

/// Writes text that is escaped already, and ends a line only where the text does.
fn write_part(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(problem) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        && problem.kind() != ErrorKind::BrokenPipe
    {
        WRITE_ERROR.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(problem);
    }
}

/// Returns the first failure to write to stdout, if there was one, and forgets it.
pub fn write_error() -> Option<std::io::Error> {
    WRITE_ERROR.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Prints the answer to a command line that is not executed: help, version or a mistake. Returns the exit code.
pub fn usage(answer: &clap::Error) -> i32 {
    let printed = answer.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(problem) if !answer.use_stderr() && problem.kind() != ErrorKind::BrokenPipe => {
            error(&not_written(problem));
            1
        }
        _ => answer.exit_code(),
    }
}

/// The error of a command whose output is its product, and whose output could not be written.
pub fn not_written(problem: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(problem).context("the output could not be written to stdout")
}

/// Reports on stderr, once, why a command failed.
pub fn error(problem: &anyhow::Error) {
    let mut said = chain(problem.as_ref());
    if is_denied(problem) && !said.contains("; hint: ") {
        said.push_str("; hint: use a role that has the right: docs/ledgers.md#grant-the-rights");
    }
    if IS_JSON.load(Ordering::Relaxed) {
        return tracing::error!("{said}");
    }
    let _ = writeln!(std::io::stderr().lock(), "elven-sync: {}", escaped(&said));
}

/// Whether the database server denied a permission (`insufficient_privilege`).
fn is_denied(problem: &anyhow::Error) -> bool {
    problem.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>()).any(|cause| {
        cause.as_database_error().is_some_and(|refused| refused.code().as_deref() == Some("42501"))
    })
}

/// How much is logged, and in which form.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions<'a> {
    /// `-v` or `-vv`.
    pub verbose: u8,
    /// `--quiet`: errors alone, and no progress.
    pub is_quiet: bool,
    /// `ELVEN_SYNC_LOG`.
    pub levels: Option<&'a str>,
    /// `ELVEN_SYNC_LOG_FORMAT`.
    pub format: LogFormat,
    /// `NO_COLOR`.
    pub without_colour: bool,
}

/// The log has the form of JSON, so that stderr has nothing else.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Starts the log: warnings, how far long work is and what a service does, or as much as `-v`, `-vv`, `--quiet` or
/// `ELVEN_SYNC_LOG` ask for.
pub fn start_log(options: LogOptions<'_>) {
    let level = match options.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let chosen = options.levels.filter(|_| !options.is_quiet).map(log_filter);
    let is_ignored = matches!(chosen, Some(None));
    let filter = chosen.flatten().unwrap_or_else(|| {
        if options.is_quiet {
            return Targets::new().with_default(LevelFilter::ERROR);
        }
        let all = Targets::new().with_default(LevelFilter::WARN).with_target("elven_sync", level);
        let shown = LevelFilter::INFO.max(level);
        all.with_target("elven_sync::progress", shown).with_target("elven_sync::serve", shown)
    });
    let is_json = options.format == LogFormat::Json;
    IS_JSON.store(is_json, Ordering::Relaxed);
    progress::choose(options.is_quiet, is_json);
    let lines = tracing_subscriber::fmt::layer().with_writer(progress::Log::default);
    let as_text = (!is_json).then(|| {
        let has_colours = !options.without_colour && std::io::stderr().is_terminal();
        lines.with_ansi(has_colours).fmt_fields(log::Fields).with_target(false)
    });
    let as_json = is_json.then(|| {
        let lines = tracing_subscriber::fmt::layer().with_writer(progress::Log::default).with_ansi(false);
        lines.fmt_fields(json_log::JsonFields).event_format(json_log::JsonLines)
    });
    // A second subscriber, as in tests, is no harm.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(is_fit))
        .with(log::NoticesOnce::default())
        .with(as_text)
        .with(as_json)
        .try_init();
    if is_ignored {
        tracing::warn!(
            "ELVEN_SYNC_LOG is ignored, because it is no level and no list of levels; hint: set it to error, warn, \
             info, debug or trace, or to a list such as elven_sync=debug,warn"
        );
    }
}

/// Reads the levels of the log. `None`: a part is neither a level nor a target with a level. A word that is no level
/// would be taken for the name of a target, and switch all others off.
fn log_filter(wanted: &str) -> Option<Targets> {
    let is_level = |part: &str| part.trim().parse::<LevelFilter>().is_ok();
    if wanted.split(',').any(|part| !part.contains('=') && !is_level(part)) {
        return None;
    }
    wanted.parse().ok()
}

/// Keeps secrets out of the log: sqlx logs the value of an unknown parameter of a database URL, and a line of a
/// password file.
fn is_fit(metadata: &tracing::Metadata<'_>) -> bool {
    let holds = |name| metadata.fields().field(name).is_some();
    !(metadata.target().starts_with("sqlx_postgres::options") && (holds("value") || holds("line")))
}

/// The columns of a terminal of unknown width.
const TERMINAL_COLUMNS: u16 = 80;

/// A word of a cell of at most this many characters is not split where a table is wrapped.
const WORD_CHARS_MAX: u16 = 14;

/// The width of the terminal that stdout is. `None`: stdout is not a terminal.
fn terminal_columns() -> Option<u16> {
    let stdout = std::io::stdout();
    let width = terminal_size::terminal_size_of(&stdout).map(|(width, _)| width.0);
    stdout.is_terminal().then(|| width.unwrap_or(TERMINAL_COLUMNS))
}

/// Units that stay with their number where text is wrapped.
const UNITS: [&str; 9] = ["ms", "s", "min", "h", "days", "bytes", "KiB", "MiB", "GiB"];

/// Writes a paragraph to stdout, wrapped on a terminal.
fn paragraph(text: impl std::fmt::Display) {
    let text = escaped(&text.to_string());
    match terminal_columns() {
        Some(columns) => wrapped(&text, usize::from(columns).max(20)).into_iter().for_each(lines),
        None => lines(text),
    }
}

/// Wraps text at blanks into lines of at most this width, within a word only where the word is longer. The text has to
/// be [`escaped`].
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    // A number stays with its unit.
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let unit = word.trim_end_matches([')', ',', ';', '.', ':']);
        match words
            .last_mut()
            .filter(|last| UNITS.contains(&unit) && last.ends_with(|c: char| c.is_ascii_digit()))
        {
            Some(number) => number.extend([" ", word]),
            None => words.push(word.to_owned()),
        }
    }
    for word in words {
        let mut word: Vec<char> = word.chars().collect();
        let last = lines.last_mut().map(|line| (line.chars().count(), line));
        if let Some((length, line)) = last
            && length + usize::from(length > 0) + word.len() <= columns
        {
            if length > 0 {
                line.push(' ');
            }
            line.extend(word);
            continue;
        }
        while word.len() > columns {
            let rest = word.split_off(columns);
            lines.push(word.into_iter().collect());
            word = rest;
        }
        lines.push(word.into_iter().collect());
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// Formats a time; on a terminal without seconds.
fn when(at: DateTime<Utc>) -> String {
    let format = if terminal_columns().is_some() { "%Y-%m-%d %H:%MZ" } else { "%Y-%m-%d %H:%M:%SZ" };
    at.format(format).to_string()
}

/// Makes a table without a frame. Its cells are escaped; the columns `numbers` are aligned to the right. On a terminal,
/// cells are wrapped so that the table fits.
pub fn table(header: &[&str], numbers: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| escaped(cell)));
    }
    if let Some(columns) = terminal_columns() {
        fit(&mut table, columns);
    }
    for &column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Keeps the names of a column whole on a terminal if they take at most half of its width.
fn keep_whole<'n>(table: &mut Table, column: usize, names: impl Iterator<Item = &'n str>) {
    let width = names.map(|name| escaped(name).chars().count()).max().unwrap_or(0);
    if terminal_columns().is_some_and(|columns| width < usize::from(columns / 2))
        && let Some(names) = table.column_mut(column)
    {
        names.set_constraint(ColumnConstraint::ContentWidth);
    }
}

/// Makes a table fit a terminal of this width: cells are wrapped, within a word only where a word is long.
fn fit(table: &mut Table, columns: u16) {
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    let longest_words: Vec<u16> = (0..table.column_count())
        .map(|column| {
            let cells = table.row_iter().chain(table.header()).filter_map(|row| row.cell_iter().nth(column));
            let words = cells
                .filter_map(|cell| cell.content().split_whitespace().map(|word| word.chars().count()).max());
            u16::try_from(words.max().unwrap_or(0)).unwrap_or(u16::MAX)
        })
        .collect();
    // The longer words are split, so that the shorter ones need not be.
    let widths = |longest: u16| longest_words.iter().map(move |word| (*word).min(longest) + 1);
    let longest = (1..=WORD_CHARS_MAX).rev().find(|longest| widths(*longest).sum::<u16>() <= columns);
    for (column, width) in table.column_iter_mut().zip(widths(longest.unwrap_or(1))) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
}

/// Prints the entities of the ledger that are not registered: those whose rows are pending, and the number of those
/// that are left out on request.
fn unregistered(pending: &[String], left_out: usize) {
    for entity_id in pending.iter().take(ENTITIES_SHOWN_MAX) {
        line(format_args!(
            "unregistered: rows of `{entity_id}` are pending; hint: {}",
            registering(entity_id)
        ));
    }
    if let Some(more) = pending.len().checked_sub(ENTITIES_SHOWN_MAX).filter(|more| *more > 0) {
        line(format_args!(
            "unregistered: rows of {} are pending; hint: elven-sync errors list --kind unregistered_entity",
            counted_noun(number(more), "more entity", "more entities")
        ));
    }
    if left_out > 0 {
        line(format_args!(
            "left out: the rows of {}, because of [ledger] ignore_unregistered",
            counted_noun(
                number(left_out),
                "entity that is not registered",
                "entities that are not registered"
            )
        ));
    }
}

/// A number of rows; a question mark where the database cannot count them.
fn counted(rows: Option<i64>) -> String {
    rows.map_or_else(|| "?".to_owned(), |rows| rows.to_string())
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Asks a question and returns whether the answer is yes; no answer means no.
pub fn confirm(question: &str) -> std::io::Result<bool> {
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{} [y/N] ", escaped(question))?;
    stdout.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        writeln!(stdout)?;
    }
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stays_with_its_unit_where_text_is_wrapped() {
        assert_eq!(wrapped("it took (0 ms) now", 11), ["it took", "(0 ms) now"]);
        assert_eq!(wrapped("wait for 5 min, 12 s", 10), ["wait for", "5 min,", "12 s"]);
        assert_eq!(wrapped("12 rows of it", 6), ["12", "rows", "of it"]);
    }
}
