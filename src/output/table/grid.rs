//! The two forms of a table: rows below headings, and a line for each key.

use comfy_table::{CellAlignment, Table, presets};

use crate::model::printable;

/// A table from headings (a leading `>` aligns a column to the right) and rows.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable::line(cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if headings[index].starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A line for each key and its value.
pub(super) fn keyed(lines: Vec<(&str, String)>) -> String {
    let line =
        |(key, value): (&str, String)| format!("{key:<9} {}", printable::line(value.trim_end()));
    lines.into_iter().map(line).collect::<Vec<_>>().join("\n")
}
