//! `demo`: shows the connector at work on a scratch database and the sandbox.

use std::time::Instant;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::watch;
use url::Url;

use super::exit_code::SUCCEEDED;
use crate::admin::HealthReport;
use crate::config::{DatabaseSettings, Environment, Flags, Settings};
use crate::database::{self, Database};
use crate::journal::{self, Entity, RunStatus};
use crate::output::{self, line, lines};
use crate::sandbox::{self, Sandbox};
use crate::sync::{RunReport, Worker};

/// The entities with their time zones.
const ENTITIES: [(&str, &str); 4] = [
    ("acme-us", "America/New_York"),
    ("acme-eu", "Europe/Zurich"),
    ("acme-np", "Asia/Kathmandu"),
    ("acme-au", "Australia/Lord_Howe"),
];

/// A balance snapshot every 20 minutes for each of three accounts per entity, around the night of 3 November 2024, in
/// which the clocks of New York are put back.
const SEED: &str = "
    insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
    select entity_id, 'acct-' || entity_id || '-' || account, (array['BTC', 'ETH', 'USD'])[account],
           '2024-11-01 00:00:00Z'::timestamptz + n * interval '20 minutes' + account * interval '1 second',
           round((1000 + n * 1.37 + account / 7.0)::numeric, account * 6)
      from elven_sync.entities, generate_series(0, 299) n, generate_series(1, 3) account";

const LATE: &str = "
    insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
    values ('acme-eu', 'acct-late', 'BTC', '2024-11-02 12:00:00Z', 0.000000000000000001)";

const NEXT: &str = "
    insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
    values ('acme-eu', 'acct-next', 'BTC', '2024-11-02 12:05:00Z', 42)";

/// Account, instant and balance of one account around that night, as PostgreSQL prints them.
const SAMPLE: &str = "
    select entity_account_id, to_char(captured_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS\"Z\"'),
           trim_scale(balance)::text
      from ledger.balance_snapshots
     where entity_account_id = 'acct-acme-us-3'
       and captured_at >= '2024-11-03 04:59Z' and captured_at < '2024-11-03 07:10Z'
     order by captured_at";

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Keep the scratch database
    #[arg(long)]
    keep: bool,
}

pub(super) async fn run(options: Options, settings: Settings) -> anyhow::Result<u8> {
    let scratch = Scratch::create(settings.database_url()?).await?;
    let told = tokio::select! {
        told = tell(&scratch) => told,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if options.keep {
        lines(format_args!(
            "\nThe database `{}` was kept; `drop database {}` removes it.",
            scratch.name, scratch.name
        ));
    } else {
        scratch.drop().await?;
        if told.is_ok() {
            lines("\nThe scratch database was dropped; --keep keeps it.");
        }
    }
    told.map(|()| SUCCEEDED)
}

/// The database that the demo creates and drops.
struct Scratch {
    server: SecretString,
    url: SecretString,
    name: String,
}

impl Scratch {
    async fn create(server: &SecretString) -> anyhow::Result<Self> {
        let name =
            format!("elven_sync_demo_{}_{}", std::process::id(), chrono::Utc::now().timestamp_millis());
        let mut url = Url::parse(server.expose_secret())
            .ok()
            .context("DATABASE_URL is not a URL; hint: postgres://user:password@host/database")?;
        url.set_path(&name);
        let mut connection = PgConnection::connect_with(&database::options(server)?)
            .await
            .context("the database cannot be reached; hint: check DATABASE_URL")?;
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await.context(
            "a scratch database cannot be created; hint: use a role with CREATEDB, or `make demo`, which starts a \
             PostgreSQL of its own",
        )?;
        Ok(Self { server: server.clone(), url: SecretString::from(String::from(url)), name })
    }

    async fn drop(self) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect_with(&database::options(&self.server)?).await?;
        connection.execute(AssertSqlSafe(format!("drop database {} with (force)", self.name))).await?;
        Ok(())
    }
}

async fn tell(scratch: &Scratch) -> anyhow::Result<()> {
    let begun = Instant::now();
    let database = Database::connect(&scratch.url, 4, DatabaseSettings::default().reconnect_timeout).await?;
    journal::migrate(&database).await?;
    journal::migrate_ledger(&database).await?;
    for (entity_id, timezone) in ENTITIES {
        let entity = Entity {
            entity_id: entity_id.to_owned(),
            timezone: timezone.to_owned(),
            credential: entity_id.to_owned(),
            paused: false,
            source_id: None,
            freshness_s: Entity::FRESHNESS_S,
        };
        Entity::add(&database, &entity).await?;
    }
    let seeded = database.execute(|| SEED).await?.rows_affected();
    let sandbox = Sandbox::start(sandbox::Options {
        credentials: ENTITIES
            .map(|(id, _)| sandbox::Credential::new(id, &format!("{id}-key"), &format!("{id}-secret")))
            .into(),
        ..sandbox::Options::default()
    })
    .await?;
    line(format_args!(
        "A ledger of {seeded} balance snapshots of {} entities, and a local Elven API at {}.",
        ENTITIES.len(),
        sandbox.url()
    ));

    heading("1. A transaction inserts a row for acme-eu and stays open. elven-sync run");
    let mut slow = PgConnection::connect_with(&database::options(&scratch.url)?).await?;
    slow.execute("begin").await?;
    slow.execute(LATE).await?;
    database.execute(|| NEXT).await?;
    let first = sync(scratch, &sandbox).await?;
    output::run_report(&first, &[], false);

    heading("2. The late transaction commits, with a lower id than rows that were uploaded. elven-sync run");
    slow.execute("commit").await?;
    slow.close().await?;
    let second = sync(scratch, &sandbox).await?;
    output::run_report(&second, &[], false);
    if second.counters.rows_uploaded != 1 || first.counters.rows_read != i64::try_from(seeded)? + 1 {
        bail!("the late row was not uploaded exactly once; please report this");
    }
    line(
        "The late row was uploaded, and no row was sent twice. A watermark of ids or timestamps would have skipped it.",
    );

    heading("3. Instants in the ledger and wall-clock times at the API: the hour that New York has twice");
    lines(aligned_rows(&database, &sandbox).await?);

    heading("4. elven-sync status");
    let entities = journal::Health::list(&database).await?;
    output::health(&HealthReport { entities, ..HealthReport::default() }, false);

    heading("Where to look next");
    lines(
        "  select * from elven_sync.sync_health;                             the state of each entity\n  \
         select * from elven_sync.sync_errors where resolved_at is null;   open errors\n  \
         select * from elven_sync.sync_batches order by batch_id desc;     every batch, with the hash of its body\n  \
         elven-sync sandbox                                                the same API, for your own ledger",
    );
    lines(format_args!("\nThe demo took {:.1} s.", begun.elapsed().as_secs_f32()));
    database.close().await;
    sandbox.stop().await;
    Ok(())
}

fn heading(text: &str) {
    lines(format_args!("\n{text}\n"));
}

/// Runs once against the sandbox, as `elven-sync run` does with this configuration.
async fn sync(scratch: &Scratch, sandbox: &Sandbox) -> anyhow::Result<RunReport> {
    // At Elven a key belongs to one entity, so each entity has a credential of its own.
    let credentials = ENTITIES.into_iter().flat_map(|(id, _)| {
        let setting = |half: &str| format!("ELVEN_SYNC_CREDENTIALS__{}__{half}_ENV", id.to_uppercase());
        [
            (setting("KEY"), format!("{id}-key")),
            (setting("SECRET"), format!("{id}-secret")),
            (format!("{id}-key"), format!("{id}-key")),
            (format!("{id}-secret"), format!("{id}-secret")),
        ]
    });
    let environment: Environment = [
        ("DATABASE_URL", scratch.url.expose_secret()),
        ("ELVEN_API_URL", sandbox.url().as_str()),
        ("ELVEN_SYNC_CONFIG", "/dev/null"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into_iter()
    .chain(credentials)
    .collect();
    let settings = Settings::load(&Flags::default(), environment)?;
    let database = Database::connect(&scratch.url, 8, settings.database.reconnect_timeout).await?;
    let (_running, stop) = watch::channel(false);
    let report = Worker::open(settings, database.clone(), stop).await?.run(&[]).await?;
    database.close().await;
    if report.status != RunStatus::Succeeded {
        bail!("the run ended {}; please report this", report.status.as_ref());
    }
    Ok(report)
}

/// A table of rows around the clock change, each beside the record that the sandbox received for it.
async fn aligned_rows(database: &Database, sandbox: &Sandbox) -> anyhow::Result<comfy_table::Table> {
    let ledger: Vec<(String, String, String)> = sqlx::query_as(SAMPLE).fetch_all(database).await?;
    let received = sandbox.received();
    let rows = ledger.into_iter().map(|(account, captured_at, balance)| {
        // No two rows of an account have the same balance here, so the balance identifies the row.
        let record = received.iter().find(|r| r.entity_account_id == account && r.balance == balance);
        let datetime = record.map_or_else(|| "superseded".to_owned(), |r| r.datetime.clone());
        let number = record.map_or_else(String::new, |r| r.balance.clone());
        vec![captured_at, balance, "->".to_owned(), datetime, number]
    });
    Ok(output::table(&["captured_at", "balance", "", "datetime (New York)", "balance"], &[1, 4], rows))
}
