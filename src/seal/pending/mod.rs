//! What is between "all of it worked" and "all of it is in the disks": overlays that have to be
//! committed into bare image files, all or none.
//!
//! ```text
//! in sealing/ID/:
//! overlays written ─▶ ORDER ─▶ "started" ─▶ commits ─▶ order removed ─▶ overlays removed
//! cut short:
//! counts for nothing  carried on by the next `seal` that names all of its disks
//! ```
//! Everything lies in the store, which is its owner's alone. Nothing beside an image is read: a
//! directory with images may belong to another user. An order notes what the disks looked like, and
//! is carried out on files that this command was given and has open, never on a path that it names
//! itself. Until the commits have started the disks must not have changed; afterwards they must at
//! least be the same files.

mod carry_on;
mod commit;
mod left;
mod order;
mod work;

pub(crate) use carry_on::{carry_on, refuse_old};
pub(crate) use left::{Left, left, sweep};
pub(crate) use order::GivenDisk;
pub(crate) use work::Work;
