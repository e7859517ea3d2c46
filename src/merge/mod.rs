//! Merging layers: [`plan`] says what becomes of the layers of one VM and is pure; [`dependents`]
//! locks the VMs that depend on them; [`collapse`] merges what a removed snapshot leaves without a
//! name.

pub(crate) mod collapse;
pub(crate) mod dependents;
pub mod outcome;
pub(crate) mod plan;
pub(crate) mod undoable;
