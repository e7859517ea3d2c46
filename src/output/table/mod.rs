//! Tables: no lines, two spaces between columns, the same on a terminal and in a pipe.

mod disk;
mod doctor;
mod domain;
mod grid;
mod image;
mod snapshot;
mod vm;

pub use disk::{cdroms, chains, checks, disks};
pub use doctor::findings;
pub use domain::domain;
pub use grid::table;
pub use image::{catalogue, image, images, pool, templates};
pub use snapshot::{kind, size, snapshot, snapshots};
pub use vm::{details, undoables, vms};
