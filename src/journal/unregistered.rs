//! Errors of entities of the ledger that are not registered: one for each of the first hundred, and a sum.

use std::collections::HashSet;

use super::problem::record_each;
use super::{Journal, JournalError, Kind, Problem, registering};

/// The most unregistered entities that have an error of their own.
const LISTED_MAX: usize = 100;
/// `sync_errors.entity_id` of the error that sums up the others. No entity with rows of its own error has this id.
const SUM: &str = "*";
/// How many entities the sum names.
const NAMED_MAX: usize = 3;

/// The registered entities, and those that are not.
#[derive(Debug, Default)]
pub struct Registration {
    /// The registered entities.
    pub registered: Vec<String>,
    /// The entities that have an open error because they are not registered.
    pub open: Vec<String>,
}

impl Journal {
    /// Returns the registered entities, and the open errors of entities that are not, in one statement.
    pub async fn registration(&self) -> Result<Registration, JournalError> {
        let read = || {
            sqlx::query!(
                r#"select entity_id as "entity_id!", true as "is_registered!" from elven_sync.entities
                    union all
                   select entity_id, false from elven_sync.sync_errors
                    where kind = 'unregistered_entity' and resolved_at is null"#
            )
            .fetch_all(self.database.single_round_trip())
        };
        let mut registration = Registration::default();
        for row in self.database.retry(read).await? {
            let ids = if row.is_registered { &mut registration.registered } else { &mut registration.open };
            ids.push(row.entity_id);
        }
        Ok(registration)
    }

    /// Records that rows of these entities are pending because they are not registered, and resolves the errors of
    /// entities that have no such rows any more. `open`: the entities that have an open error. `ignored`: the rows are
    /// left out on request, so the row of the run says how many entities that are, and no error stays open.
    pub async fn note_unregistered(
        &self,
        run_id: i64,
        entity_ids: &[String],
        open: &[String],
        ignored: bool,
    ) -> Result<(), JournalError> {
        if open.is_empty() && entity_ids.is_empty() {
            return Ok(());
        }
        let listed = if ignored { Vec::new() } else { listed(entity_ids, open) };
        let problems = problems(entity_ids, &listed, ignored);
        let kept: Vec<String> = problems.iter().map(|(entity_id, _)| (*entity_id).to_owned()).collect();
        let each: Vec<(&str, &Problem)> =
            problems.iter().map(|(entity_id, problem)| (*entity_id, problem)).collect();
        let note = || async {
            let mut transaction = self.database.begin().await?;
            record_each(&mut transaction, run_id, &each).await?;
            sqlx::query!(
                "update elven_sync.sync_errors
                    set resolved_at = clock_timestamp(),
                        resolution = case when $3 then '[ledger] ignore_unregistered leaves the rows out'
                                          when entity_id = any ($2) then 'counted in the error of entity *'
                                          else 'the ledger has no such rows any more' end
                  where kind = 'unregistered_entity' and resolved_at is null and entity_id <> all ($1)",
                &kept,
                entity_ids,
                ignored
            )
            .execute(&mut transaction)
            .await?;
            if ignored {
                let left_out = i32::try_from(entity_ids.len()).unwrap_or(i32::MAX);
                sqlx::query!(
                    "update elven_sync.sync_runs set entities_left_out = $2 where run_id = $1",
                    run_id,
                    left_out
                )
                .execute(&mut transaction)
                .await?;
            }
            transaction.commit().await?;
            Ok(())
        };
        self.database.retry(note).await
    }
}

/// Returns the entities that have an error of their own, those first that have one already: an entity that is found
/// later does not take the place of another one.
fn listed<'a>(entity_ids: &'a [String], open: &[String]) -> Vec<&'a str> {
    let open: HashSet<&str> = open.iter().map(String::as_str).collect();
    let own = || entity_ids.iter().map(String::as_str).filter(|entity_id| *entity_id != SUM);
    let before = own().filter(|entity_id| open.contains(entity_id));
    let new = own().filter(|entity_id| !open.contains(entity_id));
    before.chain(new).take(LISTED_MAX).collect()
}

/// Returns the errors: one for each listed entity, and one that sums up the rest.
fn problems<'a>(entity_ids: &'a [String], listed: &[&'a str], ignored: bool) -> Vec<(&'a str, Problem)> {
    if ignored {
        return Vec::new();
    }
    let of_kind = |message: String| Problem::of_lane(Kind::UnregisteredEntity, message);
    let mut problems: Vec<(&str, Problem)> =
        listed.iter().map(|entity_id| (*entity_id, of_kind(message(entity_id)))).collect();
    let is_listed: HashSet<&str> = listed.iter().copied().collect();
    let rest: Vec<&str> =
        entity_ids.iter().map(String::as_str).filter(|entity_id| !is_listed.contains(entity_id)).collect();
    if let Some(first) = rest.first() {
        let named: Vec<String> =
            rest.iter().take(NAMED_MAX).map(|entity_id| format!("`{entity_id}`")).collect();
        problems.push((
            SUM,
            of_kind(format!(
                "the ledger has rows of {} more entities that are not registered, e.g. {}; they stay pending; hint: \
                 {}, or leave out all entities that are not registered with [ledger] ignore_unregistered = true",
                rest.len(),
                named.join(", "),
                registering(first)
            )),
        ));
    }
    problems
}

/// Returns the message for an entity that is not registered.
fn message(entity_id: &str) -> String {
    if entity_id.trim().is_empty() {
        return "the ledger has rows without an entity, which stay pending; hint: fill their entity_id"
            .to_owned();
    }
    format!(
        "the ledger has rows of entity `{entity_id}`, which is not registered; they stay pending; hint: {}",
        registering(entity_id)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|number| format!("e{number:04}")).collect()
    }

    #[test]
    fn entities_beyond_the_first_hundred_are_one_sum() {
        let all = ids(0..250);
        let problems = problems(&all, &listed(&all, &[]), false);
        assert_eq!(problems.len(), 101);
        assert_eq!((problems[0].0, problems[99].0, problems[100].0), ("e0000", "e0099", SUM));
        assert!(problems[100].1.message.contains("rows of 150 more entities"), "{}", problems[100].1.message);
    }

    #[test]
    fn entity_that_has_an_error_keeps_it() {
        let all = ids(0..200);
        let open = ids(100..200);
        assert_eq!(listed(&all, &open), open.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
