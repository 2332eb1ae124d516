//! Unnamed statements. A named statement stays on the server connection on which it was prepared. A proxy may give the
//! next transaction another server connection, or give this one to a client that uses the same names.

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Arguments, AssertSqlSafe, Describe, Either, Execute, Executor, Postgres, SqlStr};

use super::{Database, Transaction, within};

/// An unnamed statement with its bound values.
struct Unnamed(SqlStr, Option<PgArguments>);

impl Unnamed {
    fn of<'q>(mut query: impl Execute<'q, Postgres>) -> Result<Self, sqlx::Error> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        Ok(Self(query.sql(), arguments))
    }

    fn binds_nothing(&self) -> bool {
        self.1.as_ref().is_none_or(|arguments| arguments.len() == 0)
    }
}

impl Execute<'_, Postgres> for Unnamed {
    fn sql(self) -> SqlStr {
        self.0
    }

    fn statement(&self) -> Option<&PgStatement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        Ok(self.1.take())
    }

    fn persistent(&self) -> bool {
        false
    }
}

type Results = BoxStream<'static, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>;

impl Transaction {
    async fn results<'q>(
        &mut self,
        query: impl Execute<'q, Postgres> + 'q,
    ) -> Result<Vec<Either<PgQueryResult, PgRow>>, sqlx::Error> {
        let limit = self.limit();
        let query = Unnamed::of(query)?;
        let _under_way = self.under_way();
        within(limit, self.connection()?.fetch_many(query).try_collect()).await
    }
}

/// Returns the results of a statement as a stream. The rows of the journal are few; the rows of the ledger are copied.
fn streamed<'e>(
    results: impl Future<Output = Result<Vec<Either<PgQueryResult, PgRow>>, sqlx::Error>> + Send + 'e,
) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>> {
    let stream = |results: Vec<_>| -> Results { stream::iter(results).map(Ok).boxed() };
    results.map_ok(stream).try_flatten_stream().boxed()
}

fn first_row(results: Vec<Either<PgQueryResult, PgRow>>) -> Option<PgRow> {
    results.into_iter().find_map(Either::right)
}

impl<'c> Executor<'c> for &'c mut Transaction {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        streamed(self.results(query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.results(query).map_ok(first_row).boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        async move { self.connection()?.prepare_with(sql, parameters).await }.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        async move { self.connection()?.describe(sql).await }.boxed()
    }
}

/// Executes one reading statement in a transaction of its own.
impl<'c> Executor<'c> for &'c Database {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        streamed(self.read(query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.read(query).map_ok(first_row).boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        async move { self.begin_reading().await?.connection()?.prepare_with(sql, parameters).await }.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        async move { self.begin_reading().await?.connection()?.describe(sql).await }.boxed()
    }
}

/// Executes one reading statement in a message that also begins and ends its transaction: one round trip instead of
/// four.
///
/// It is used only for statements without bound values, because a value can be bound to a single statement only; other
/// statements take the four round trips. Its rows are returned as text, so it is used for texts, numbers and booleans:
/// the text of a timestamp may be out of the range that can be parsed.
#[derive(Clone, Copy, Debug)]
pub struct SingleRoundTrip<'a>(&'a Database);

impl<'c> Executor<'c> for SingleRoundTrip<'c> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        streamed(self.read(query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.read(query).map_ok(first_row).boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        async move { self.0.begin_reading().await?.connection()?.prepare_with(sql, parameters).await }.boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        async move { self.0.begin_reading().await?.connection()?.describe(sql).await }.boxed()
    }
}

impl SingleRoundTrip<'_> {
    async fn read<'q>(
        self,
        query: impl Execute<'q, Postgres> + 'q,
    ) -> Result<Vec<Either<PgQueryResult, PgRow>>, sqlx::Error> {
        let query = Unnamed::of(query)?;
        if !query.binds_nothing() {
            return self.0.read(query).await;
        }
        let limited = self.0.server_ends_after(self.0.read_max());
        let mut transaction = Transaction::of(self.0).await?;
        let renaming = transaction.renaming();
        let sql = format!("{renaming}{}; {limited} {}; commit", self.0.reading(), query.sql().as_str());
        let results = transaction.results(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        transaction.connection = None;
        Ok(results)
    }
}

impl Database {
    /// Returns an executor that reads in one message; see [`SingleRoundTrip`].
    pub fn single_round_trip(&self) -> SingleRoundTrip<'_> {
        SingleRoundTrip(self)
    }

    async fn read<'q>(
        &self,
        query: impl Execute<'q, Postgres> + 'q,
    ) -> Result<Vec<Either<PgQueryResult, PgRow>>, sqlx::Error> {
        let mut transaction = self.begin_reading().await?;
        let results = transaction.results(query).await?;
        transaction.commit().await?;
        Ok(results)
    }
}
