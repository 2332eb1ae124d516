//! The database server, and the rights of the role.

use super::finding::{Finding, Outcome, Status, Unmade, named};
use super::surroundings::Surroundings;
use crate::database::OtherInstallation;
use crate::text::counted_noun;

/// The versions of PostgreSQL that are tested.
const VERSIONS: std::ops::RangeInclusive<i32> = 13..=18;

/// The database can be reached.
pub(super) async fn connection(surroundings: &Surroundings) -> Outcome {
    surroundings.settings()?;
    if let Err(problem) = surroundings.connected().await {
        return Ok(Finding::of(Status::Failed, &problem));
    }
    match surroundings.server().await {
        Ok(server) => {
            Ok(Finding::ok(format!("connected to database {} as role {}", server.database, server.role)))
        }
        // What is wrong is the finding of that check.
        Err(Unmade::Needs("database.pooler")) => Ok(Finding::ok("connected to a pooler")),
        Err(problem) => Err(problem),
    }
}

/// The version of the server.
pub(super) async fn version(surroundings: &Surroundings) -> Outcome {
    let server = surroundings.server().await?;
    Ok(of_version(server.version_number, &server.version))
}

fn of_version(number: i32, version: &str) -> Finding {
    let (oldest, newest) = (VERSIONS.start(), VERSIONS.end());
    let found = format!("PostgreSQL {version}");
    match number / 10_000 {
        major if major < *oldest => Finding::failed(
            format!("{found} is not supported; the oldest supported version is {oldest}"),
            "upgrade the server",
        ),
        major if major > *newest => Finding::warning(
            format!("{found} is newer than the versions that this program was tested with"),
            format!("look for a version of elven-sync that supports it; {oldest} to {newest} are supported"),
        ),
        _ => Finding::ok(found),
    }
}

/// The connection is encrypted, or does not leave the machine.
pub(super) async fn tls(surroundings: &Surroundings) -> Outcome {
    let server = surroundings.server().await?;
    Ok(of_tls(server.tls.as_deref(), server.is_local))
}

fn of_tls(version: Option<&str>, is_local: bool) -> Finding {
    match (version, is_local) {
        (Some(version), _) => Finding::ok(format!("the server's connection is encrypted ({version})")),
        (None, true) => Finding::ok("not encrypted; the connection does not leave the server's machine"),
        (None, false) => Finding::warning(
            "the server's connection is not encrypted, so that the network can read the ledger",
            "add sslmode=verify-full and sslrootcert=FILE to DATABASE_URL, and set ssl = on at the server",
        ),
    }
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
    let (server, database) = (surroundings.server().await?, surroundings.database().await?);
    Ok(of_installations(&server.role, &database.other_installations().await?))
}

/// Sessions under another role belong to somebody else in all likelihood, e.g. to another tenant of the server.
fn of_installations(role: &str, found: &[OtherInstallation]) -> Finding {
    let shown = |other: &&OtherInstallation| {
        format!("database {} (role {}, {})", other.database, other.role, other.name)
    };
    let (same, others): (Vec<_>, Vec<_>) = found.iter().partition(|other| other.role == role);
    if !same.is_empty() {
        return Finding::warning(
            format!(
                "another installation runs on this server under the same role: {}; whether it feeds the same entities \
                 cannot be seen from here, and two that do overwrite each other's balances",
                named(same.iter().map(shown))
            ),
            "compare its entities and keys with these: elven-sync entity list, there and here",
        );
    }
    Finding::ok(if others.is_empty() {
        "no session of another installation is connected to this server".to_owned()
    } else {
        format!(
            "other installations run on this server under other roles: {}",
            named(others.iter().map(shown))
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
    let missing = surroundings.grants().await?.ok_or(Unmade::Needs("database.schema"))?;
    if !missing.grants.is_empty() && !missing.may_not_read && !missing.may_write {
        return Ok(Finding::warning(
            format!(
                "role {} may read the sync tables and not write to them, so it fits monitoring only",
                server.role
            ),
            "the rights of a role that runs: docs/ledgers.md#grant-the-rights",
        ));
    }
    let missing = &missing.grants;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_too_old_or_untested_are_found() {
        let status = |number| of_version(number, "x").status;
        assert_eq!(
            [120_022, 130_000, 180_004, 190_000].map(status),
            [Status::Failed, Status::Ok, Status::Ok, Status::Warning]
        );
    }

    #[test]
    fn a_connection_that_the_network_can_read_is_found() {
        let status = |version, is_local| of_tls(version, is_local).status;
        assert_eq!(status(None, false), Status::Warning);
        assert_eq!([status(Some("TLSv1.3"), false), status(None, true)], [Status::Ok; 2]);
    }

    #[test]
    fn an_installation_under_another_role_is_named_and_no_warning() {
        let other = |role: &str| OtherInstallation {
            database: "copy".to_owned(),
            role: role.to_owned(),
            name: "elven-sync/0.1.1 serve".to_owned(),
        };
        let found = of_installations("ours", &[other("theirs")]);
        assert_eq!(found.status, Status::Ok);
        assert!(found.message.contains("database copy (role theirs, elven-sync/0.1.1 serve)"), "{found:?}");
        assert_eq!(of_installations("ours", &[other("theirs"), other("ours")]).status, Status::Warning);
        assert_eq!(of_installations("ours", &[]).status, Status::Ok);
    }
}
