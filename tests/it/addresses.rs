//! Addresses of a database: the forms that psql accepts, several servers, certificates, and passwords that change.

use std::time::Duration;

use elven_sync::database::{Database, Transient};
use secrecy::SecretString;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

use crate::cluster::Cluster;
use crate::support::{TestEnv, assert_stays, eventually, output_of, scene_with_three_batches, stderr};

/// The parts of the address of the test server.
struct Parts {
    user: String,
    host: String,
    port: u16,
    database: String,
}

impl Parts {
    fn of(scene: &TestEnv) -> Self {
        let url = Url::parse(&scene.url).unwrap();
        Self {
            user: url.username().to_owned(),
            host: url.host_str().unwrap().to_owned(),
            port: url.port().unwrap_or(5432),
            database: url.path().trim_start_matches('/').to_owned(),
        }
    }
}

#[sqlx::test(migrations = false)]
async fn each_spelling_of_an_address_leads_to_the_database(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let Parts { user, host, port, database } = Parts::of(&scene);
    let mut spellings = vec![
        format!("postgresql://{user}@{host}:{port}/{database}"),
        format!("postgres://{host}:{port}/{database}?user={user}"),
        format!("postgres:///?host={host}&port={port}&user={user}&dbname={database}"),
        format!("host={host} port={port} user={user} dbname='{database}'"),
        // Nobody listens on port 1.
        format!("postgres://{user}@{host}:1,{host}:{port}/{database}"),
        format!("postgres://{user}@{host}:1,{host}:{port}/{database}?target_session_attrs=read-write"),
        format!("postgres://{user}@{host}:{port},{host}:1/{database}?target_session_attrs=primary"),
        format!(
            "postgres:///{database}?host={host},{host}&port=1,{port}&user={user}&load_balance_hosts=random"
        ),
        format!("postgres://{user}@{host}:{port}/{database}?target_session_attrs=prefer-standby"),
        format!("postgres://{user}@{host}:{port}/{database}?hostaddr=127.0.0.1&channel_binding=prefer"),
    ];
    let folder = scene.text("select split_part(current_setting('unix_socket_directories'), ',', 1)").await;
    if std::path::Path::new(&folder).join(format!(".s.PGSQL.{port}")).exists() {
        let encoded = folder.replace('/', "%2F");
        spellings.extend([
            format!("postgres://{user}@{encoded}:{port}/{database}"),
            format!("postgres://{user}@/{database}?host={folder}&port={port}"),
            format!("postgresql:///{database}?host={encoded}&port={port}&user={user}&sslmode=require"),
            format!("host={folder} port={port} user={user} dbname={database}"),
        ]);
    }
    for spelling in spellings {
        scene.set("DATABASE_URL", &spelling);
        let output = scene.output(&["entity", "list"]).await;
        assert_eq!(output.status.code(), Some(0), "{spelling}: {}", stderr(&output));
    }
    scene.set(
        "DATABASE_URL",
        &format!("postgres://{user}@{host}:{port}/{database}?target_session_attrs=standby"),
    );
    let said = output_of(&scene, 1, &["entity", "list"]).await;
    assert!(said.contains("target_session_attrs"), "{said}");
    scene.set("DATABASE_URL", &format!("postgres://{user}@{host}:{port}/{database}?channel_binding=require"));
    let said = output_of(&scene, 1, &["entity", "list"]).await;
    assert!(said.contains("channel_binding") && said.contains("hint: remove it"), "{said}");
}

/// Each certificate, and what is said when it is not accepted; `None`: it is accepted.
const CERTIFICATES: [(&str, &str, &str, &str, Option<&str>); 9] = [
    ("good", include_str!("../data/tls/good.pem"), include_str!("../data/tls/good.key"), "verify-full", None),
    ("good", include_str!("../data/tls/good.pem"), include_str!("../data/tls/good.key"), "verify-ca", None),
    (
        "elsewhere",
        include_str!("../data/tls/elsewhere.pem"),
        include_str!("../data/tls/elsewhere.key"),
        "verify-full",
        Some("for another name"),
    ),
    (
        "elsewhere",
        include_str!("../data/tls/elsewhere.pem"),
        include_str!("../data/tls/elsewhere.key"),
        "verify-ca",
        None,
    ),
    (
        "self-signed",
        include_str!("../data/tls/self-signed.pem"),
        include_str!("../data/tls/self-signed.key"),
        "verify-full",
        Some("self-signed"),
    ),
    (
        "self-signed",
        include_str!("../data/tls/self-signed.pem"),
        include_str!("../data/tls/self-signed.key"),
        "no-verify",
        None,
    ),
    (
        "version1",
        include_str!("../data/tls/version1.pem"),
        include_str!("../data/tls/version1.key"),
        "verify-ca",
        Some("X.509 version 1"),
    ),
    (
        "version1",
        include_str!("../data/tls/version1.pem"),
        include_str!("../data/tls/version1.key"),
        "no-verify",
        Some("X.509 version 1"),
    ),
    (
        "p521",
        include_str!("../data/tls/p521.pem"),
        include_str!("../data/tls/p521.key"),
        "verify-full",
        Some("P-521"),
    ),
];

#[sqlx::test(migrations = false)]
async fn a_certificate_is_accepted_or_the_message_says_what_to_do(pool: PgPool) {
    let cluster = Cluster::new(&pool).await;
    let mut scene = TestEnv::at(&cluster.url("ledger")).await;
    let folder = tempfile::tempdir().unwrap();
    for (name, certificate, key, mode, said) in CERTIFICATES {
        cluster.write("server.crt", certificate).await;
        cluster.write("server.key", key).await;
        cluster.sql("alter system set ssl = on").await;
        cluster.sql("select pg_reload_conf()").await;
        let root = if name.starts_with("self") || name.starts_with("version1") {
            certificate
        } else {
            include_str!("../data/tls/ca.pem")
        };
        let file = folder.path().join(format!("{name}.pem"));
        std::fs::write(&file, root).unwrap();
        let tls = match mode {
            "no-verify" => "sslmode=require".to_owned(),
            mode => format!("sslmode={mode}&sslrootcert={}", file.display()),
        };
        scene.set("DATABASE_URL", &format!("{}?{tls}", cluster.url("ledger")));
        // The server reads its certificate some time after the request.
        let mut last = String::new();
        eventually(&format!("{name} {mode}"), async || {
            let output = scene.output(&["entity", "list"]).await;
            last = stderr(&output);
            match said {
                None => output.status.code() == Some(0),
                Some(said) => last.contains(said) && last.contains("hint: "),
            }
        })
        .await;
    }
}

/// A login whose password is checked, on a cluster of its own.
async fn with_password(pool: &PgPool) -> (Cluster, TestEnv) {
    let cluster = Cluster::new(pool).await;
    let mut scene = TestEnv::at(&cluster.url("ledger")).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 6) n").await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    cluster.sql("create role token superuser login password 'pw-one'").await;
    cluster
        .write("pg_hba.conf", "host all token 127.0.0.1/32 password\nhost all all 127.0.0.1/32 trust")
        .await;
    cluster.sql("select pg_reload_conf()").await;
    (cluster, scene)
}

const DISCONNECT: &str =
    "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'token'";

/// The server has the new password a little earlier than the file: the run waits for it.
async fn password_changes_during_a_run(cluster: &Cluster, scene: &TestEnv, write: impl Fn(&str)) {
    write("pw-one");
    let (child, gate) = scene.held_run().await;
    cluster.sql("alter role token password 'pw-two'").await;
    cluster.sql(DISCONNECT).await;
    gate.open();
    let recorded = "select count(*)::text from elven_sync.sync_batches where status = 'accepted'";
    let waits = async || cluster_text(cluster, recorded).await == "0";
    assert_stays("the run has the old password", Duration::from_millis(500), waits).await;
    write("pw-two");
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("pw-"), "{}", stderr(&output));
    assert_eq!(cluster_text(cluster, "select rows_uploaded::text from elven_sync.sync_state").await, "6");
}

async fn cluster_text(cluster: &Cluster, sql: &'static str) -> String {
    let mut connection = PgConnection::connect(&cluster.url("ledger")).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn url_is_read_again_from_its_file_when_the_password_changes(pool: PgPool) {
    let (cluster, mut scene) = with_password(&pool).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    scene.unset("DATABASE_URL");
    scene.set("DATABASE_URL_FILE", file.path().to_str().unwrap());
    let address = cluster.url("ledger");
    let write = |password: &str| {
        let with = address.replace("postgres@", &format!("token:{password}@"));
        std::fs::write(file.path(), format!("{with}\n")).unwrap();
    };
    password_changes_during_a_run(&cluster, &scene, write).await;
}

#[sqlx::test(migrations = false)]
async fn password_command_is_run_again_when_the_password_changes(pool: PgPool) {
    let (cluster, mut scene) = with_password(&pool).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    scene.set("DATABASE_URL", &cluster.url("ledger").replace("postgres@", "token@"));
    let command = format!(
        "test \"$PGUSER $PGHOST $PGDATABASE\" = 'token 127.0.0.1 ledger' && cat {}",
        file.path().display()
    );
    scene.set("ELVEN_SYNC_DATABASE__PASSWORD_COMMAND", &command);
    let write = |password: &str| std::fs::write(file.path(), format!("{password}\n")).unwrap();
    password_changes_during_a_run(&cluster, &scene, write).await;
    scene.set("ELVEN_SYNC_DATABASE__PASSWORD_COMMAND", "echo pw-three; exit 7");
    let said = output_of(&scene, 1, &["status"]).await;
    assert!(said.contains("password_command failed (exit status: 7)") && !said.contains("pw-"), "{said}");
}

/// The words of poolers whose pool is full.
#[tokio::test]
async fn full_pooler_is_waited_for() {
    for (code, message, waits) in [
        (
            "XX000",
            "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
            true,
        ),
        ("XX000", "Max client connections reached", true),
        ("08P01", "no more connections allowed (max_client_conn)", true),
        ("53300", "sorry, too many clients already", true),
        ("XX000", "Tenant or user not found", false),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("postgres://u@{}/d?sslmode=disable", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let length = client.read_u32().await.unwrap() as usize;
            client.read_exact(&mut vec![0; length - 4]).await.unwrap();
            let fields = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
            let mut answer = vec![b'E'];
            answer.extend(u32::try_from(fields.len() + 4).unwrap().to_be_bytes());
            answer.extend(fields.as_bytes());
            client.write_all(&answer).await.unwrap();
        });
        let problem =
            Database::connect(&SecretString::from(url), 1, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(problem.is_transient(), waits, "{code} {message}: {problem}");
    }
}

/// Some notices of PostgreSQL come with each connection or transaction.
#[sqlx::test(migrations = false)]
async fn notice_of_the_server_is_logged_once_per_run(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    scene
        .sql(
            "create function warn() returns trigger language plpgsql as $$ begin
                 raise warning 'database \"ledger\" has a collation version mismatch'; return null; end $$;
             create trigger warn after insert on elven_sync.sync_commits for each row execute function warn()",
        )
        .await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("collation version mismatch").count(), 1, "{}", stderr(&output));
}

#[sqlx::test(migrations = false)]
async fn nothing_that_holds_a_connection_shows_a_password(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let Parts { user, host, port, database } = Parts::of(&scene);
    let url = format!("postgres://{user}:pw-5d2e@{host}:{port}/{database}");
    scene.set("DATABASE_URL", &url);
    scene.set("ELVEN_SYNC_DATABASE__PASSWORD_COMMAND", "echo pw-5d2e");
    let settings = scene.settings(&[]);
    let database = scene.database(2).await;
    let transaction = database.begin_reading().await.unwrap();
    let session = database.session().await.unwrap();
    let shown =
        format!("{settings:?} {database:?} {transaction:?} {session:?} {:?}", database.single_round_trip());
    assert!(!shown.contains("5d2e"), "{shown}");
    transaction.rollback().await.unwrap();
    session.close().await.unwrap();
}

/// A statement that takes longer than a second contains values of the ledger.
#[sqlx::test(migrations = false)]
async fn slow_statement_is_not_logged(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    scene
        .sql(
            "create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(1.1); return new; end $$;
             create trigger slow before insert on elven_sync.sync_runs for each row execute function slow()",
        )
        .await;
    for level in ["warn", "trace"] {
        let output = scene.command(&["run"]).env("ELVEN_SYNC_LOG", level).output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(!stderr(&output).contains("insert into"), "{}", stderr(&output));
    }
}

#[sqlx::test(migrations = false)]
async fn commands_that_send_nothing_need_no_certificates(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_API_URL", "https://localhost:1");
    scene.set("SSL_CERT_FILE", "/nonexistent/certificates.pem");
    scene.set("SSL_CERT_DIR", "/nonexistent");
    for arguments in [
        &["status"][..],
        &["verify"],
        &["entity", "rewind", "acme", "--yes"],
        &["entity", "rebind", "acme"],
        &["run", "--dry-run"],
    ] {
        output_of(&scene, 0, arguments).await;
    }
    let said = output_of(&scene, 1, &["run"]).await;
    assert!(said.contains("the HTTP client cannot be set up"), "{said}");
}
