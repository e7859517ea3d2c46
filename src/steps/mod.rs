//! The steps that changes of several kinds have in common.

pub mod layers;
pub mod merge;
pub mod qemu;
pub mod record;
pub mod restore;
pub mod trash;

#[cfg(test)]
mod tests;
