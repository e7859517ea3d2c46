//! What sealing takes out. One table: names, defaults and paths; `docs/sealing.md` is printed from
//! it. The names and defaults are those of `virt-sysprep(1)`, with what it misses added. Paths are
//! globs in the guest's tree; `~` stands for every user's home directory.

mod operation;
mod table;

pub use operation::{Operation, Special, Work};
pub use table::OPERATIONS;
