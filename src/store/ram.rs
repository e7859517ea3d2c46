//! The files of a guest's memory.

use super::Store;
use crate::error::{IoContext, Result};
use crate::model::RamImage;

impl Store {
    /// Removes memory, whole or not.
    pub fn remove_ram(&self, image: &RamImage) -> Result<()> {
        let layout = &self.layout;
        for path in [layout.partial_ram(image), layout.whole_ram(image), layout.ram(image)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).on("remove", &path);
                }
                _ => {}
            }
        }
        Ok(())
    }
}
