//! The names that the API knows, as it listed them last for each credential.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

use super::JournalError;
use super::storable_text::storable;
use crate::database::{Database, Transaction};
use crate::elven::{List, ListEntry};

/// A list that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredList {
    /// The credential with which it was read.
    pub credential: String,
    /// Which list it is.
    pub list: List,
    /// The number of its entries.
    pub entries: i64,
    /// When it was stored.
    pub fetched_at: DateTime<Utc>,
}

/// An entry of a stored list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownName {
    /// The credential with which the list was read.
    pub credential: String,
    /// The account id or the currency, as Elven spells it.
    pub id: String,
    /// Its name at Elven, for people.
    pub name: Option<String>,
}

impl StoredList {
    /// Returns all stored lists.
    pub async fn all(database: &Database) -> Result<Vec<Self>, JournalError> {
        let read = || {
            sqlx::query!(
                r#"select 'accounts' as "list!", credential as "credential!", count(*) as "entries!",
                          max(fetched_at) as "fetched_at!"
                     from elven_sync.known_accounts group by credential
                    union all
                   select 'currencies', credential, count(*), max(fetched_at)
                     from elven_sync.known_currencies group by credential"#
            )
            .fetch_all(database)
        };
        let rows = database.retry(read).await?;
        let list = |name: &str| if name == "accounts" { List::Accounts } else { List::Currencies };
        Ok(rows
            .into_iter()
            .map(|row| Self {
                credential: row.credential,
                list: list(&row.list),
                entries: row.entries,
                fetched_at: row.fetched_at,
            })
            .collect())
    }

    /// Stores a list of a credential in place of the list before, in one transaction. Returns the number of entries.
    /// An id with a character that the encoding of the database lacks is left out, because no row of the ledger can
    /// have it.
    pub async fn replace(
        database: &Database,
        credential: &str,
        list: List,
        entries: &[ListEntry],
    ) -> Result<usize, JournalError> {
        let replace = async || {
            let mut transaction = database.begin().await?;
            let stored = replace_in(&mut transaction, credential, list, entries).await?;
            transaction.commit().await?;
            Ok(stored)
        };
        Ok(database.retry(replace).await.map_err(|problem: sqlx::Error| problem)?)
    }
}

async fn replace_in(
    transaction: &mut Transaction,
    credential: &str,
    list: List,
    entries: &[ListEntry],
) -> Result<usize, sqlx::Error> {
    let mut ids: Vec<Option<String>> = entries.iter().map(|entry| Some(entry.id.clone())).collect();
    let mut names: Vec<Option<String>> = entries.iter().map(|entry| entry.name.clone()).collect();
    storable(&mut *transaction, [&mut ids, &mut names]).await?;
    let is_exact =
        |(entry, (id, _)): &(&ListEntry, (Option<String>, Option<String>))| id.as_ref() == Some(&entry.id);
    let exact = entries.iter().zip(ids.into_iter().zip(names)).filter(is_exact);
    let (ids, names): (Vec<String>, Vec<Option<String>>) =
        exact.map(|(entry, (_, name))| (entry.id.clone(), name)).unzip();
    clear(&mut *transaction, credential, list).await?;
    insert(&mut *transaction, credential, list, &ids, &names).await?;
    Ok(ids.len())
}

/// Deletes the list of a credential. The lock keeps another pull from inserting its list beside this one; readers are
/// not locked out.
async fn clear(transaction: &mut Transaction, credential: &str, list: List) -> Result<(), sqlx::Error> {
    match list {
        List::Accounts => {
            sqlx::query("lock table elven_sync.known_accounts in share row exclusive mode")
                .execute(&mut *transaction)
                .await?;
            sqlx::query!("delete from elven_sync.known_accounts where credential = $1", credential)
                .execute(transaction)
                .await?;
        }
        List::Currencies => {
            sqlx::query("lock table elven_sync.known_currencies in share row exclusive mode")
                .execute(&mut *transaction)
                .await?;
            sqlx::query!("delete from elven_sync.known_currencies where credential = $1", credential)
                .execute(transaction)
                .await?;
        }
    }
    Ok(())
}

async fn insert(
    executor: impl PgExecutor<'_>,
    credential: &str,
    list: List,
    ids: &[String],
    names: &[Option<String>],
) -> Result<(), sqlx::Error> {
    match list {
        List::Accounts => {
            sqlx::query!(
                "insert into elven_sync.known_accounts (credential, entity_account_id, name, fetched_at)
             select $1, e.id, e.name, now() from unnest($2::text[], $3::text[]) e (id, name)",
                credential,
                ids,
                names as &[Option<String>]
            )
            .execute(executor)
            .await?
        }
        List::Currencies => {
            sqlx::query!(
                "insert into elven_sync.known_currencies (credential, currency, name, fetched_at)
             select $1, e.id, e.name, now() from unnest($2::text[], $3::text[]) e (id, name)",
                credential,
                ids,
                names as &[Option<String>]
            )
            .execute(executor)
            .await?
        }
    };
    Ok(())
}

impl KnownName {
    /// Returns the entries of all stored lists of a kind, ordered by credential and id.
    pub async fn all(database: &Database, list: List) -> Result<Vec<Self>, JournalError> {
        let read = || async {
            match list {
                List::Accounts => {
                    sqlx::query_as!(
                        Self,
                        "select credential, entity_account_id as id, name from elven_sync.known_accounts
                          order by credential, entity_account_id collate \"C\""
                    )
                    .fetch_all(database.single_round_trip())
                    .await
                }
                List::Currencies => {
                    sqlx::query_as!(
                        Self,
                        "select credential, currency as id, name from elven_sync.known_currencies
                          order by credential, currency collate \"C\""
                    )
                    .fetch_all(database.single_round_trip())
                    .await
                }
            }
        };
        Ok(database.retry(read).await?)
    }

    /// Returns the names of a stored list of a credential. `None`: it is older than `age_max`, or there is none.
    pub(super) async fn recent(
        database: &Database,
        credential: &str,
        list: List,
        age_max: Duration,
    ) -> Result<Option<Vec<String>>, JournalError> {
        let age_s = age_max.as_secs_f64();
        let read = || async {
            match list {
                List::Accounts => {
                    sqlx::query_scalar!(
                        "select entity_account_id from elven_sync.known_accounts
                          where credential = $1 and fetched_at > clock_timestamp() - make_interval(secs => $2)",
                        credential,
                        age_s
                    )
                    .fetch_all(database)
                    .await
                }
                List::Currencies => {
                    sqlx::query_scalar!(
                        "select currency from elven_sync.known_currencies
                          where credential = $1 and fetched_at > clock_timestamp() - make_interval(secs => $2)",
                        credential,
                        age_s
                    )
                    .fetch_all(database)
                    .await
                }
            }
        };
        Ok(Some(database.retry(read).await?).filter(|names| !names.is_empty()))
    }
}
