//! Warm templates: a guest that was booted once, and whose memory clones go on from.

pub(crate) mod cool;
pub mod make;
pub(crate) mod resume;
pub(crate) mod steps;
