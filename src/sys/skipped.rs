//! What a unit test says that cannot run here.

use std::fs::OpenOptions;
use std::io::Write;

/// Says that a test is left out, and why, where the runner of tests shows it.
pub(crate) fn skipped(why: &str) {
    // What the standard library prints in a test is kept back while that passes.
    if let Ok(mut error) = OpenOptions::new().append(true).open("/dev/stderr") {
        let _ = writeln!(error, "SKIPPED: {why}");
    }
}
