//! The JSON forms of results: a struct for each, with a field for each key.
//!
//! Keys are a contract with scripts (`docs/cli.md`). Fields may be added; none is ever renamed or
//! removed, and their order stays. What is not known is `null`, unless its field says that it is
//! left out.
//!
//! Numbers in bytes end in `_bytes`, or are called `bytes`. Times are strings, RFC 3339 in UTC.
//! Durations are milliseconds, with microsecond precision; they end in `_ms`, or are called `ms`.

mod cdrom;
mod chain;
mod clone;
mod disk;
mod doctor;
mod ephemeral;
mod error;
mod exec;
mod image;
mod image_file;
mod libvirt;
mod merge;
mod program;
mod seal;
mod show;
mod snapshot;
mod template;
mod trash;
mod vm;

pub use cdrom::{Cdrom, NoCdrom};
pub use chain::Chain;
pub use clone::Cloned;
pub use disk::{CheckedLayer, Disk, Resized};
pub use doctor::Finding;
pub use ephemeral::{Drained, Filled, Reset, StandbyStatus};
pub use error::Failure;
pub use exec::{Copied, Ended, Run};
pub use image::{AddedImage, CatalogueImage, Image, PrunedImage};
pub use image_file::{CheckedImage, ImageFile, Unchecked, WrittenImage};
pub use libvirt::{Exported, ImportPlan, Imported};
pub use merge::{Merge, Merged};
pub use program::{Man, Version};
pub use seal::{SealOperation, Sealed, WithPasswords};
pub use show::Details;
pub use snapshot::{RemovedSnapshot, Reverted, Snapshot, SnapshotInFull, TakenSnapshot};
pub use template::{FrozenTemplate, Template, Warmth};
pub use trash::{Collected, Undoable};
pub use vm::{Created, Named, Removed, State, Vm};
