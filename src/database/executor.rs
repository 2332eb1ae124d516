//! Statements without names: a named one stays on the server connection that it was prepared on, and a proxy
//! may give the next transaction another one, or this one to somebody who uses the same names.

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Arguments, AssertSqlSafe, Describe, Either, Execute, Executor, Postgres, SqlStr};

use super::transaction::BEGIN_READING;
use super::{Database, Transaction, within};

/// A statement that is not kept, with what is bound to it.
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
        within(limit, self.connection()?.fetch_many(query).try_collect()).await
    }
}

/// What came of a statement as a stream. The rows of the journal are few: those of the ledger are copied.
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

/// One statement that reads, in a transaction of its own.
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

/// One statement that reads, in a message that begins and ends its transaction as well: one round trip in place of four.
///
/// Only for what binds nothing, since a value can be bound to one statement alone; anything else goes the long way. Its
/// rows come as text, so it is for texts, numbers and truths: a point in time may lie where its text is not understood.
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
        let sql = format!("{BEGIN_READING}; {limited} {}; commit", query.sql().as_str());
        let mut transaction = Transaction::of(self.0).await?;
        let results = transaction.results(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        transaction.connection = None;
        Ok(results)
    }
}

impl Database {
    /// Reads in one message; see [`SingleRoundTrip`].
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
