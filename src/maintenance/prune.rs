//! `image prune`: images that no VM depends on, and what is left of downloads.

use crate::context::Context;
use crate::error::{Kind, Result};
use crate::image::{downloads, list};
use crate::maintenance::remove::{self, Options, Which};
use crate::model::Name;

/// What was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The image.
    pub image: Option<Name>,
    /// What it is, in words.
    pub what: String,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Removes them; images go into the trash. With `dry_run`, it is only told what would go.
pub async fn prune(context: &Context, dry_run: bool) -> Result<Vec<Pruned>> {
    let mut pruned = Vec::new();
    for row in list::list(context)?.into_iter().filter(|row| row.dependents.is_empty()) {
        if !dry_run {
            match remove::remove(context, &row.name, Which::Image, Options::default()).await {
                Ok(_) => {}
                // Another command has removed it meanwhile.
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => {
                    context.ui.warn(&format!("image {} stays: {}", row.name, error.full_message()));
                    continue;
                }
            }
        }
        pruned.push(Pruned {
            what: format!("image {}", row.name),
            image: Some(row.name),
            bytes: row.bytes,
        });
    }
    for left in downloads::left(&context.store)? {
        pruned.push(Pruned { image: None, what: left.what(), bytes: left.bytes });
        if !dry_run {
            left.remove()?;
        }
    }
    Ok(pruned)
}
