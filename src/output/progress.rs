//! The library's words to a person: notes and warnings on standard error, progress bars that vanish
//! in a pipe.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::model::printable;
use crate::ui::{Task, Ui};

/// How long a task goes unseen: most are over before.
const BAR: &str = "{msg} [{bar:24}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
const SPINNER: &str = "{spinner} {msg} {some_bytes}";

/// Shows notes, warnings and progress on standard error.
#[derive(Debug)]
pub struct Terminal {
    /// Only warnings.
    pub quiet: bool,
}

impl Ui for Terminal {
    fn note(&self, message: &str) {
        if !self.quiet {
            super::to_stderr(&format!("{}\n", super::message(message, 2)));
        }
    }

    fn warn(&self, message: &str) {
        super::to_stderr(&format!("{}\n", super::warning(message)));
    }

    fn task(&self, label: &str, total: u64) -> Box<dyn Task> {
        let visible = super::stderr_is_terminal() && !self.quiet;
        let target =
            if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target)
            .with_message(printable::line(label).into_owned());
        bar.set_style(style(total));
        bar.enable_steady_tick(Duration::from_millis(100));
        Box::new(Bar(bar))
    }
}

fn style(total: u64) -> ProgressStyle {
    let template = if total == 0 { SPINNER } else { BAR };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("some_bytes", some_bytes)
}

/// The bytes done; of a task that counts none, nothing.
fn some_bytes(state: &ProgressState, text: &mut dyn Write) {
    if state.pos() > 0 {
        let _ = write!(text, "{}", HumanBytes(state.pos()));
    }
}

struct Bar(ProgressBar);

impl Task for Bar {
    fn update(&self, done: u64, total: u64) {
        if total != 0 && self.0.length() != Some(total) {
            self.0.set_length(total);
            self.0.set_style(style(total));
        }
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
