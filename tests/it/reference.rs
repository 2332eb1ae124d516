//! `reference`: what the API knows, and the names of the ledger beside it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use elven_sync::sandbox::{Answers, Options};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::messages::on_a_terminal;
use crate::stub::{Stub, StubRequest, StubResponse, respond};
use crate::support::{TestEnv, eventually, fault_rules, output_of, stderr, stdout};

const PULL: [&str; 2] = ["reference", "pull"];

/// The accounts that are stored, of all credentials.
const ACCOUNTS: &str =
    "select string_agg(concat_ws(' ', credential, entity_account_id, name), ',' order by credential, entity_account_id)
       from elven_sync.known_accounts";

/// Everything that is stored of the lists, with its times.
const STORED: &str = "
    select concat_ws(' ', (select string_agg(a::text, ',' order by a::text) from elven_sync.known_accounts a),
                          (select string_agg(c::text, ',' order by c::text) from elven_sync.known_currencies c))";

/// How an API answers.
type Faulty = Box<dyn Fn(&StubRequest) -> StubResponse + Send + Sync>;

/// A sandbox that knows accounts with these names.
async fn knowing(pool: PgPool, accounts: impl IntoIterator<Item = String>, answers: Answers) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    let accounts = Some(BTreeSet::from_iter(accounts));
    let other =
        TestEnv::connect_like(scene.pool.clone(), Options { accounts, answers, ..Options::default() });
    let scene = other.await;
    scene.entity("acme", "UTC").await;
    scene
}

/// An answer with a page of a list.
fn page(total: u64, entries: &[Value]) -> StubResponse {
    StubResponse { body: json!({"total": total, "list": entries}).to_string(), ..respond(200) }
}

fn account(id: &str) -> Value {
    json!({"entityAccountId": id, "name": format!("Account {id}")})
}

fn bitcoin() -> StubResponse {
    page(1, &[json!({"currency": "BTC", "name": "Bitcoin", "type": "CRYPTO"})])
}

/// An API that knows one currency, and answers the list of accounts in a way of its own.
async fn api_with_accounts(
    scene: &mut TestEnv,
    accounts: impl Fn(&StubRequest) -> StubResponse + Send + Sync + 'static,
) -> Stub {
    Stub::of(scene, move |asked| if asked.path.contains("/currency") { bitcoin() } else { accounts(asked) })
        .await
}

#[sqlx::test(migrations = false)]
async fn whole_lists_are_stored_from_every_envelope(pool: PgPool) {
    let names = || (0..250).map(|number| format!("a{number:03}"));
    let mut scene = knowing(pool, names(), Answers::Bare).await;
    for answers in [Answers::Bare, Answers::Wrapped, Answers::WrappedTrue] {
        scene.sql("truncate elven_sync.known_accounts, elven_sync.known_currencies").await;
        let options = Options { accounts: Some(names().collect()), answers, ..Options::default() };
        scene = TestEnv::connect_like(scene.pool.clone(), options).await;
        let text = output_of(&scene, 0, &PULL).await;
        assert!(text.contains("credential `default`: 250 accounts and "), "{answers:?}: {text}");
        let ids = "select string_agg(entity_account_id, ',' order by entity_account_id) from elven_sync.known_accounts";
        assert_eq!(scene.text(ids).await, names().collect::<Vec<_>>().join(","));
        let bitcoin =
            "select concat(currency, ' ', name) from elven_sync.known_currencies where currency = 'BTC'";
        assert_eq!(scene.text(bitcoin).await, "BTC Bitcoin");
        let paths: Vec<String> = scene.sandbox.requests().into_iter().map(|request| request.path).collect();
        assert_eq!(paths[..3], [1, 2, 3].map(|page| format!("/open/v3/entityAccount?page={page}&limit=100")));
        assert_eq!(paths.len(), 6, "{paths:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn lists_are_read_for_each_credential_that_registered_entities_use(pool: PgPool) {
    let mut scene = knowing(pool, ["a".to_owned()], Answers::Bare).await;
    scene.set("SECOND_KEY", "key-2");
    scene.set("SECOND_SECRET", "secret-2");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_ENV", "SECOND_KEY");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "SECOND_SECRET");
    output_of(&scene, 0, &PULL).await;
    assert_eq!(scene.text(ACCOUNTS).await, "default a a");
    for entity in ["beta", "gamma"] {
        output_of(&scene, 0, &["entity", "add", entity, "--timezone", "UTC", "--credential", "second"]).await;
    }
    let text = output_of(&scene, 0, &PULL).await;
    assert_eq!(text.lines().count(), 2, "{text}");
    assert_eq!(scene.text(ACCOUNTS).await, "default a a,second a a");
}

#[sqlx::test(migrations = false)]
async fn pages_are_requested_one_at_a_time_and_at_the_configured_rate(pool: PgPool) {
    let mut scene = knowing(pool, (0..350).map(|number| number.to_string()), Answers::Bare).await;
    scene.sandbox.set_rules(fault_rules(&["slow=150ms"]));
    let gaps = |scene: &TestEnv| {
        let at: Vec<_> = scene.sandbox.requests().into_iter().map(|request| request.at).collect();
        at.windows(2).map(|pair| (pair[1] - pair[0]).num_milliseconds()).collect::<Vec<_>>()
    };
    output_of(&scene, 0, &PULL).await;
    assert_eq!(gaps(&scene).len(), 6, "four pages and three");
    assert!(gaps(&scene).iter().all(|gap| *gap >= 145), "one at a time: {:?}", gaps(&scene));
    scene.sandbox.set_rules(Vec::new());
    scene.set("ELVEN_SYNC_API__REQUESTS_PER_SECOND", "5");
    output_of(&scene, 0, &PULL).await;
    assert!(gaps(&scene)[7..].iter().all(|gap| *gap >= 180), "5 a second: {:?}", gaps(&scene));
}

#[sqlx::test(migrations = false)]
async fn a_pull_waits_as_long_as_the_api_asks(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let requests = AtomicU64::new(0);
    let throttled =
        |wait: &str| StubResponse { headers: vec![("retry-after", wait.to_owned())], ..respond(429) };
    let stub = api_with_accounts(&mut scene, move |_| {
        if requests.fetch_add(1, Ordering::Relaxed) == 0 { throttled("1") } else { page(1, &[account("a")]) }
    })
    .await;
    let begun = Instant::now();
    output_of(&scene, 0, &PULL).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(stub.requests().len(), 3);
    // Longer than the longest back-off: no other request is sent, for the other list neither.
    let before = scene.text(STORED).await;
    stub.answer(move |_| throttled("120"));
    let text = output_of(&scene, 1, &PULL).await;
    assert_eq!(text.matches("rate limited by the API").count(), 1, "{text}");
    assert!(text.contains("accounts and currencies not pulled, the lists stored before are kept"), "{text}");
    assert_eq!(stub.requests().len(), 4);
    assert_eq!(scene.text(STORED).await, before);
    // A pause that a run was asked for holds here, too.
    scene.sql("insert into elven_sync.sync_state (entity_id) values ('acme') on conflict do nothing").await;
    scene.sql("update elven_sync.sync_state set not_before = now() + interval '1 hour'").await;
    let text = output_of(&scene, 1, &PULL).await;
    assert!(text.contains("rate limited by the API") && text.contains("; not before 20"), "{text}");
    assert_eq!(stub.requests().len(), 4);
}

#[sqlx::test(migrations = false)]
async fn a_list_that_does_not_count_leaves_the_stored_one_untouched(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    let stub = api_with_accounts(&mut scene, |_| page(1, &[account("a")])).await;
    output_of(&scene, 0, &PULL).await;
    let accounts = "select string_agg(a::text, ',') from elven_sync.known_accounts a";
    let before = scene.text(accounts).await;
    let is_first = |asked: &StubRequest| asked.path.contains("page=1&");
    let html = || StubResponse { body: "<html>Sign in</html>".to_owned(), ..respond(200) };
    let faults: Vec<(&str, Faulty)> = vec![
        ("the list is empty", Box::new(|_| page(0, &[]))),
        (
            "the total of the list changed from 2 to 3",
            Box::new(move |asked| page(if is_first(asked) { 2 } else { 3 }, &[account("x")])),
        ),
        ("the list ends after 1 of 2 distinct entries", Box::new(|_| page(2, &[account("x")]))),
        ("an entry of the list differs", Box::new(|_| page(1, &[json!({"name": "x"})]))),
        (
            "the answer has no total",
            Box::new(|_| StubResponse { body: r#"{"list":[]}"#.into(), ..respond(200) }),
        ),
        ("not the documented JSON", Box::new(move |_| html())),
        ("the service failed (HTTP 502)", Box::new(|_| respond(502))),
        (
            "(HTTP 502)",
            Box::new(move |asked| if is_first(asked) { page(2, &[account("x")]) } else { respond(502) }),
        ),
    ];
    for (expected, fault) in faults {
        stub.answer(move |asked| if asked.path.contains("/currency") { bitcoin() } else { fault(asked) });
        let text = output_of(&scene, 3, &PULL).await;
        assert!(text.contains("1 currency stored"), "{expected}: {text}");
        assert!(text.contains("accounts not pulled, the list of 20"), "{expected}: {text}");
        assert!(text.contains(" is kept: ") && text.contains(expected), "{expected}: {text}");
        assert_eq!(scene.text(accounts).await, before, "{expected}");
    }
}

#[sqlx::test(migrations = false)]
async fn a_stored_list_is_replaced_as_a_whole_or_not_at_all(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let stub = api_with_accounts(&mut scene, |_| page(2, &[account("a"), account("b")])).await;
    output_of(&scene, 0, &PULL).await;
    let old = scene.text(ACCOUNTS).await;
    assert_eq!(old, "default a Account a,default b Account b");
    // The database refuses one of the new entries.
    stub.answer(|asked| {
        if asked.path.contains("/currency") { bitcoin() } else { page(2, &[account("b"), account("c")]) }
    });
    scene
        .sql("alter table elven_sync.known_accounts add constraint no_c check (entity_account_id <> 'c')")
        .await;
    let text = output_of(&scene, 1, &PULL).await;
    assert!(text.contains("no_c"), "{text}");
    assert_eq!(scene.text(ACCOUNTS).await, old);
    scene.sql("alter table elven_sync.known_accounts drop constraint no_c").await;
    output_of(&scene, 0, &PULL).await;
    assert_eq!(scene.text(ACCOUNTS).await, "default b Account b,default c Account c");
    // Another pull stores its list at the same time.
    let mut other = scene.pool.begin().await.unwrap();
    sqlx::raw_sql(
        "delete from elven_sync.known_accounts;
         insert into elven_sync.known_accounts values ('default', 'd', null, now()), ('default', 'b', null, now())",
    )
    .execute(&mut *other)
    .await
    .unwrap();
    let waiting = scene.command(&PULL).spawn().unwrap();
    let is_waiting = "select count(*)::text from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock'";
    eventually("the pull waits", async || scene.text(is_waiting).await == "1").await;
    other.commit().await.unwrap();
    let output = waiting.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(scene.text(ACCOUNTS).await, "default b Account b,default c Account c");
}

#[sqlx::test(migrations = false)]
async fn a_key_without_the_permission_is_reported_once_with_the_remedy(pool: PgPool) {
    let mut scene = knowing(pool, ["a".to_owned()], Answers::Bare).await;
    scene.set("SECOND_KEY", "key-2");
    scene.set("SECOND_SECRET", "wrong");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_ENV", "SECOND_KEY");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "SECOND_SECRET");
    output_of(&scene, 0, &["entity", "add", "beta", "--timezone", "UTC", "--credential", "second"]).await;
    let others = "select concat((select string_agg(s::text, '') from elven_sync.sync_state s),
                                (select string_agg(e::text, '') from elven_sync.entities e),
                                (select count(*) from elven_sync.sync_runs),
                                (select count(*) from elven_sync.sync_errors))";
    let before = scene.text(others).await;
    let text = output_of(&scene, 3, &PULL).await;
    let refused: Vec<&str> = text.lines().filter(|line| line.contains("`second`")).collect();
    assert_eq!(refused.len(), 1, "{text}");
    for expected in [
        "accounts and currencies not pulled, no list is stored: the API refused credential `second` (HTTP 401)",
        "hint: check key and secret, and allow the key at Elven to call GET /open/v3/entityAccount and GET \
         /open/v3/currency",
    ] {
        assert!(refused[0].contains(expected), "{text}");
    }
    assert_eq!(scene.text(ACCOUNTS).await, "default a a");
    // One of the two calls is allowed.
    let stub = api_with_accounts(&mut scene, |_| respond(403)).await;
    let text = output_of(&scene, 3, &PULL).await;
    assert!(text.contains("credential `default`: 1 currency stored"), "{text}");
    assert!(text.contains("credential `default`: accounts not pulled, the list of "), "{text}");
    assert!(text.contains("to call GET /open/v3/entityAccount\n"), "{text}");
    // In other words each time.
    stub.answer(|asked| {
        let body = json!({"status": "failed", "data": {"code": 1, "message": asked.path}}).to_string();
        StubResponse { body, ..respond(403) }
    });
    let text = output_of(&scene, 1, &PULL).await;
    assert_eq!(text.matches("(HTTP 403)").count(), 2, "one line for each credential: {text}");
    // A key that is not configured concerns its credential alone.
    stub.answer(|asked| if asked.path.contains("/currency") { bitcoin() } else { page(1, &[account("z")]) });
    scene.unset("SECOND_KEY");
    let text = output_of(&scene, 3, &PULL).await;
    assert_eq!(text.matches("SECOND_KEY").count() + text.matches("second__key_env").count(), 0, "{text}");
    assert!(text.contains("the key of credential `second` is missing"), "{text}");
    assert!(scene.text(ACCOUNTS).await.contains("default z Account z"));
    assert_eq!(scene.text(others).await, before);
}

#[sqlx::test(migrations = false)]
async fn a_pull_signs_with_the_clock_of_the_api(pool: PgPool) {
    let scene = knowing(pool, ["a".to_owned()], Answers::Bare).await;
    scene.sandbox.set_rules(fault_rules(&["clock=+90s"]));
    let text = output_of(&scene, 0, &PULL).await;
    assert!(text.contains("this machine's clock is off from the API's"), "{text}");
    assert_eq!(scene.text(ACCOUNTS).await, "default a a");
}

/// An id that the encoding of the database lacks is left out, and a name of people is stored with a question mark.
#[sqlx::test(migrations = false)]
async fn characters_that_the_database_lacks_are_no_failure(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let _stub = api_with_accounts(&mut scene, |_| {
        let odd = json!({"entityAccountId": "a\u{0}", "name": "A"});
        page(2, &[odd, json!({"entityAccountId": "b", "name": "B\u{0}"})])
    })
    .await;
    let text = output_of(&scene, 0, &PULL).await;
    assert!(text.contains("1 account and 1 currency stored"), "{text}");
    assert_eq!(scene.text(ACCOUNTS).await, "default b B?");
}

/// Three names that Elven knows, and one near each of two.
async fn scene_with_names(pool: PgPool) -> TestEnv {
    let scene = knowing(pool, ["bank-chf", "wallet-btc", "idle"].map(str::to_owned), Answers::Bare).await;
    scene
        .sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              select 'acme', name, currency, '2024-01-01Z', 1
                from (values ('bank-chf', 'CHF', 2), ('Bank-CHF', 'CHF', 1), ('walet-btc', 'btc', 3), (' idle', 'USDQ', 1),
                             ('safe', 'CHF', 1)) v (name, currency, rows), generate_series(1, rows);
              insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              values ('ghost', 'unseen', 'XXX', '2024-01-01Z', 1)")
        .await;
    scene
}

#[sqlx::test(migrations = false)]
async fn names_of_the_ledger_are_shown_beside_those_that_elven_knows(pool: PgPool) {
    let scene = scene_with_names(pool).await;
    output_of(&scene, 0, &PULL).await;
    let json_of = async |arguments: &[&str]| -> Value {
        let output = scene.output(&[arguments, &["--json"]].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    let used = |name: &str, rows: i64, known_as: Option<&str>, near: &[&str]| {
        // Only another spelling is proposed. The ledger has `bank-chf` itself, so that a map would be refused.
        let elven = if name == " idle" { "'idle'" } else { "ELVEN_NAME" };
        let is_unknown = known_as.is_none() && name != "Bank-CHF";
        let command = format!("elven-sync map account --entity 'acme' '{name}' {elven}");
        json!({"entity_id": "acme", "entity_account_id": name, "rows": rows, "known": known_as.is_some(),
               "name": known_as, "near": near, "mapped_to": null,
               "command": is_unknown.then_some(command)})
    };
    let unknown = [
        used(" idle", 1, None, &["idle"]),
        used("Bank-CHF", 1, None, &["bank-chf"]),
        used("safe", 1, None, &[]),
        used("walet-btc", 3, None, &["wallet-btc"]),
    ];
    let report = json_of(&["reference", "accounts"]).await;
    let mut all = unknown.to_vec();
    all.insert(2, used("bank-chf", 2, Some("bank-chf"), &[]));
    assert_eq!(report["accounts"], json!(all));
    let not_used: Vec<&str> = report["unused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|u| u["entity_account_id"].as_str().unwrap())
        .collect();
    assert_eq!(not_used, ["idle", "wallet-btc"]);
    assert_eq!((&report["lists"][0]["entries"], &report["without_list"]), (&json!(3), &json!([])));
    let report = json_of(&["reference", "accounts", "--unknown"]).await;
    assert_eq!((&report["accounts"], &report["unused"]), (&json!(unknown), &json!([])));

    let report = json_of(&["reference", "currencies", "--unknown"]).await;
    let of = |currency: &str, rows: i64, near: Value| json!({"entity_id": "acme", "currency": currency, "rows": rows, "known": false, "name": null, "near": near, "mapped_to": null, "command": "elven-sync map currency 'btc' 'BTC'"});
    assert_eq!(report["currencies"][1], of("btc", 3, json!(["BTC"])));
    assert_eq!(report["currencies"][0]["currency"], "USDQ");
    assert!(report["currencies"][0]["near"].as_array().unwrap().contains(&json!("USDT")), "{report}");

    let text = output_of(&scene, 0, &["reference", "accounts"]).await;
    let row = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.contains(&format!(" {name} "))).unwrap_or_default();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row(&text, "bank-chf"), "acme bank-chf 2 yes");
    assert_eq!(row(&text, "Bank-CHF"), "acme Bank-CHF 1 no near `bank-chf`");
    assert_eq!(row(&text, "safe"), "acme safe 1 no");
    assert_eq!(row(&text, "` idle`"), "acme ` idle` 1 no near `idle`", "blanks are visible");
    let total = "unknown to Elven: 4 of 5 accounts, with 6 rows; to map a name, or correct it in the ledger:\n  elven-sync \
                 map account --entity 'acme' ' idle' 'idle'\n  correct account `Bank-CHF` to `bank-chf` in the ledger\n  elven-sync \
                 map account --entity 'acme' 'safe' ELVEN_NAME\n  elven-sync map account --entity 'acme' 'walet-btc' ELVEN_NAME\n";
    assert!(text.contains(total), "{text}");
    assert!(text.contains("not used by the ledger: 2 accounts: `idle`, `wallet-btc`"), "{text}");
    assert!(text.contains("credential `default`: Elven listed 3 accounts at 20"), "{text}");
    let text = output_of(&scene, 0, &["reference", "accounts", "--unknown"]).await;
    assert!(
        row(&text, "bank-chf").is_empty() && text.contains(total) && !text.contains("not used"),
        "{text}"
    );
    scene.sql("delete from ledger.balance_snapshots where entity_account_id <> 'bank-chf'").await;
    let text = output_of(&scene, 0, &["reference", "accounts", "--unknown"]).await;
    assert!(text.starts_with("unknown to Elven: none of 1 account\n"), "{text}");
}

#[sqlx::test(migrations = false)]
async fn without_a_stored_list_the_command_that_pulls_it_is_named(pool: PgPool) {
    let scene = scene_with_names(pool).await;
    for arguments in [&["reference", "accounts"][..], &["reference", "currencies", "--unknown"]] {
        let text = output_of(&scene, 3, arguments).await;
        assert!(text.contains("credential `default`: no list of "), "{text}");
        assert!(text.ends_with("is stored; hint: elven-sync reference pull\n"), "{text}");
        assert!(!text.contains("unknown to Elven"), "{text}");
    }
    let text = output_of(&scene, 3, &["reference", "accounts"]).await;
    assert!(text.contains(" ?"), "whether Elven knows a name is not known: {text}");
    let output = scene.output(&["reference", "accounts", "--json"]).await;
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (&report["without_list"], &report["accounts"][0]["known"]),
        (&json!(["default"]), &Value::Null)
    );
    output_of(&scene, 0, &PULL).await;
    assert!(output_of(&scene, 0, &["reference", "accounts"]).await.contains("unknown to Elven: 4 of 5"));
    scene.sql("delete from elven_sync.entities").await;
    for arguments in [&["reference", "accounts"][..], &PULL] {
        let text = output_of(&scene, 0, arguments).await;
        assert_eq!(text, "no entity is registered; hint: elven-sync entity add ID --timezone ZONE\n");
    }
}

/// Names of the ledger, of the API, and of a column whose collation ignores letter case.
#[sqlx::test(migrations = false)]
async fn names_from_outside_are_exact_escaped_and_fit_a_terminal(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql("create collation ledger.no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
              alter table ledger.balance_snapshots alter entity_account_id type text collate ledger.no_case;
              insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              values ('acme', 'x1', 'BTC', '2024-01-01Z', 1), ('acme', 'X1', 'BTC', '2024-01-01Z', 1),
                     ('acme', E'e\\u001b[2Jvil', 'BTC', '2024-01-01Z', 1),
                     ('acme', '8nfrslW3U7r2IvuWQDT4HbZYocjXiFfp-2623', 'BTC', '2024-01-01Z', 1)")
        .await;
    let _stub = api_with_accounts(&mut scene, |_| {
        let name = "\u{1b}]0;a title\u{7}\nof several lines, and longer than a cell of the table";
        let known = json!({"entityAccountId": "8nfrslW3U7r2IvuWQDT4HbZYocjXiFfp-2623", "name": name});
        page(2, &[known, json!({"entityAccountId": "e\u{1b}[2Jvi", "name": "x"})])
    })
    .await;
    output_of(&scene, 0, &PULL).await;
    let text = output_of(&scene, 0, &["reference", "accounts"]).await;
    assert!(text.contains(" x1 ") && text.contains(" X1 "), "{text}");
    for text in [text, on_a_terminal(&scene, 80, 0, &["reference", "accounts"]).await] {
        assert!(!text.contains('\u{1b}') && text.contains("e\\u{1b}[2Jvil"), "{text}");
        assert!(text.contains("8nfrslW3U7r2IvuWQDT4HbZYocjXiFfp-2623"), "ids are whole: {text}");
    }
    let text = on_a_terminal(&scene, 80, 0, &["reference", "accounts"]).await;
    let table: Vec<&str> = text.lines().take_while(|line| !line.contains("unknown to")).collect();
    let longest = table.iter().map(|line| line.trim_end().chars().count()).max().unwrap();
    assert!(table.len() > 4 && longest <= 80, "{longest}: {text}");
}
