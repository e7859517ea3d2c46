//! The table of what becomes of the parts of a domain on its way from or to libvirt.

use super::grid::table;
use crate::libvirt::{Fate, Note};

/// `cowhand import`: what comes over, what is changed, what is left out.
pub fn domain(notes: &[Note]) -> String {
    let mut text = String::new();
    for (fate, heading) in
        [(Fate::Kept, "comes over"), (Fate::Changed, "is changed"), (Fate::Left, "is left out")]
    {
        let notes = notes.iter().filter(|note| note.fate == fate);
        let rows: Vec<Vec<String>> =
            notes.map(|note| vec![format!("  {}", note.what), note.how.clone()]).collect();
        if !rows.is_empty() {
            text.push_str(&format!("{heading}:\n{}\n", without_heading(&table(&["", ""], rows))));
        }
    }
    text.trim_end().to_owned()
}

/// The lines of a table behind the first.
fn without_heading(table: &str) -> &str {
    table.split_once('\n').map_or("", |(_, rows)| rows)
}
