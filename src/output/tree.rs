//! The tree of a VM's snapshots, with the place where its head stands.

use termtree::Tree;

use crate::model::{Name, human};
use crate::output::time;
use crate::snapshot::list;

/// `cowhand snapshot tree`.
pub(crate) fn snapshots(tree: &list::Tree) -> String {
    let width = tree.rows.iter().map(|row| row.snapshot.name.as_str().len()).max().unwrap_or(0);
    let mut root = Tree::new(tree.vm.to_string());
    root.leaves = below(tree, None, width);
    root.to_string()
}

fn below(tree: &list::Tree, parent: Option<&Name>, width: usize) -> Vec<Tree<String>> {
    let mut leaves = Vec::new();
    for (row, clones) in
        tree.rows.iter().zip(&tree.clones).filter(|(row, _)| row.snapshot.parent.as_ref() == parent)
    {
        let name = &row.snapshot.name;
        let mut line = format!(
            "{name:<width$}  {}  {:<11}  {:>8}",
            time::minute(row.snapshot.created),
            super::table::kind(&row.snapshot),
            super::table::size(row),
            name = name.as_str()
        );
        if row.snapshot.quiesced {
            line.push_str("  quiesced");
        }
        if let Some(expires) = row.snapshot.expires {
            line.push_str(&format!("  expires {}", time::minute(expires)));
        }
        if !clones.is_empty() {
            let clones: Vec<String> = clones.iter().map(Name::to_string).collect();
            line.push_str(&format!("  ← clones: {}", clones.join(", ")));
        }
        let mut leaf = Tree::new(line);
        leaf.leaves = below(tree, Some(name), width);
        leaves.push(leaf);
    }
    if tree.current.as_ref() == parent {
        leaves.push(Tree::new(format!("● you are here  {}", human(tree.head_bytes))));
    }
    leaves
}
