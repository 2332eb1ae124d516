//! Pages quote files of `deploy`, and the quotes are equal to the files.

use super::read;
use crate::support::files_in;

/// Asserts that each line of a quote is a line of the file, in the order of the file.
fn assert_quotes(page: &str, file: &str, quote: &str) {
    let text = read(file);
    let mut lines = text.lines();
    for quoted in quote.lines().filter(|line| !line.is_empty()) {
        assert!(lines.any(|line| line == quoted), "{page}: {file} has no such line there: {quoted}");
    }
}

/// A quote begins with `<!-- from FILE -->`, and has some lines of the file.
#[test]
fn quotes_from_files_are_equal_to_the_files() {
    let mut quotes = 0;
    let docs = files_in("docs", "md").into_iter().map(|(name, text)| (format!("docs/{name}"), text));
    for (page, text) in docs.chain([("README.md".to_owned(), read("README.md"))]) {
        for rest in text.split("\n<!-- from ").skip(1) {
            let (file, rest) = rest.split_once(" -->\n\n```").unwrap_or_else(|| panic!("{page}: {rest:.40}"));
            let quote = rest.split_once('\n').unwrap().1.split("```").next().unwrap();
            assert_quotes(&page, file, quote);
            quotes += 1;
        }
    }
    assert!(quotes >= 5, "{quotes}");
}

/// Each listing for cron, systemd and Kubernetes is a quote, so that it is a part of something that is tested.
#[test]
fn listings_of_schedulers_are_quotes() {
    for page in ["README.md", "docs/operating.md"] {
        let text = read(page);
        for language in ["cron", "ini", "yaml"] {
            for (place, _) in text.match_indices(&format!("```{language}\n")) {
                let before = text[..place].trim_end().lines().last().unwrap();
                assert!(before.starts_with("<!-- from deploy/"), "{page}: {language} after {before}");
            }
        }
    }
}
