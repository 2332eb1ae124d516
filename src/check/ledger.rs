//! The ledger table or view.

use chrono::{DateTime, Utc};

use super::finding::{Finding, Outcome, Status, Unmade, age, named};
use super::surroundings::Surroundings;
use crate::ledger::{Progress, Writer, quote_identifier};
use crate::text::quoted_sql;

/// A transaction that is open for longer delays its rows noticeably, in seconds.
const WRITER_MAX_S: i64 = 3600;

/// The same for a prepared transaction, which stays open until somebody ends it.
const PREPARED_MAX_S: i64 = 600;

/// The most open transactions that are judged.
const WRITERS_MAX: u16 = 1000;

/// The table exists, with the columns and types that it needs.
pub(super) async fn table(surroundings: &Surroundings) -> Outcome {
    Ok(match surroundings.opened().await? {
        Ok(ledger) => Finding::ok(format!("{}: {}", ledger.name(), ledger.columns().join(", "))),
        Err(problem) => Finding::of(Status::Failed, problem),
    })
}

/// The role may read what the ledger needs.
pub(super) async fn privileges(surroundings: &Surroundings) -> Outcome {
    let (ledger, server) = (surroundings.ledger().await?, surroundings.server().await?);
    Ok(match &surroundings.ledger_facts().await?.missing_grants {
        None => Finding::ok(format!("role {} may read {}", server.role, ledger.name())),
        Some(missing) => Finding::failed(
            format!("role {} may not read {}", server.role, ledger.name()),
            format!("as the owner: {missing};"),
        ),
    })
}

/// No policy hides rows.
pub(super) async fn row_security(surroundings: &Surroundings) -> Outcome {
    let server = surroundings.server().await?;
    let reading = surroundings.readable().await?;
    Ok(match &surroundings.ledger_facts().await?.filtered {
        None => Finding::ok("no row-level security applies to the role"),
        // A view has the rights of its owner, and a partition is read through its table.
        Some(tables) if reading.is_ok() => {
            Finding::ok(format!("the policies of {tables} do not apply to what runs read"))
        }
        Some(tables) => Finding::failed(
            format!(
                "row-level security of {tables} applies to role {}, which a run treats as an error",
                server.role
            ),
            format!("as a superuser: alter role {} bypassrls;", quote_identifier(&server.role)),
        ),
    })
}

/// The rows can be read: no session has locked the ledger, and a view works.
pub(super) async fn readable(surroundings: &Surroundings) -> Outcome {
    match surroundings.unreadable_by().await? {
        Some("ledger.readable") => {}
        Some(other) => return Err(Unmade::Needs(other)),
        None => return Ok(Finding::ok("rows can be read")),
    }
    match surroundings.readable().await? {
        Ok(()) => Ok(Finding::ok("rows can be read")),
        Err(problem) => Err(problem.clone()),
    }
}

/// The trigger that stamps rows is intact on each table.
pub(super) async fn guard(surroundings: &Surroundings) -> Outcome {
    let guard = surroundings.permitted().await?.guard().await?;
    Ok(match guard.problem() {
        Some(problem) => Finding::failed(problem, guard.hint()),
        None if guard.tables == 0 => Finding::warning(
            "the view takes no column of type xid8 from a table, so nothing shows that its rows are stamped",
            "select the change_xid of its table in the view; docs/ledgers.md describes it",
        ),
        None if guard.tables == 1 => Finding::ok("the trigger that stamps rows is intact"),
        None => Finding::ok(format!("the trigger that stamps rows is intact on {} tables", guard.tables)),
    })
}

/// The index that runs use is there and valid.
pub(super) async fn index(surroundings: &Surroundings) -> Outcome {
    let missing = &surroundings.index().await?.missing;
    Ok(if missing.is_empty() {
        Finding::ok("the index on entity, change_xid and id is valid")
    } else {
        Finding::failed(
            format!(
                "the index that runs use is missing or invalid ({}); without it each run reads the whole table",
                named(missing)
            ),
            "elven-sync attach",
        )
    })
}

/// No row has a NULL where rows are found by.
pub(super) async fn nulls(surroundings: &Surroundings) -> Outcome {
    let ledger = surroundings.ledger().await?;
    // The stamps have a check of their own.
    let roles: Vec<&str> = ledger.nullable().into_iter().filter(|role| *role != "change_xid").collect();
    if roles.is_empty() {
        return Ok(Finding::ok("id and entity_id are NOT NULL"));
    }
    let mut with_nulls = Vec::new();
    let ledger = surroundings.indexed_rows().await?;
    for role in &roles {
        match ledger.has_null_in(role).await {
            Ok(true) => with_nulls.push(*role),
            Ok(false) => {}
            Err(problem) => return Err(problem.into()),
        }
    }
    Ok(if with_nulls.is_empty() {
        Finding::ok(format!("{} may be NULL and never is", roles.join(" and ")))
    } else {
        Finding::failed(
            format!("the ledger has rows whose {} is NULL, which no run reads", with_nulls.join(" and ")),
            "correct these rows, or leave them out in a view",
        )
    })
}

/// Each row has the id of a transaction that has happened in this database.
pub(super) async fn stamps(surroundings: &Surroundings) -> Outcome {
    let (ledger, lanes) = (surroundings.indexed_rows().await?, surroundings.lanes().await?);
    let progress: Vec<Progress> = lanes.iter().map(|(entity_id, lane)| lane.progress(entity_id)).collect();
    let probed = ledger.probe(&progress).await?;
    if let Some(unreadable) = probed.unreadable.values().next() {
        return Ok(Finding::of(Status::Failed, &unreadable.to_string()));
    }
    let of = |is_wrong: fn(&crate::ledger::NewRows) -> bool| {
        let wrong = probed.entities.iter().filter(move |(_, rows)| is_wrong(rows));
        wrong.map(|(entity_id, _)| entity_id.as_str()).collect::<Vec<_>>()
    };
    let (unstamped, future) = (of(|rows| rows.unstamped), of(|rows| rows.from_the_future));
    let is_view = surroundings.ledger_facts().await?.is_view;
    let found = |entity_ids: &[&str], what: &str, is_missing| {
        let named = named(entity_ids.iter().map(|id| format!("`{id}`")));
        let update = ledger.stamping(entity_ids.first().copied().unwrap_or_default(), is_missing);
        // A view may rename the columns of its table.
        let hint = if is_view {
            format!("elven-sync attach for the table of the view, then stamp these rows there: {update}")
        } else {
            format!("elven-sync attach, then in the database: {update}")
        };
        Finding::failed(what.replace("{}", &named), hint)
    };
    Ok(if !unstamped.is_empty() {
        found(&unstamped, "rows of {} have no change_xid", true)
    } else if !future.is_empty() {
        let what = "rows of {} have a change_xid that has not been given out yet in this database";
        found(&future, what, false)
    } else {
        Finding::ok("the rows of the registered entities are stamped")
    })
}

/// No transaction that has written to the ledger stays open for long.
pub(super) async fn writers(surroundings: &Surroundings) -> Outcome {
    let writers = surroundings.permitted().await?.writers(WRITERS_MAX).await?;
    Ok(of_writers(&writers, &surroundings.server().await?.role, Utc::now()))
}

/// All writers are judged: an older session may hide a prepared transaction that is open for too long.
fn of_writers(writers: &[Writer], role: &str, now: DateTime<Utc>) -> Finding {
    let open_s = |writer: &Writer| writer.since.map(|since| (now - since).num_seconds().max(0));
    let is_late = |writer: &&Writer| {
        let limit = if writer.prepared_as.is_some() { PREPARED_MAX_S } else { WRITER_MAX_S };
        open_s(writer).is_some_and(|seconds| seconds >= limit)
    };
    let late: Vec<&Writer> = writers.iter().filter(is_late).collect();
    let unseen = writers.iter().find(|writer| writer.since.is_none());
    let found = |writer: &Writer, shown: &str| {
        format!("transaction {} has written to the ledger and is {shown}", writer.transaction)
    };
    match (late.first(), unseen, writers.first()) {
        (Some(first), ..) => of_late_writer(first, late.len() - 1, open_s(first).unwrap_or_default()),
        (None, Some(unseen), _) => Finding {
            status: Status::Skipped,
            message: format!(
                "{}; role {role} may not see for how long",
                found(unseen, "open; its rows are uploaded after it commits")
            ),
            hint: Some(format!("as a superuser: grant pg_monitor to {};", quote_identifier(role))),
        },
        (None, None, Some(oldest)) => {
            let shown = format!("open for {}", age(open_s(oldest).unwrap_or_default()));
            Finding::ok(format!("{}; its rows are uploaded after it commits", found(oldest, &shown)))
        }
        (None, None, None) => Finding::ok("no open transaction has written to the ledger"),
    }
}

fn of_late_writer(writer: &Writer, more: usize, open_s: i64) -> Finding {
    let more = match more {
        0 => String::new(),
        1 => ", and 1 more is open for long".to_owned(),
        more => format!(", and {more} more are open for long"),
    };
    let (transaction, open) = (&writer.transaction, age(open_s));
    let (is_open, until, hint) = match (&writer.prepared_as, writer.pid) {
        (Some(name), _) => (
            "is prepared",
            "until it is ended with commit prepared or rollback prepared",
            format!("select * from pg_prepared_xacts where gid = {};", quoted_sql(name)),
        ),
        (None, Some(pid)) => {
            ("is open", "until it ends", format!("select * from pg_stat_activity where pid = {pid};"))
        }
        (None, None) => ("is open", "until it ends", "select * from pg_prepared_xacts;".to_owned()),
    };
    Finding::warning(
        format!(
            "transaction {transaction} has written to the ledger and {is_open} for {open}{more}; {until}, its rows are \
             not uploaded"
        ),
        hint,
    )
}

/// Which publications carry the ledger and the sync tables.
pub(super) async fn publications(surroundings: &Surroundings) -> Outcome {
    let facts = surroundings.ledger_facts().await?;
    if let Some(publications) = &facts.publications_of_journal {
        return Ok(Finding::warning(
            format!(
                "publication {publications} carries the sync tables: a subscriber stops when a later migrate adds a \
                 table that it lacks"
            ),
            "create the publication for named tables instead of FOR ALL TABLES",
        ));
    }
    Ok(match &facts.publications {
        None => Finding::ok("no publication carries the ledger"),
        Some(publications) => Finding::ok(format!("publication {publications} carries the ledger")),
    })
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_transaction_that_is_open_for_long_is_found_with_its_end() {
        let now = Utc::now();
        let writer = |pid, prepared_as: Option<&str>, minutes| Writer {
            transaction: "77".to_owned(),
            pid,
            prepared_as: prepared_as.map(str::to_owned),
            user_name: None,
            application_name: None,
            state: None,
            since: Some(now - TimeDelta::minutes(minutes)),
        };
        let of = |writers: &[Writer]| of_writers(writers, "monitor", now);
        assert_eq!(of(&[]).status, Status::Ok);
        assert_eq!(of(&[writer(Some(5), None, 59)]).status, Status::Ok);
        assert_eq!(of(&[writer(None, Some("p"), 9)]).status, Status::Ok);
        let session = of(&[writer(Some(5), None, 90)]);
        assert_eq!(session.status, Status::Warning);
        assert!(
            session.message.contains("is open for 90 min; until it ends, its rows are not uploaded"),
            "{session:?}"
        );
        assert_eq!(session.hint.unwrap(), "select * from pg_stat_activity where pid = 5;");
        // An older session, whose limit is longer, does not hide a prepared transaction.
        let prepared = of(&[writer(Some(5), None, 30), writer(None, Some("it's"), 11)]);
        assert!(prepared.message.contains("is prepared for 11 min; until"), "{prepared:?}");
        assert_eq!(prepared.hint.unwrap(), "select * from pg_prepared_xacts where gid = 'it''s';");
        let two = of(&[writer(Some(5), None, 90), writer(None, Some("p"), 11)]);
        assert!(two.message.contains("open for 90 min, and 1 more is open for long"), "{two:?}");
        // Without pg_monitor, the age is not known.
        let unseen = of(&[Writer { since: None, ..writer(Some(5), None, 0) }, writer(Some(6), None, 1)]);
        assert_eq!(unseen.status, Status::Skipped);
        assert_eq!(unseen.hint.as_deref(), Some("as a superuser: grant pg_monitor to \"monitor\";"));
        assert!(unseen.message.ends_with("role monitor may not see for how long"), "{unseen:?}");
    }
}
