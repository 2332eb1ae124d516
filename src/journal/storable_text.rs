//! Texts from outside, made fit for the database, whose encoding may lack some of their characters.

use sqlx::PgExecutor;

/// Replaces characters that the encoding of the database lacks by question marks. PostgreSQL would refuse such a
/// character, and with it the whole write.
///
/// ASCII texts are valid in each encoding, so they need no query.
pub(super) async fn storable<const N: usize>(
    executor: impl PgExecutor<'_>,
    texts: [&mut Vec<Option<String>>; N],
) -> Result<(), sqlx::Error> {
    let mut odd: Vec<&mut String> =
        texts.into_iter().flatten().flatten().filter(|text| is_odd(text)).collect();
    if odd.is_empty() {
        return Ok(());
    }
    // No text in PostgreSQL can contain NUL.
    let utf8: Vec<Vec<u8>> = odd.iter().map(|text| text.replace('\0', "?").into_bytes()).collect();
    let stored = sqlx::query_scalar!(
        r#"select elven_sync.storable(t.utf8) as "text!"
             from unnest($1::bytea[]) with ordinality t (utf8, place) order by t.place"#,
        &utf8
    )
    .fetch_all(executor)
    .await?;
    for (text, stored) in odd.iter_mut().zip(stored) {
        **text = stored;
    }
    Ok(())
}

/// Does the same for one text.
pub(super) async fn storable_one(
    executor: impl PgExecutor<'_>,
    text: Option<&str>,
) -> Result<Option<String>, sqlx::Error> {
    let mut texts = vec![text.map(str::to_owned)];
    storable(executor, [&mut texts]).await?;
    Ok(texts.pop().flatten())
}

fn is_odd(text: &str) -> bool {
    !text.is_ascii() || text.contains('\0')
}
