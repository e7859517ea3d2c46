//! The steps that changes of several kinds have in common.

pub(crate) mod layers;
pub(crate) mod merge;
pub(crate) mod qemu;
pub(crate) mod record;
pub(crate) mod restore;
pub(crate) mod trash;

#[cfg(test)]
mod tests;
