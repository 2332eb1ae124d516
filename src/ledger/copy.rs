//! Reads rows with `COPY ... TO STDOUT`, the cheapest output format of PostgreSQL.

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection};

use super::row::ID_IS_NULL;
use super::{Decoder, Ledger, LedgerError, Row, Table};
use crate::database::{Database, within};
use crate::watermark;

/// Which query plans PostgreSQL may use to find the rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum PlanHint {
    /// Any plan.
    Any,
    /// Only a scan of the required index `(entity_id, change_xid, id)`, in its order.
    InOrder,
}

impl Ledger {
    /// Copies rows; `expected` is about how many. If a value of a row cannot be converted, copies them again with
    /// conversions that cannot fail ([`Ledger::careful`]).
    pub(super) async fn copy(
        &self,
        from: &Database,
        sql: impl Fn(&Table) -> String,
        expected: usize,
        way: PlanHint,
    ) -> Result<Vec<Row>, LedgerError> {
        match self.copy_by(from, sql(&self.table), expected, way).await {
            Err(problem) if problem.is_about_a_value() => {
                self.copy_by(from, sql(&self.table.careful()), expected, way).await
            }
            copied => copied,
        }
    }

    /// Copies rows; `expected` is about how many. If the connection is lost, copies again from the beginning.
    ///
    /// The copy runs in a task of its own, so that it ends even when its caller is dropped. An unfinished copy leaves
    /// its connection out of step: the rest of the copy would be read as the answer to the next statement.
    pub(super) async fn copy_by(
        &self,
        from: &Database,
        sql: String,
        expected: usize,
        way: PlanHint,
    ) -> Result<Vec<Row>, LedgerError> {
        let id_is_number = self.table.id_is_number();
        let copy = || async {
            let mut transaction = match way {
                PlanHint::Any => from.begin_reading().await?,
                PlanHint::InOrder => from.begin_reading_in_order().await?,
            };
            let sql = sql.clone();
            let copying = async move {
                let limit = transaction.limit();
                let mut rows = Vec::with_capacity(expected);
                let copied = copy_out(transaction.connection()?, &sql, id_is_number, &mut rows);
                within(limit, copied).await?;
                transaction.commit().await?;
                Ok(rows)
            };
            tokio::spawn(copying).await.unwrap_or(Err(LedgerError::Decode("the reader stopped")))
        };
        from.retry(copy).await.map_err(|problem| self.name_missing_id(problem))
    }

    pub(super) fn name_missing_id(&self, problem: LedgerError) -> LedgerError {
        match problem {
            LedgerError::Decode(ID_IS_NULL) => self.id_is_null(),
            other => other,
        }
    }

    fn id_is_null(&self) -> LedgerError {
        LedgerError::Shape(format!(
            "the ledger {} has rows whose id is NULL, and no cursor can point to such a row; hint: set their ids and \
             make the column NOT NULL",
            self.table.name()
        ))
    }

    /// Checks that no row of the cursor's transaction has a NULL id. Needed only where the catalogue does not
    /// guarantee that.
    pub(super) async fn check_ids(&self, entity_id: &str, after: watermark::Xid) -> Result<(), LedgerError> {
        let query = || {
            sqlx::query(AssertSqlSafe(self.table.without_id_sql()))
                .bind(entity_id)
                .bind(after.to_string())
                .fetch_optional(&self.primary)
        };
        let found = self.primary.retry(query).await?;
        if found.is_some() { Err(self.id_is_null()) } else { Ok(()) }
    }
}

pub(super) async fn copy_out(
    connection: &mut PgConnection,
    sql: &str,
    id_is_number: bool,
    rows: &mut Vec<Row>,
) -> Result<(), LedgerError> {
    let mut messages = connection.copy_out_raw(sql).await?;
    let mut decoder = Decoder::new(id_is_number);
    while let Some(message) = messages.try_next().await? {
        rows.extend(decoder.row(message)?);
    }
    Ok(())
}
