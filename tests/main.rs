//! Fast tests: nothing here boots anything. Odd replies come from a fake QEMU and a fake guest
//! agent, answers of real ones from transcripts, and the looks of tables, trees and errors are held
//! by snapshots.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod agent;
mod architecture;
mod argv;
mod doctor;
mod fake;
mod fetch;
mod flatten;
mod journals;
mod json;
mod libvirt;
mod looks;
mod merge;
mod qmp;
mod quiesce;
mod schema;
mod sealing;
mod server;
mod switch;
mod windows;
