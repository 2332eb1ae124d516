//! Progress: bars on a terminal, otherwise a line in the log every few seconds.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::sync::{EntityProgress, RowsDone};
use crate::text::thousands;

/// Bars are drawn after this time, since most runs end before it.
const BARS_AFTER: Duration = Duration::from_secs(2);
/// The interval between two drawings of the bars.
const BARS_EVERY: Duration = Duration::from_millis(250);
/// The interval between two lines of the log.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Without bars, the rows are counted after this time, so that the first line has their number.
const COUNTED_FOR_LINES_AFTER: Duration = Duration::from_secs(4);
/// The most entities that have a bar of their own at once.
const ENTITIES_MAX: usize = 6;

/// The bars on the terminal. A line of the log must not be written into their lines.
static BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Whether progress is shown, and whether it may be drawn.
static IS_SHOWN: AtomicBool = AtomicBool::new(true);
static MAY_DRAW: AtomicBool = AtomicBool::new(true);

/// Chooses how progress is shown: not at all, or as lines of the log also on a terminal.
pub(super) fn choose(is_quiet: bool, as_lines: bool) {
    IS_SHOWN.store(!is_quiet, Ordering::Relaxed);
    MAY_DRAW.store(!as_lines, Ordering::Relaxed);
}

/// Where the log is written: between two drawings of the bars.
#[derive(Debug, Default)]
pub(super) struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let bars = BARS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let write = || std::io::stderr().lock().write_all(line);
        bars.map_or_else(write, |bars| bars.suspend(write)).map(|()| line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// The task that shows the progress, until [`Watched::end`].
#[derive(Debug)]
pub struct Watched {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Watched {
    /// Ends the task and removes the bars.
    pub async fn end(self) {
        let _ = self.end.send(());
        let _ = self.task.await;
    }
}

/// Shows the progress of long work on stderr.
pub fn watch(rows_done: &RowsDone) -> Watched {
    let is_shown = IS_SHOWN.load(Ordering::Relaxed);
    let is_terminal = std::io::stderr().is_terminal() && MAY_DRAW.load(Ordering::Relaxed);
    if is_shown {
        rows_done.watch(if is_terminal { BARS_AFTER } else { COUNTED_FOR_LINES_AFTER });
    }
    let (end, mut ended) = oneshot::channel();
    let rows_done = rows_done.clone();
    let task = tokio::spawn(async move {
        let begun = Instant::now();
        let shown = async {
            if !is_shown {
                std::future::pending::<()>().await;
            } else if is_terminal {
                draw(&rows_done, begun).await;
            } else {
                log(&rows_done, begun).await;
            }
        };
        tokio::select! {
            _ = &mut ended => {}
            () = shown => {}
        }
        if let Some(bars) = BARS.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = bars.clear();
        }
    });
    Watched { end, task }
}

async fn log(rows_done: &RowsDone, begun: Instant) {
    loop {
        tokio::time::sleep(LINE_EVERY).await;
        let entities = rows_done.entities();
        let total = Total::of(&entities, begun);
        tracing::info!(
            target: "elven_sync::progress",
            rows_done = total.done,
            rows_total = total.expected,
            rows_per_second = total.rate,
            left = total.left.map(in_words),
            entities_left = entities.iter().filter(|entity| !entity.has_ended).count(),
            "progress"
        );
    }
}

async fn draw(rows_done: &RowsDone, begun: Instant) {
    tokio::time::sleep(BARS_AFTER).await;
    let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let all = bars.add(bar());
    let mut of_entities: BTreeMap<String, ProgressBar> = BTreeMap::new();
    *BARS.lock().unwrap_or_else(PoisonError::into_inner) = Some(bars.clone());
    loop {
        let entities = rows_done.entities();
        for entity in &entities {
            if entity.has_ended {
                if let Some(ended) = of_entities.remove(&entity.entity_id) {
                    bars.remove(&ended);
                }
            } else if entity.begun_at.is_some() {
                if of_entities.len() < ENTITIES_MAX && !of_entities.contains_key(&entity.entity_id) {
                    of_entities.insert(entity.entity_id.clone(), bars.insert_before(&all, bar()));
                }
                if let Some(bar) = of_entities.get(&entity.entity_id) {
                    let since = entity.begun_at.unwrap_or(begun);
                    show(bar, &entity.entity_id, &Total::of(std::slice::from_ref(entity), since));
                }
            }
        }
        show(&all, "all", &Total::of(&entities, begun));
        tokio::time::sleep(BARS_EVERY).await;
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{prefix:>20!} {wide_bar} {msg}") {
        bar.set_style(style.progress_chars("##-"));
    }
    bar
}

fn show(bar: &ProgressBar, prefix: &str, total: &Total) {
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    bar.set_length(unsigned(total.expected.unwrap_or(0)));
    bar.set_position(unsigned(total.done));
    bar.set_prefix(super::escaped(prefix));
    bar.set_message(total.to_string());
}

/// The progress of several entities together.
#[derive(Debug, PartialEq, Eq)]
struct Total {
    done: i64,
    /// `None`: the number is not known for at least one of them.
    expected: Option<i64>,
    /// Rows per second.
    rate: i64,
    left: Option<Duration>,
}

impl Total {
    fn of(entities: &[EntityProgress], since: Instant) -> Self {
        let done = entities.iter().map(|entity| entity.rows_done).sum();
        let here: i64 = entities.iter().map(|entity| entity.rows_done_here).sum();
        let expected = entities.iter().map(|entity| entity.rows_total);
        let expected = expected.sum::<Option<i64>>().filter(|rows| *rows > 0).map(|rows| rows.max(done));
        let elapsed_ms = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX).max(1);
        let rate = here.saturating_mul(1000) / elapsed_ms;
        let left = expected.filter(|_| rate > 0).and_then(|rows| u64::try_from((rows - done) / rate).ok());
        Self { done, expected, rate, left: left.map(Duration::from_secs) }
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", thousands(self.done))?;
        if let Some(expected) = self.expected {
            write!(f, " of {}", thousands(expected))?;
        }
        write!(f, " rows, {}/s", thousands(self.rate))?;
        if let Some(left) = self.left {
            write!(f, ", {} left", in_words(left))?;
        }
        Ok(())
    }
}

/// Formats a duration to the second, e.g. `1 min 1 s`.
pub(super) fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(rows_done: i64, rows_done_here: i64, rows_total: Option<i64>) -> EntityProgress {
        EntityProgress { rows_done, rows_done_here, rows_total, ..EntityProgress::default() }
    }

    fn ten_seconds_ago() -> Instant {
        Instant::now().checked_sub(Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn the_time_left_is_computed_from_the_rows_done_by_this_process() {
        let since = ten_seconds_ago();
        let total = Total::of(&[entity(1505, 1005, Some(2500)), entity(0, 0, Some(500))], since);
        assert_eq!((total.done, total.expected, total.rate), (1505, Some(3000), 100));
        assert_eq!(total.to_string(), "1,505 of 3,000 rows, 100/s, 14 s left");
    }

    #[test]
    fn without_a_total_no_time_left_is_shown() {
        let since = ten_seconds_ago();
        let total = Total::of(&[entity(1005, 1005, None), entity(0, 0, Some(500))], since);
        assert_eq!(total.to_string(), "1,005 rows, 100/s");
        // More rows may be read than were counted.
        assert_eq!(Total::of(&[entity(600, 0, Some(500))], since).expected, Some(600));
    }

    #[test]
    fn durations_are_formatted_in_words() {
        for (seconds, words) in [(59, "59 s"), (61, "1 min 1 s"), (3600 * 26 + 120, "26 h 2 min")] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
    }
}
