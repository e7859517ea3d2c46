//! The lines of what `doctor` has found.

use crate::doctor::{Finding, Level};
use crate::output::{CYAN, GREEN, RED, YELLOW, message};

/// `cowhand doctor`: a line each, hints below; `quiet` leaves out what is as it should be.
pub fn findings(findings: &[Finding], quiet: bool) -> String {
    let mut text = String::new();
    for finding in
        findings.iter().filter(|finding| !quiet || finding.repaired || finding.level > Level::Info)
    {
        let style = match finding.level {
            Level::Ok => GREEN,
            Level::Info => CYAN,
            Level::Warn => YELLOW,
            Level::Fail => RED,
        };
        let vm = finding.vm.as_ref().map(|vm| format!("{vm}: ")).unwrap_or_default();
        let repaired = if finding.repaired { "repaired: " } else { "" };
        text.push_str(&format!(
            "{style}{:<5}{style:#} {:<12} {repaired}{vm}{}\n",
            finding.level.as_str(),
            finding.check,
            message(&finding.message, 19)
        ));
        if let Some(hint) = finding.hint.as_ref().filter(|_| !finding.repaired) {
            text.push_str(&format!("{:<19}{}\n", "", message(hint, 19)));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let repaired = findings.iter().filter(|finding| finding.repaired).count();
    let repaired = if repaired > 0 { format!(", {repaired} repaired") } else { String::new() };
    if !quiet {
        let (failed, warned) = (count(Level::Fail), count(Level::Warn));
        let warnings = if warned == 1 { "warning" } else { "warnings" };
        text.push_str(&format!("{failed} failed, {warned} {warnings}{repaired}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_counted_in_the_last_line_and_one_warning_is_one() {
        let finding = Finding {
            check: "chain",
            vm: None,
            level: Level::Warn,
            message: "odd".into(),
            hint: None,
            remedy: None,
            repaired: false,
        };
        let failed = Finding { level: Level::Fail, ..finding.clone() };
        for (all, line) in [
            (vec![], "0 failed, 0 warnings"),
            (vec![finding.clone()], "0 failed, 1 warning"),
            (vec![failed, finding.clone(), finding], "1 failed, 2 warnings"),
        ] {
            assert_eq!(findings(&all, false).lines().last(), Some(line));
        }
    }
}
