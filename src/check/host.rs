//! The machine.

use std::cmp::Ordering;

use chrono::{Datelike, Utc};

use super::finding::{Finding, Outcome, Unmade};
use super::surroundings::Surroundings;

/// A smaller difference of clocks is not reported, in milliseconds.
const SKEW_MIN_MS: i64 = 2_000;

/// Files that a run has open besides its connections: the program's own, the terminal, zone files.
const OTHER_FILES: usize = 64;

/// The clock of this machine against that of the database server.
pub(super) async fn clock(surroundings: &Surroundings) -> Outcome {
    let skew = surroundings.database().await?.clock_skew().await?;
    Ok(of_skew(skew.num_milliseconds()))
}

fn of_skew(milliseconds: i64) -> Finding {
    let direction = match milliseconds.cmp(&0) {
        Ordering::Less => "behind",
        Ordering::Equal | Ordering::Greater => "ahead of",
    };
    let off = format!(
        "this machine's clock is {}.{:03} s {direction} the database server's",
        milliseconds.abs() / 1000,
        milliseconds.abs() % 1000
    );
    if milliseconds.abs() < SKEW_MIN_MS {
        Finding::ok(off)
    } else {
        Finding::warning(
            format!("{off}; leases use the database's clock and signatures this machine's"),
            "timedatectl status",
        )
    }
}

/// The limit of open files.
pub(super) fn files(surroundings: &Surroundings) -> Outcome {
    let sync = &surroundings.settings()?.sync;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    let Some(limit) = limit else {
        return Err(Unmade::NotApplicable(
            "this system does not say how many files a process may open".to_owned(),
        ));
    };
    let requests = sync.entities_at_once.saturating_mul(sync.requests_in_flight);
    let needed = requests.saturating_add(sync.entities_at_once.saturating_mul(3)).saturating_add(OTHER_FILES);
    Ok(if limit >= needed {
        Finding::ok(format!("a process may open {limit} files, and a run needs up to {needed}"))
    } else {
        Finding::failed(
            format!("a process may open {limit} files, and a run needs up to {needed}"),
            format!(
                "ulimit -n {needed}, or LimitNOFILE={needed} in the unit; or lower [sync] entities_at_once"
            ),
        )
    })
}

/// The age of the zone rules. New rules come several times a year.
pub(super) fn zone_rules(surroundings: &Surroundings) -> Outcome {
    let version = surroundings.settings()?.zones.version();
    let year = version.get(..4).and_then(|year| year.parse::<i32>().ok());
    let Some(year) = year else {
        return Ok(Finding::warning(
            format!("the zone rules in use have no known version ({version})"),
            "install the package tzdata, or remove [time] zoneinfo",
        ));
    };
    let age = Utc::now().year() - year;
    Ok(if age <= 1 {
        Finding::ok(format!("zone rules {version}"))
    } else {
        Finding::warning(
            format!(
                "the zone rules are {version}, of {age} years ago: wall-clock times may be wrong since then"
            ),
            "update the package tzdata, or upgrade elven-sync",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    #[test]
    fn clocks_that_differ_are_found_in_both_directions() {
        assert_eq!([0, 1_999, -1_999].map(|skew| of_skew(skew).status), [Status::Ok; 3]);
        for (skew, words) in [(2_000, "2.000 s ahead of"), (-90_500, "90.500 s behind")] {
            let found = of_skew(skew);
            assert_eq!(found.status, Status::Warning);
            assert!(found.message.contains(words), "{found:?}");
        }
    }
}
