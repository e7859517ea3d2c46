//! What every operation needs: the settings, the store and somebody to tell.

mod locks;

use crate::error::{Error, Result};
use crate::settings::Settings;
use crate::store::Store;
use crate::ui::Ui;

/// Handed to every operation of the library.
pub struct Context {
    /// What the caller decided.
    pub settings: Settings,
    /// The store on disk.
    pub store: Store,
    /// Who hears of progress and warnings.
    pub ui: Box<dyn Ui>,
    /// What is going on, in the words a waiter will read (`snapshot create web`).
    pub operation: String,
}

impl Context {
    /// Opens the store named in `settings`; nothing is created until an operation changes
    /// something.
    pub fn open(settings: Settings, ui: Box<dyn Ui>, operation: impl Into<String>) -> Result<Self> {
        for path in [&settings.store, &settings.runtime] {
            if path.to_str().is_none() {
                return Err(Error::usage(format!(
                    "{} is not UTF-8, and QEMU takes paths as JSON",
                    path.display()
                )));
            }
        }
        let store = Store::at(&settings.store)?;
        Ok(Self { settings, store, ui, operation: operation.into() })
    }
}
