//! Image files, and images of the store.
//!
//! An image *file* ([`file`](mod@file)) lies anywhere and is looked at, checked and converted
//! there. An *image* of the store is a sealed layer with a name: a file, or a download, that was
//! inspected and verified, and on which any number of VMs stand. In the store it is a template that
//! was no VM before (`Role::Template` with an [`ImageOrigin`](crate::model::ImageOrigin)), so
//! whatever protects templates protects images: their files are read-only, noted, checked by
//! `doctor`, kept while somebody depends on them, and had back by
//! `undo` after `image rm`. [`prune`](crate::maintenance::prune) removes those that no VM needs.
//!
//! ```text
//! FILE | URL | NAME:VERSION ─▶ source ─▶ fetch: downloaded, verified, decompressed
//!        ─▶ inspector ─▶ copied into the pool, sealed
//! ```

pub mod add;
pub mod catalogue;
pub(crate) mod downloads;
pub mod file;
pub(crate) mod list;
pub(crate) mod source;
