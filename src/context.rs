//! What every operation needs: the settings, the store and somebody to tell.

use crate::error::Result;
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
    /// Opens the store named in `settings`; nothing is created until an operation changes something.
    pub fn open(settings: Settings, ui: Box<dyn Ui>, operation: impl Into<String>) -> Result<Self> {
        let store = Store::at(&settings.store)?;
        Ok(Self { settings, store, ui, operation: operation.into() })
    }
}
