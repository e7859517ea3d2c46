//! Guests that come over from libvirt.
//!
//! [`domain`] reads the XML of a domain, and nothing else; [`import`] makes a VM or a template of
//! what it found. What has no counterpart is told with the reason. Source: libvirt's "Domain XML
//! format" (<https://libvirt.org/formatdomain.html>).

mod cpu;
pub(crate) mod devices;
pub mod domain;
mod drives;
pub mod export;
pub(crate) mod import;
mod interfaces;
mod machine;
mod os;
pub(crate) mod request;
pub mod snapshots;
mod write;
mod xml;

/// What becomes of a part of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The VM has the same.
    Kept,
    /// The VM has something else in its place.
    Changed,
    /// The VM has nothing of it.
    Left,
}

impl Fate {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Changed => "changed",
            Self::Left => "left",
        }
    }
}

/// A part of a domain, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Which: `memory`, `disk sda`.
    pub what: String,
    /// What becomes of it.
    pub fate: Fate,
    /// What it is, or why it is not.
    pub how: String,
}
