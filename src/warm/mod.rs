//! Warm templates: a guest that was booted once, and whose memory clones go on from.

pub mod cool;
pub mod make;
pub mod resume;
pub mod steps;
