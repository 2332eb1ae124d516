//! Whether tables of the ledger were attached or rewritten since a run saw them: neither fires the trigger that stamps
//! rows.

use std::collections::BTreeMap;

use super::finding::{Finding, Outcome, Unmade, age, named};
use super::surroundings::Surroundings;
use crate::ledger::LedgerFile;
use crate::text::quoted_sql;

/// For how long a change is reported after a run has recorded it, in seconds.
const REPORTED_S: i64 = 7 * 86_400;

/// No table of the ledger was attached or rewritten lately.
pub(super) async fn files(surroundings: &Surroundings) -> Outcome {
    let (ledger, facts) = (surroundings.permitted().await?, surroundings.journal().await?);
    let Some(recorded) = &facts.files else {
        return Err(Unmade::NotApplicable(
            "no run has recorded the tables of the ledger and their files".to_owned(),
        ));
    };
    let now = ledger.files().await?;
    if let Some(changes) = changes(&recorded.value.tables, &now) {
        return Ok(changed(&format!("since the last run {changes}")));
    }
    if let Some(before) = recorded.value.before.as_ref().filter(|_| recorded.since_s < REPORTED_S)
        && let Some(changes) = changes(&before.tables, &recorded.value.tables)
    {
        return Ok(changed(&format!("{} ago a run saw that {changes}", age(recorded.since_s))));
    }
    Ok(Finding::ok(match now.len() {
        1 => "the table of the ledger was not rewritten lately".to_owned(),
        tables => format!("none of the {tables} tables of the ledger was attached or rewritten lately"),
    }))
}

fn changed(what: &str) -> Finding {
    Finding::warning(
        format!(
            "{what}; rows that come with an attached table, and values that a rewrite computes, are not stamped and \
             would not be sent"
        ),
        "elven-sync verify; then stamp such rows, docs/ledgers.md#what-bypasses-the-trigger",
    )
}

/// Returns what was attached and what was rewritten, in words. `None`: nothing was. Detached tables do no harm, and a
/// partitioned table has no file.
fn changes(before: &[LedgerFile], now: &[LedgerFile]) -> Option<String> {
    let before: BTreeMap<i64, &LedgerFile> = before.iter().map(|table| (table.oid, table)).collect();
    let shown = |table: &LedgerFile| quoted_sql(&table.table);
    let attached: Vec<String> =
        now.iter().filter(|table| !before.contains_key(&table.oid)).map(shown).collect();
    let is_rewritten = |table: &&LedgerFile| before.get(&table.oid).is_some_and(|was| was.file != table.file);
    let rewritten: Vec<String> = now.iter().filter(is_rewritten).map(shown).collect();
    let mut said = Vec::new();
    if !attached.is_empty() {
        said.push(format!("{} joined the ledger (created or attached)", named(attached)));
    }
    if !rewritten.is_empty() {
        said.push(format!(
            "{} got a new file (ALTER COLUMN ... USING, but also VACUUM FULL, CLUSTER or TRUNCATE)",
            named(rewritten)
        ));
    }
    (!said.is_empty()).then(|| said.join(", and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, oid: i64, file: Option<i64>) -> LedgerFile {
        LedgerFile { table: name.to_owned(), oid, file }
    }

    #[test]
    fn attached_and_rewritten_tables_are_changes_and_detached_and_renamed_ones_are_not() {
        let before = [table("l.t", 1, None), table("l.a", 2, Some(20)), table("l.b", 3, Some(30))];
        assert_eq!(changes(&before, &before), None);
        assert_eq!(changes(&before, &[table("l.t", 1, None), table("l.c", 2, Some(20))]), None);
        let said = changes(&before, &[table("l.a", 2, Some(21)), table("l.d", 4, Some(40))]).unwrap();
        assert!(
            said.starts_with("'l.d' joined the ledger (created or attached), and 'l.a' got a new file"),
            "{said}"
        );
    }
}
