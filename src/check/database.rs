//! The database server, and the rights of the role.

use super::finding::{Finding, Outcome, Status, Unmade, named};
use super::surroundings::Surroundings;
use crate::database::Database;
use crate::journal;
use crate::ledger::check_standby;
use crate::sync::standby_address;
use crate::text::{chain, counted_noun};

/// The versions of PostgreSQL that are tested.
const VERSIONS: std::ops::RangeInclusive<i32> = 13..=18;

/// A standby that is further behind makes runs wait for it, in seconds.
const LAG_MAX_S: i64 = 60;

/// The database can be reached.
pub(super) async fn connection(surroundings: &Surroundings) -> Outcome {
    surroundings.settings()?;
    if let Err(problem) = surroundings.connected().await {
        return Ok(Finding::of(Status::Failed, &problem));
    }
    let server = surroundings.server().await?;
    Ok(Finding::ok(format!("connected to database {} as role {}", server.database, server.role)))
}

/// The version of the server.
pub(super) async fn version(surroundings: &Surroundings) -> Outcome {
    let server = surroundings.server().await?;
    let (oldest, newest) = (VERSIONS.start(), VERSIONS.end());
    let found = format!("PostgreSQL {}", server.version);
    Ok(match server.version_number / 10_000 {
        major if major < *oldest => Finding::failed(
            format!("{found} is not supported; the oldest supported version is {oldest}"),
            "upgrade the server",
        ),
        major if major > *newest => Finding::warning(
            format!("{found} is newer than the versions that this program was tested with"),
            format!("look for a version of elven-sync that supports it; {oldest} to {newest} are supported"),
        ),
        _ => Finding::ok(found),
    })
}

/// The connection is encrypted, or does not leave the machine.
pub(super) async fn tls(surroundings: &Surroundings) -> Outcome {
    let server = surroundings.server().await?;
    Ok(match (&server.tls, server.is_local) {
        (Some(version), _) => Finding::ok(format!("the server's connection is encrypted ({version})")),
        (None, true) => Finding::ok("not encrypted; the connection does not leave the server's machine"),
        (None, false) => Finding::warning(
            "the server's connection is not encrypted, so that the network can read the ledger",
            "add sslmode=verify-full and sslrootcert=FILE to DATABASE_URL, and set ssl = on at the server",
        ),
    })
}

/// The server is a primary that can be written to.
pub(super) async fn primary(surroundings: &Surroundings) -> Outcome {
    let server = surroundings.server().await?;
    Ok(match server.read_only_by.as_deref() {
        None => Finding::ok("the server is a primary"),
        Some("standby") => Finding::failed(
            "DATABASE_URL leads to a standby, which is read-only",
            "set DATABASE_URL to the primary, and ELVEN_SYNC_LEDGER_URL to a standby for reading",
        ),
        Some(_) => Finding::failed(
            "the configuration of the server has default_transaction_read_only = on, so nothing can be recorded",
            "set default_transaction_read_only = off at the server, when the reason for it has ended",
        ),
    })
}

/// The standby for reading belongs to the primary and follows it.
pub(super) async fn standby(surroundings: &Surroundings) -> Outcome {
    let (settings, primary) = (surroundings.settings()?, surroundings.database().await?);
    let Some(address) = standby_address(settings) else {
        return Err(Unmade::NotApplicable(
            "pages are read from the primary (no ELVEN_SYNC_LEDGER_URL)".to_owned(),
        ));
    };
    let hint = "check ELVEN_SYNC_LEDGER_URL, or unset it to read from the primary";
    let standby = match primary.connect_like(address).await {
        Ok(standby) => standby,
        Err(problem) => {
            let problem = format!("the standby cannot be reached: {}", chain(&problem));
            return Ok(Finding::failed(problem, hint));
        }
    };
    let checked = standby_of(primary, &standby, hint).await;
    standby.close().await;
    checked
}

async fn standby_of(primary: &Database, standby: &Database, hint: &str) -> Outcome {
    if let Err(problem) = check_standby(primary, standby).await {
        return Ok(Finding::of(Status::Failed, &chain(&problem)));
    }
    if standby.was_primary() {
        return Ok(Finding::warning(
            "ELVEN_SYNC_LEDGER_URL leads to the primary itself, or to a promoted copy",
            hint,
        ));
    }
    Ok(match standby.replay_lag_s().await? {
        None => Finding::warning("the standby has replayed nothing yet", hint),
        Some(lag) if lag > LAG_MAX_S => Finding::warning(
            format!("the standby is {} behind, and runs wait at most 120 s for it", super::finding::age(lag)),
            "select pg_is_wal_replay_paused(), pg_last_xact_replay_timestamp(); on the standby",
        ),
        Some(lag) => Finding::ok(format!("a standby of the primary, {lag} s behind")),
    })
}

/// Statements of a transaction stay together, also behind a pooler.
pub(super) async fn pooler(surroundings: &Surroundings) -> Outcome {
    let processes = surroundings.database().await?.processes_of_transactions().await?;
    if processes.iter().any(|(first, second)| first != second) {
        return Ok(Finding::failed(
            "the statements of one transaction went to different server processes",
            "set pool_mode = transaction (or session) in the pooler",
        ));
    }
    let mut distinct: Vec<i32> = processes.iter().map(|(first, _)| *first).collect();
    distinct.sort_unstable();
    distinct.dedup();
    Ok(Finding::ok(format!(
        "each of {} transactions had one server process, {} in all",
        processes.len(),
        distinct.len()
    )))
}

/// There is room for the connections of a run.
pub(super) async fn connections(surroundings: &Surroundings) -> Outcome {
    let (settings, server) = (surroundings.settings()?, surroundings.server().await?);
    let needed = i64::try_from(settings.connections_max()).unwrap_or(i64::MAX);
    let room = server.connections_max - server.connections;
    let found = format!("{room} of {} connections are free", server.connections_max);
    Ok(if room >= needed {
        Finding::ok(format!("{found}; a run opens at most {needed}"))
    } else {
        Finding::warning(
            format!("{found}, and a run opens up to {needed}, so it may have to wait for connections"),
            "raise max_connections (or the limit of the role or the database), use a pooler, or lower [sync] \
             entities_at_once",
        )
    })
}

/// No other installation on the server seems to feed the same entities.
pub(super) async fn installations(surroundings: &Surroundings) -> Outcome {
    let server = surroundings.server().await?;
    let others = &server.elsewhere;
    Ok(if others.is_empty() {
        Finding::ok("no session of elven-sync is connected to another database of this server")
    } else {
        Finding::warning(
            format!(
                "elven-sync is also connected to {} of this server: {}; two installations that feed one entity \
                 overwrite each other's balances",
                counted_noun(
                    i64::try_from(others.len()).unwrap_or(i64::MAX),
                    "other database",
                    "other databases"
                ),
                named(others)
            ),
            "check that their keys belong to other entities, or stop one of them",
        )
    })
}

/// The sync tables have the version of this program.
pub(super) async fn schema(surroundings: &Surroundings) -> Outcome {
    Ok(match surroundings.schema().await? {
        Ok(()) => Finding::ok("the sync tables have the version of this program"),
        Err(problem) => Finding::of(Status::Failed, problem),
    })
}

/// The server was not promoted since the last run.
pub(super) async fn timeline(surroundings: &Surroundings) -> Outcome {
    let (server, facts) = (surroundings.server().await?, surroundings.journal().await?);
    let Some((now, recorded)) = server.timeline.zip(facts.timeline) else {
        return Err(Unmade::NotApplicable("no run has recorded the timeline of the server".to_owned()));
    };
    Ok(if now == recorded {
        Finding::ok(format!("the server was not promoted since the last run (timeline {now})"))
    } else {
        Finding::warning(
            format!(
                "the server was promoted since the last run (timeline {recorded} before, {now} now); after a failover \
                 that is right, but a promoted copy would upload beside its original"
            ),
            "on a copy: unset ELVEN_API_KEY, and see docs/operating.md#a-promoted-copy-for-tests",
        )
    })
}

/// The role has the privileges that a run needs.
pub(super) async fn privileges(surroundings: &Surroundings) -> Outcome {
    let server = surroundings.server().await?;
    let missing = journal::missing_grants(surroundings.database().await?).await?;
    let missing = missing.ok_or(Unmade::Needs("database.schema"))?;
    Ok(if missing.is_empty() {
        let more = if server.is_superuser {
            "; it is a superuser, which is more than a run needs (docs/ledgers.md#grant-the-rights)"
        } else {
            ""
        };
        Finding::ok(format!(
            "role {} has the privileges on the sync tables that runs need{more}",
            server.role
        ))
    } else {
        let count = i64::try_from(missing.len()).unwrap_or(i64::MAX);
        Finding::failed(
            format!(
                "role {} lacks privileges: {}",
                server.role,
                counted_noun(count, "grant is missing", "grants are missing")
            ),
            format!("as the owner: {};", missing.join("; ")),
        )
    })
}
