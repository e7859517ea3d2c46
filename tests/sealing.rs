//! The document lists what the table says.

use cowhand::seal::operations::{OPERATIONS, Operation, Work};

fn work(work: &Work) -> String {
    match work {
        Work::Remove(path) => format!("`{path}`"),
        Work::RemoveBut(path, kept) => format!("`{path}` but {}", kept.join(", ")),
        Work::RemoveFiles(path) => format!("files below `{path}`"),
        Work::Empty(path) => format!("empties `{path}`"),
        Work::Rewrite(path, _) => format!("resets `{path}`"),
        Work::DropLines(path, words) => format!("lines with {} in `{path}`", words.join(", ")),
        Work::Special(special) => special.places().to_owned(),
    }
}

fn row(operation: &Operation) -> String {
    let marks = match (operation.default, operation.sysprep) {
        (true, true) => "default",
        (true, false) => "default, ours",
        (false, true) => "optional",
        (false, false) => "optional, ours",
    };
    let works: Vec<String> = operation.work.iter().map(work).collect();
    format!("| `{}` | {marks} | {} | {} |\n", operation.name, operation.about, works.join(", "))
}

#[test]
fn the_document_lists_every_operation_with_its_paths() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sealing.md");
    let text = std::fs::read_to_string(path).unwrap();
    let head = "<!-- operations: written by the test that compares them -->\n";
    let begin = text.find(head).unwrap() + head.len();
    let end = text.find("<!-- end -->").unwrap();
    let rows: String = OPERATIONS.iter().map(row).collect();
    let table = format!("| operation | | what | where |\n|---|---|---|---|\n{rows}");
    if std::env::var_os("COWHAND_UPDATE").is_some() {
        std::fs::write(path, format!("{}{table}{}", &text[..begin], &text[end..])).unwrap();
    } else {
        assert!(
            text[begin..end] == table,
            "docs/sealing.md is out of date; to write it anew: COWHAND_UPDATE=1 cargo nextest run \
             the_document_lists"
        );
    }
}
