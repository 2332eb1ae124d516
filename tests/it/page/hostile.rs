//! Text from outside cannot become markup, and cannot hide or reorder the text around it.

use sqlx::PgPool;

use super::{Page, body, path};

/// Ids, accounts, currencies and messages that browsers and readers would obey.
const HOSTILE: [&str; 6] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}</style></title>",
    "a\u{1b}[2J\nb\u{202e}c\u{2066}d\u{7f}e\u{85}",
    "javascript:alert(1)//%00%2f..",
];

/// What would be markup, or would act on a reader.
fn assert_harmless(page: &str, what: &str) {
    let markup = page.split_once("<body>").unwrap().1;
    for harm in ["<script", "<img", "</style", "javascript:alert(1)\"", "<svg onload"] {
        assert!(!markup.contains(harm), "{what}: {harm} in {markup}");
    }
    for tag in markup.split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
        assert!(!tag.contains("onerror=") && !tag.contains("onmouseover="), "{what}: {tag}");
    }
    let is_harmful = |c: char| {
        c != '\n' && c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    assert!(!page.contains(is_harmful), "{what}: {page:?}");
}

async fn insert(page: &Page, text: &str) {
    for sql in [
        "insert into elven_sync.entities (entity_id, timezone, credential, source_id) values ($1, $1, $1, $1)",
        "update elven_sync.sync_state set last_error = $1, consecutive_failures = 1, lease_owner = $1,
                lease_expires_at = now() + interval '1 hour' where entity_id = $1",
        "insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message, api_code)
         values ($1, 'rejected_row', $1, $1, $1)",
        "insert into elven_sync.sync_errors (entity_id, kind, message, hint) values ($1, 'config', $1, $1)",
        "insert into elven_sync.sync_backfills (range_from, range_to, entities, accounts, currencies, status)
         values ($1, $1, array[$1], array[$1], array[$1], 'running')",
        "insert into elven_sync.sync_runs (kind, status, worker, version, tzdata, alive_until, finished_at, error)
         values ('incremental', 'failed', $1, $1, $1, now(), now(), $1)",
        "insert into elven_sync.sync_passes (entity_id) values ($1)",
        "insert into elven_sync.sync_batches (run_id, pass_id, entity_id, last_xid, last_id, row_ids, rows_read,
                                              row_count, body_bytes, body_sha256, status, attempts, error, finished_at)
         values (1, (select max(pass_id) from elven_sync.sync_passes), $1, '5', $1, '', 1, 1, 1, '', 'rejected', 1, $1, now())",
    ] {
        sqlx::query(sql).bind(text).execute(&page.scene.pool).await.unwrap();
    }
}

#[sqlx::test(migrations = false)]
async fn hostile_text_stays_text(pool: PgPool) {
    let page = Page::with(pool, "select 1").await;
    for text in HOSTILE {
        insert(&page, text).await;
    }
    page.scene
        .sql("insert into elven_sync.sync_facts (name, value) values ('config', '{\"ok\": false, \"message\": \"<script>x\\u202e\"}')")
        .await;
    let html = page.html("/").await;
    assert_harmless(&html.source, "/");
    let json = body(&page.service.get("/status.json").await);
    assert!(!json.contains(|c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}')), "{json:?}");
    let listed = page.json().await["entities"]["worst"].clone();
    for text in HOSTILE {
        let known = listed.as_array().unwrap().iter().any(|entity| entity["entity_id"] == text);
        assert!(known, "{text:?} is exact in JSON: {listed:#}");
        let of_entity = page.html(&path(text)).await;
        assert_harmless(&of_entity.source, text);
    }
    // Each entity of the list has a link that leads to its page.
    let links: Vec<&str> =
        html.source.split("href=\"/entities/").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(links.len() >= HOSTILE.len(), "{links:?}");
    for link in links {
        assert_eq!(page.service.get(&format!("/entities/{link}")).await.status, 200, "{link}");
    }
    page.service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn long_text_is_cut(pool: PgPool) {
    let page = Page::with(pool, "select 1").await;
    insert(&page, &"<x>&\"".repeat(2_000)).await;
    let html = page.html("/").await;
    assert!(html.source.len() < 100_000, "{}", html.source.len());
    assert_harmless(&html.source, "long");
    assert!(html.text().contains("<x>&\"<x>&\""), "{}", html.text());
    page.service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn any_id_has_a_page_and_unknown_ones_have_none(pool: PgPool) {
    let page = Page::filled(pool).await;
    assert!(page.html("/").await.source.contains("href=\"/entities/wayne%2Fventures\""));
    for known in ["/entities/wayne%2Fventures", "/entities/wayne/ventures", "/entities/stark%20industries"] {
        page.html(known).await;
    }
    for unknown in [
        "/entities/nobody",
        "/entities/%3Cscript%3Ealert(1)%3C/script%3E",
        "/entities/a%00b",
        "/entities/globex/",
        "/entities/globex%20",
    ] {
        let answer = page.service.get(unknown).await;
        assert_eq!(answer.status, 404, "{unknown}: {answer:?}");
        assert_harmless(&answer.body, unknown);
        assert!(answer.body.contains("elven-sync entity list"), "{answer:?}");
    }
    for none in ["/entities/", "/entities", "/entities/%FF", "/index.html", "//"] {
        let answer = page.service.get(none).await;
        assert_eq!(answer.status, 404, "{none}: {answer:?}");
        assert!(answer.headers.contains("content-type: text/plain"), "{answer:?}");
    }
    page.service.stop().await;
}
