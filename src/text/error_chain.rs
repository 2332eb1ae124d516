//! An error with its causes, as people read it.

/// An error and its causes in one line, each said once.
pub fn chain(problem: &(dyn std::error::Error + 'static)) -> String {
    let mut last = words(problem);
    let mut text = last.clone();
    let mut source = problem.source();
    while let Some(cause) = source {
        let next = words(cause);
        if !next.starts_with(&last) && !text.contains(&next) {
            text = format!("{text}: {next}");
            last = next;
        }
        source = cause.source();
    }
    text
}

/// PostgreSQL's own message where there is one, without where in the server's source it was raised.
fn words(problem: &(dyn std::error::Error + 'static)) -> String {
    let raised = problem.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    raised.map_or_else(|| problem.to_string(), |raised| raised.message().to_owned())
}
