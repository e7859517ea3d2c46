//! Looking at the images of the store. Takes no lock.

use crate::context::Context;
use crate::error::Result;
use crate::template::list::{self, Row};

/// All images, with the VMs that depend on them.
pub(crate) fn list(context: &Context) -> Result<Vec<Row>> {
    for name in context.store.names()? {
        if let Err(error) = context.store.load(&name) {
            context.ui.warn(&format!("{name} may be an image: {}", error.full_message()));
        }
    }
    Ok(list::all(context)?.into_iter().filter(|row| row.record.image().is_some()).collect())
}
