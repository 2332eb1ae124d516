//! The layers of the program: which module may use which, and that the files have no import cycle. The edges are read
//! from the sources: paths that begin with `crate::`, `super::` or `self::`, or with the name of a module beside or
//! below. A re-exported name (`pub use`) counts for the file that defines it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::support::files_in;

/// The layers from the bottom up. A module may use only modules of the layers before its own.
const LAYERS: &[&[&str]] = &[
    &["text", "wall_clock", "watermark", "align", "fault_point"],
    &["config"],
    &["database", "elven"],
    &["ledger", "sandbox"],
    &["batch"],
    &["journal"],
    &["sync"],
    &["notify"],
    &["audit"],
    &["admin"],
    &["check"],
    &["output", "page"],
    &["serve"],
    &["commands"],
];

/// The page that shows the layers.
const PAGE: &str = "docs/internals/architecture.md";

/// A path in a module, as its segments.
type Segments = Vec<String>;

/// The parts of one file that the checks need.
#[derive(Debug, Default)]
struct Source {
    /// Imported paths, the name that each has in this file, and whether it is re-exported.
    imports: Vec<(Segments, String, bool)>,
    /// Paths in the code itself.
    paths: BTreeSet<Segments>,
    /// Names of the items that this file defines.
    items: BTreeSet<String>,
}

/// The files of a program by module. The root has the empty path.
#[derive(Debug)]
struct Program(BTreeMap<Segments, Source>);

impl Program {
    /// Reads files, each given as its path below `src` and its text. Tests and the root of the executable are left
    /// out.
    fn read<'f>(files: impl IntoIterator<Item = (&'f str, &'f str)>) -> Self {
        let mut sources = BTreeMap::new();
        for (path, text) in files {
            let mut module: Segments = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            if module.iter().any(|segment| segment.ends_with("tests")) || path == "main.rs" {
                continue;
            }
            if module.last().is_some_and(|last| last == "mod" || last == "lib") {
                module.pop();
            }
            sources.insert(module, Source::read(&code_of(text)));
        }
        Self(sources)
    }

    fn of_this_program() -> Self {
        let files = files_in("src", "rs");
        Self::read(files.iter().map(|(path, text)| (path.as_str(), text.as_str())))
    }

    /// Resolves a path in a module from the root. Returns `None` for a path into another crate or to a local name.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Segments> {
        let first = path.first()?.as_str();
        if first == "crate" {
            return Some(path[1..].to_vec());
        }
        if first == "super" || first == "self" {
            let ups = path.iter().take_while(|segment| *segment == "super").count();
            let base = module.len().checked_sub(ups)?;
            let rest = path.iter().skip(ups.max(usize::from(first == "self")));
            return Some(module[..base].iter().chain(rest).cloned().collect());
        }
        let below: Segments = module.iter().chain(&path[..1]).cloned().collect();
        if self.0.contains_key(&below) {
            return Some(module.iter().chain(path).cloned().collect());
        }
        let source = self.0.get(module)?;
        let is_here = |imported: &Segments| ["crate", "super", "self"].contains(&imported[0].as_str());
        let (imported, ..) =
            source.imports.iter().find(|(imported, name, _)| name == first && is_here(imported))?;
        let imported = self.absolute(module, imported)?;
        Some(imported.into_iter().chain(path[1..].iter().cloned()).collect())
    }

    /// Returns the module whose file defines the target of a path from the root.
    fn definer(&self, path: &[String], depth: usize) -> Option<Segments> {
        let (module, rest) = (0..=path.len())
            .rev()
            .map(|cut| path.split_at(cut))
            .find(|(module, _)| self.0.contains_key(*module))?;
        let Some(name) = rest.first() else { return Some(module.to_vec()) };
        let source = &self.0[module];
        if source.items.contains(name) || depth == 0 {
            return Some(module.to_vec());
        }
        let passed_on = source.imports.iter().find(|(_, imported, _)| imported == name);
        let followed = passed_on.and_then(|(imported, ..)| {
            let imported = self.absolute(module, imported)?;
            let whole: Segments = imported.into_iter().chain(rest[1..].iter().cloned()).collect();
            self.definer(&whole, depth - 1)
        });
        Some(followed.unwrap_or_else(|| module.to_vec()))
    }

    /// Returns the files that each file uses.
    fn edges(&self) -> BTreeMap<Segments, BTreeSet<Segments>> {
        let mut edges: BTreeMap<Segments, BTreeSet<Segments>> = BTreeMap::new();
        for (module, source) in self.0.iter().filter(|(module, _)| !module.is_empty()) {
            let imported =
                source.imports.iter().filter(|(_, _, is_passed_on)| !is_passed_on).map(|(path, ..)| path);
            for path in imported.chain(&source.paths) {
                let used = self.absolute(module, path).and_then(|path| self.definer(&path, 8));
                if let Some(used) = used.filter(|used| used != module && !used.is_empty()) {
                    edges.entry(module.clone()).or_default().insert(used);
                }
            }
        }
        edges
    }

    /// Returns the top-level modules that each top-level module uses.
    fn module_edges(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, all) in self.edges() {
            for to in all.into_iter().filter(|to| to[0] != from[0]) {
                edges.entry(from[0].clone()).or_default().insert(to[0].clone());
            }
        }
        edges
    }

    /// Returns a cycle of files, each of which uses the next, if there is one.
    fn cycle(&self) -> Option<Vec<String>> {
        let edges = self.edges();
        let mut done = BTreeSet::new();
        edges.keys().find_map(|start| follow(start, &edges, &mut Vec::new(), &mut done))
    }

    /// Returns the uses of a module of the same or a later layer, or of a module without a layer.
    fn upward(&self) -> Vec<String> {
        let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
        let mut upward = Vec::new();
        for (from, all) in self.module_edges() {
            for to in all {
                if !matches!((layer(&from), layer(&to)), (Some(from), Some(to)) if to < from) {
                    upward.push(format!("{from} uses {to}"));
                }
            }
        }
        upward
    }
}

fn follow(
    module: &Segments,
    edges: &BTreeMap<Segments, BTreeSet<Segments>>,
    way: &mut Vec<Segments>,
    done: &mut BTreeSet<Segments>,
) -> Option<Vec<String>> {
    if let Some(begin) = way.iter().position(|before| before == module) {
        return Some(way[begin..].iter().map(|module| module.join("::")).collect());
    }
    if done.contains(module) {
        return None;
    }
    way.push(module.clone());
    let found = edges.get(module).into_iter().flatten().find_map(|next| follow(next, edges, way, done));
    way.pop();
    done.insert(module.clone());
    found
}

impl Source {
    fn read(code: &str) -> Self {
        let mut source = Self::default();
        let mut code = code;
        let mut others = String::new();
        while let Some((place, is_passed_on, tree)) = next_use(code) {
            others.push_str(&code[..place]);
            let end = code[place..].find(';').map_or(code.len(), |end| place + end);
            expand(&[], tree, &mut |path, name| source.imports.push((path, name, is_passed_on)));
            code = &code[end..];
        }
        others.push_str(code);
        let words: Vec<&str> = others.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        for pair in words.windows(2) {
            if ["struct", "enum", "fn", "trait", "type", "const", "static", "macro_rules"].contains(&pair[0])
            {
                source.items.insert(pair[1].to_owned());
            }
        }
        for path in others.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
            let path: Segments = path.split("::").map(str::to_owned).collect();
            if path.len() > 1 && path.iter().all(|segment| !segment.is_empty() && !segment.contains(':')) {
                source.paths.insert(path);
            }
        }
        source
    }
}

/// Returns the next `use` statement: where it begins, whether it re-exports, and its tree.
fn next_use(code: &str) -> Option<(usize, bool, &str)> {
    let mut from = 0;
    while let Some(found) = code[from..].find("use ") {
        let place = from + found;
        let line_start = code[..place].rfind('\n').map_or(0, |end| end + 1);
        let before = code[line_start..place].trim();
        if before.is_empty() || before == "pub" || (before.starts_with("pub(") && before.ends_with(')')) {
            let tree = &code[place + 4..];
            let tree = &tree[..tree.find(';').unwrap_or(tree.len())];
            return Some((line_start, before.starts_with("pub"), tree));
        }
        from = place + 4;
    }
    None
}

/// Splits a tree of imports into paths, each with its local name.
fn expand(prefix: &[String], tree: &str, found: &mut impl FnMut(Segments, String)) {
    let (mut depth, mut begin) = (0_i32, 0);
    let mut branches = Vec::new();
    for (place, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(&tree[begin..place]);
                begin = place + 1;
            }
            _ => {}
        }
    }
    branches.push(&tree[begin..]);
    for branch in branches.into_iter().map(str::trim).filter(|branch| !branch.is_empty()) {
        let segments = |path: &str| -> Segments {
            let path = path.split("::").map(|segment| segment.trim().to_owned());
            prefix.iter().cloned().chain(path.filter(|segment| !segment.is_empty())).collect()
        };
        if let Some((path, inner)) = branch.split_once('{') {
            expand(&segments(path), inner.trim_end().trim_end_matches('}'), found);
            continue;
        }
        let (path, name) = branch.split_once(" as ").unwrap_or((branch, ""));
        let mut path = segments(path);
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        let name =
            if name.is_empty() { path.last().cloned().unwrap_or_default() } else { name.trim().to_owned() };
        found(path, name);
    }
}

/// Returns a text without comments, strings, restricted visibilities and unit tests.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("r#\"") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("pub(in ") {
            code.push_str("pub");
            rest.find(')').map_or(rest.len(), |end| end + 1)
        } else if c == '"' {
            1 + end_of_string(&rest[1..])
        } else {
            0
        };
        if skipped == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            rest = &rest[skipped..];
        }
    }
    code
}

/// Returns the length in bytes of a string literal after its opening quotation mark.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    for (place, c) in text.char_indices() {
        match c {
            '"' if !is_escaped => return place + 1,
            '\\' if !is_escaped => is_escaped = true,
            _ => is_escaped = false,
        }
    }
    text.len()
}

/// Returns the table of the page: each module with the modules that it uses.
fn table(edges: &BTreeMap<String, BTreeSet<String>>) -> String {
    let mut table = "| layer | module | uses |\n|---|---|---|\n".to_owned();
    for (number, layer) in LAYERS.iter().enumerate() {
        for module in *layer {
            let used = edges.get(*module).map(|used| {
                let used: Vec<String> = used.iter().map(|used| format!("`{used}`")).collect();
                used.join(", ")
            });
            let used = used.unwrap_or_else(|| "-".to_owned());
            let _ = writeln!(table, "| {} | `{module}` | {used} |", number + 1);
        }
    }
    table
}

#[test]
fn modules_use_only_modules_of_lower_layers() {
    let upward = Program::of_this_program().upward();
    assert!(upward.is_empty(), "{upward:#?}; the layers are in tests/it/layers.rs");
}

#[test]
fn source_files_have_no_import_cycle() {
    let cycle = Program::of_this_program().cycle();
    assert_eq!(cycle, None, "each of these files uses the next, and the last one the first");
}

/// `ELVEN_WRITE_DOCS=1` updates the page.
#[test]
fn architecture_page_shows_the_actual_layers() {
    let (begin, end) = ("<!-- layers: begin -->\n", "<!-- layers: end -->");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(begin).expect("the page has a place for the layers");
    let (shown, after) = rest.split_once(end).expect("the place for the layers ends");
    let table = table(&Program::of_this_program().module_edges());
    if crate::support::variable("ELVEN_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(shown, table, "hint: ELVEN_WRITE_DOCS=1 cargo test --test it layers");
}

/// The checks find what they are for, however a path is written.
#[test]
fn layer_checks_find_cycles_and_upward_uses() {
    let ring = |uses: &'static str| {
        Program::read([
            ("journal/mod.rs", "mod a;\nmod b;\npub use a::{One, Two as Zwei};\n"),
            ("journal/a.rs", "pub struct One;\npub struct Two;\nfn f() { super::b::g(); }\n"),
            ("journal/b.rs", uses),
        ])
    };
    let circle = Some(vec!["journal::a".to_owned(), "journal::b".to_owned()]);
    for uses in [
        "use super::One;",
        "use super::{One as Eins};",
        "use crate::journal::{self, Zwei};",
        "pub(super) fn g() -> crate::journal::Zwei {}",
        "use super::a;\nfn g() { a::f() }",
    ] {
        assert_eq!(ring(uses).cycle(), circle, "{uses}");
    }
    for uses in [
        "// use super::One;",
        "fn g() { \"super::One\"; }",
        "#[cfg(test)]\nmod tests {\n use super::super::One;\n}",
    ] {
        assert_eq!(ring(uses).cycle(), None, "{uses}");
    }
    let files = [
        ("ledger/mod.rs", "use crate::{database::Database, journal};\npub struct Ledger;"),
        ("database/mod.rs", "pub struct Database;"),
        ("journal/mod.rs", "use crate::ledger::Ledger;"),
        ("elven/mod.rs", "fn f() { crate::database::f() }"),
        ("other/mod.rs", "use crate::ledger::Ledger;"),
    ];
    let upward = Program::read(files).upward();
    assert_eq!(upward, ["elven uses database", "ledger uses journal", "other uses ledger"]);
}

/// They are tested without a database, and the simulation runs them.
#[test]
fn decisions_reach_no_clock_database_or_network() {
    let files = files_in("src/sync/decisions", "rs");
    assert!(files.len() >= 7, "{}", files.len());
    let mut of_notify = files_in("src/notify", "rs");
    of_notify.retain(|file, _| file == "decision.rs" || file == "message.rs");
    assert_eq!(of_notify.len(), 2);
    for (file, text) in files.into_iter().chain(of_notify) {
        let code = code_of(&text);
        for effect in ["async", "await", "::now()", "elapsed()", "database", "tracing", "fastrand", "Mutex"] {
            assert!(!code.contains(effect), "{file} uses {effect}");
        }
    }
}
