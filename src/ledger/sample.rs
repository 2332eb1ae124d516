//! A sample of the ledger: the newest rows of each entity, by the index that runs use.

use sqlx::AssertSqlSafe;

use super::{Ledger, LedgerError, Table, quote_array};

/// How many rows of each entity are in a sample, the newest ones.
pub const SAMPLED_ROWS: i64 = 1000;

/// The sampled rows of one entity, account and currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// The entity.
    pub entity_id: String,
    /// The account, as the ledger spells it.
    pub account: String,
    /// The currency, as the ledger spells it.
    pub currency: String,
    /// The number of rows.
    pub rows: i64,
    /// Rows whose balance is NULL, NaN or infinite.
    pub not_finite: i64,
    /// Rows whose balance has more digits than a double holds.
    pub beyond_double: i64,
    /// All balances are whole numbers.
    pub is_whole: bool,
    /// The most digits before the decimal point.
    pub whole_digits: i64,
    /// The most digits behind the decimal point.
    pub fraction_digits: i64,
    /// Rows with a time more than a day ahead of the database's clock.
    pub in_future: i64,
    /// Rows whose time is NULL, infinite, or before 1970.
    pub odd_times: i64,
}

type SampledRow = (String, String, String, i64, i64, i64, bool, i64, i64, i64, i64);

impl Ledger {
    /// Samples the newest rows of these entities.
    pub async fn sample(&self, entity_ids: &[String]) -> Result<Vec<Sampled>, LedgerError> {
        let sql = self.table.sample_sql(entity_ids);
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        let rows: Vec<SampledRow> = self.primary.retry(query).await?;
        let text = |hex: &str| {
            let bytes = hex::decode(hex).map_err(|_| LedgerError::Decode("not a name in hex"))?;
            Ok::<_, LedgerError>(String::from_utf8_lossy(&bytes).into_owned())
        };
        rows.into_iter()
            .map(|row| {
                let (entity_id, account, currency, rows, not_finite, beyond_double, ..) = &row;
                let (.., is_whole, whole_digits, fraction_digits, in_future, odd_times) = row;
                Ok(Sampled {
                    entity_id: entity_id.clone(),
                    account: text(account)?,
                    currency: text(currency)?,
                    rows: *rows,
                    not_finite: *not_finite,
                    beyond_double: *beyond_double,
                    is_whole,
                    whole_digits,
                    fraction_digits,
                    in_future,
                    odd_times,
                })
            })
            .collect()
    }
}

impl Table {
    /// Returns the query. A balance is finite if it is neither NaN nor an infinity, which `numeric` has since
    /// PostgreSQL 14. `float8` prints the fewest digits that tell a double from its neighbours, so a balance that is
    /// equal to them survives a double.
    fn sample_sql(&self, entity_ids: &[String]) -> String {
        let careful = self.careful();
        let Self { name, entity, xid, id, account, currency, balance, captured_at, .. } = &careful;
        let ids = quote_array(entity_ids.iter().map(|id| Some(id.as_str())));
        format!(
            "select e.id, s.account, s.currency, count(*),
                    count(*) filter (where f.finite is null),
                    count(*) filter (where abs(f.finite) < 1e300 and f.finite <> 0
                                       and (abs(f.finite) < 1e-300 or f.finite::float8::text::numeric <> f.finite)),
                    coalesce(bool_and(f.finite = trunc(f.finite)), false),
                    coalesce(max(length(trunc(abs(f.finite))::text)), 0)::bigint,
                    coalesce(max(scale(trim_scale(f.finite))), 0)::bigint,
                    count(*) filter (where s.captured_at > clock_timestamp() + interval '1 day'
                                       and isfinite(s.captured_at)),
                    count(*) filter (where s.captured_at is null or not isfinite(s.captured_at)
                                        or s.captured_at < '1970-01-01Z')
               from unnest({ids}) e (id)
              cross join lateral (
                    select coalesce(encode(elven_sync.utf8_or_bytes({account}::text), 'hex'), '') as account,
                           coalesce(encode(elven_sync.utf8_or_bytes({currency}::text), 'hex'), '') as currency,
                           {balance} as balance, {captured_at} as captured_at
                      from {name} t where {entity} = e.id order by {xid} desc, {id} desc limit {SAMPLED_ROWS}) s
              cross join lateral (
                    select case when s.balance::text not in ('NaN', 'Infinity', '-Infinity') then s.balance end
                           as finite) f
              group by 1, 2, 3 order by 1, 4 desc"
        )
    }
}
