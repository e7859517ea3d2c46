//! The rules of the source tree, read from the source itself: which room may import which, no
//! circle of files, where `unsafe` and printing belong, how long a file and a line may be.
//!
//! The lists of exceptions can only shrink: an entry that is not needed any more fails the test,
//! too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The floors of the house, from the ground up. A room imports from its own floor and from those
/// below it, never from one above.
const FLOORS: &[&[&str]] = &[
    &["error"],
    &["model", "ui"],
    &["sys", "settings"],
    &["store"],
    &["context"],
    &["qemu"],
    &["layer"],
    &["cloudinit", "fetch", "helper"],
    &["instance"],
    &["change"],
    &["guest", "steps"],
    &[
        "appliance", "clone", "disk", "ephemeral", "image", "libvirt", "merge", "seal", "snapshot",
        "template", "vm", "warm",
    ],
    &["maintenance"],
    &["doctor"],
    &["output", "registry"],
    &["cli"],
];

/// Arrows that still run up: from a file to another file.
const UP: &[(&str, &str)] = &[];

/// The most lines of a file.
const LINES: usize = 450;

/// Files that are still longer.
const LONG: &[&str] = &[];

/// The most characters of a line.
const COLUMNS: usize = 100;

/// A source file: the path of its module, its text without comments and tests, its number of lines.
struct Source {
    module: String,
    code: String,
    lines: usize,
}

#[test]
fn no_room_imports_from_a_floor_above_it() {
    let sources = read();
    let found: BTreeSet<(String, String)> = upwards(&imports(&sources)).into_iter().collect();
    let known: BTreeSet<(String, String)> =
        UP.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
    let new: Vec<_> = found.difference(&known).collect();
    assert!(new.is_empty(), "these files import from a floor above theirs: {new:#?}");
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(gone.is_empty(), "these are gone, so take them out of UP: {gone:#?}");
}

#[test]
fn each_room_stands_on_a_floor() {
    let rooms: BTreeSet<String> =
        read().iter().map(|source| room(&source.module).to_owned()).collect();
    let floors: BTreeSet<String> =
        FLOORS.iter().flat_map(|floor| floor.iter().map(|room| (*room).to_owned())).collect();
    assert_eq!(rooms, floors);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = circles(&imports(&read()));
    assert!(circles.is_empty(), "these files import each other: {circles:#?}");
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let found = read()
        .into_iter()
        .filter(|source| room(&source.module) != "sys" && has_word(&source.code, "unsafe"));
    let found: Vec<String> = found.map(|source| source.module).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn only_the_command_line_prints() {
    let prints = ["println!", "print!", "eprintln!", "eprint!", "dbg!", "stdout()", "stderr()"];
    let found = read().into_iter().filter(|source| {
        !matches!(room(&source.module), "cli" | "output")
            && prints.iter().any(|print| source.code.contains(print))
    });
    let found: Vec<String> = found.map(|source| source.module).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn no_file_is_too_long_to_be_read_at_once() {
    let found: BTreeSet<String> = read()
        .into_iter()
        .filter(|source| source.lines > LINES)
        .map(|source| source.module)
        .collect();
    let known: BTreeSet<String> = LONG.iter().map(|module| (*module).to_owned()).collect();
    assert_eq!(found, known, "files of more than {LINES} lines, and those that are known to be");
}

#[test]
fn no_line_is_longer_than_100_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for path in ["src", "tests", "integration"].into_iter().flat_map(|name| files(&root.join(name)))
    {
        let text = std::fs::read_to_string(&path).unwrap();
        let long = text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS);
        let shown = path.strip_prefix(root).unwrap().display();
        found.extend(long.map(|(at, _)| format!("{shown}:{}", at + 1)));
    }
    found.sort();
    assert!(found.is_empty(), "these lines have more than {COLUMNS} characters: {found:#?}");
}

/// The rules find what they are for.
#[test]
fn an_arrow_that_runs_up_and_a_circle_are_found() {
    let source = |module: &str, code: &str| Source {
        module: module.into(),
        code: without_comments(code),
        lines: 1,
    };
    let sources = [
        source(
            "change::apply",
            "use crate::{\n    error::Error,\n    vm::{self, start::{go as on}},\n};",
        ),
        source("vm", ""),
        source("vm::start", "use super::stop; // use crate::cli::no\n"),
        source("vm::stop", "fn f() { let x = crate::vm::start::go(); }"),
        source("error", "/// use crate::cli;"),
    ];
    let imports = imports(&sources);
    let up = upwards(&imports);
    assert_eq!(
        up,
        [("change::apply", "vm"), ("change::apply", "vm::start")]
            .map(|(a, b)| (a.into(), b.into()))
    );
    assert_eq!(circles(&imports), [["vm::start", "vm::stop"]]);
}

/// The sources of the program. What it starts with, `main.rs` and `lib.rs`, stands outside the
/// house.
fn read() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    for path in files(&root) {
        let inside = path.strip_prefix(&root).unwrap().with_extension("");
        let mut parts: Vec<&str> = inside.iter().map(|part| part.to_str().unwrap()).collect();
        if parts == ["main"] || parts == ["lib"] {
            continue;
        }
        if parts.last() == Some(&"mod") {
            parts.pop();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let own = text.split("\nmod tests {").next().unwrap();
        sources.push(Source {
            module: parts.join("::"),
            code: without_comments(own),
            lines: text.lines().count(),
        });
    }
    assert!(sources.len() > 200, "the sources were not found");
    sources
}

/// The `.rs` files of a directory and of those inside it.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// A line ends at `//`, in a string as well: what stands behind it there is no import.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|other| other == word)
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap()
}

/// For each file, those that it imports from.
fn imports(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let modules: BTreeSet<&str> = sources.iter().map(|source| source.module.as_str()).collect();
    let imports_of = |source: &Source| {
        let paths =
            paths(&source.code).into_iter().filter_map(|path| absolute(&source.module, &path));
        let files = paths.filter_map(|path| {
            // The longest beginning of the path that is a file: what follows is an item in it.
            (1..=path.len())
                .rev()
                .map(|length| path[..length].join("::"))
                .find(|path| modules.contains(path.as_str()))
        });
        files.filter(|file| *file != source.module).collect()
    };
    sources.iter().map(|source| (source.module.clone(), imports_of(source))).collect()
}

/// The paths in `code` that begin with `crate`, `super` or `self`, groups in braces taken apart.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            expand(&code[at..], &mut paths);
        }
    }
    paths
}

/// Adds the paths of the tree that `text` begins with.
fn expand(text: &str, paths: &mut Vec<String>) {
    let length =
        text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(text.len());
    let path = &text[..length];
    if !(path.ends_with("::") && text[length..].starts_with('{')) {
        paths.push(path.trim_end_matches(':').to_owned());
        return;
    }
    let (mut depth, mut from) = (0, length + 1);
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at < length) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == ',' && depth == 1) || depth == 0 {
            let item = text[from..at].trim();
            if !item.is_empty() {
                expand(&format!("{path}{item}"), paths);
            }
            from = at + 1;
        }
        if depth == 0 {
            return;
        }
    }
}

/// A path from the root of the crate, seen from `module`.
fn absolute(module: &str, path: &str) -> Option<Vec<String>> {
    let mut from: Vec<String> = module.split("::").map(str::to_owned).collect();
    let mut parts: Vec<&str> = path.split("::").collect();
    match parts.remove(0) {
        "crate" => from.clear(),
        "super" => drop(from.pop()?),
        _ => {}
    }
    while parts.first() == Some(&"super") {
        parts.remove(0);
        from.pop()?;
    }
    from.extend(parts.into_iter().filter(|part| *part != "self").map(str::to_owned));
    Some(from)
}

/// The imports that lead to a higher floor.
fn upwards(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<(String, String)> {
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&room(module)));
    let arrows =
        imports.iter().flat_map(|(from, to)| to.iter().map(move |to| (from.clone(), to.clone())));
    arrows.filter(|(from, to)| floor(from) < floor(to)).collect()
}

/// The groups of files each of which leads to all others of its group.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = imports[from].iter().collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(&imports[file]);
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        imports.keys().map(|file| (file, reached(file))).collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (file, others) in &reached {
        if others.contains(file) {
            let circle = others
                .iter()
                .filter(|other| reached[*other].contains(file))
                .map(|other| (*other).clone());
            circles.insert(circle.collect());
        }
    }
    circles.into_iter().collect()
}
