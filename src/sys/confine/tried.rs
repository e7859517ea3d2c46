//! What this host can do, by trying it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

use super::super::cgroup;
use super::networks::{Destinations, Networks};
use super::{Confinement, NO_GROUP};

/// Does this kernel have Landlock, and has it been switched on?
pub(crate) fn has_landlock() -> bool {
    let asked = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    asked.handle_access(AccessFs::Execute).and_then(Ruleset::create).is_ok()
}

/// Runs `program --version`, confined as strictly as can be. Where that does not work, the reason.
pub(crate) fn strictly(program: &Path) -> Option<String> {
    let confinement = Confinement::new(true).saving_memory();
    match version(&confinement, program) {
        Ok(Some(0)) => None,
        Ok(_) => Some(format!("{} --version fails when it is confined", program.display())),
        Err(error) => Some(confinement.refusal(&error).unwrap_or_else(|| error.to_string())),
    }
}

/// Why this host filters no destinations; `None`: it does. The program begins in a control group
/// whose destinations are filtered, and is confined otherwise as far as this host can.
pub(crate) fn destinations(program: &Path) -> Option<String> {
    let group = cgroup::planned(&format!("try-{}", std::process::id()));
    let networks = Networks::To { destinations: Destinations::default(), group: group.clone() };
    let confinement = Confinement::new(false).with_networks(networks).only_filtered();
    let tried = version(&confinement, program);
    group.iter().for_each(|group| cgroup::remove(group));
    let error = tried.err()?;
    match error.raw_os_error() {
        Some(code) if confinement.is_for_destinations(&error) => {
            Some(io::Error::from_raw_os_error(code - NO_GROUP).to_string())
        }
        // Another reason that the kernel gave.
        Some(_) => None,
        None => Some(error.to_string()),
    }
}

/// What `program --version` exits with, confined.
fn version(confinement: &Confinement, program: &Path) -> io::Result<Option<i32>> {
    let mut command = Command::new(program);
    command.env_clear().arg("--version").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    confinement.start(command, |_| ()).and_then(|program| program.wait())
}

#[cfg(test)]
mod tests {
    use super::super::super::skipped::skipped;
    use super::*;

    #[test]
    fn whether_destinations_are_filtered_is_told_apart_from_all_else() {
        let program = Path::new("/bin/true");
        if let Some(why) = destinations(program) {
            return skipped(&why);
        }
        // That it cannot be run says nothing of this host.
        assert_eq!(destinations(Path::new("/no/such/program")), None);
        let left = cgroup::planned(&format!("try-{}", std::process::id())).expect("a group");
        assert!(!left.exists());
    }
}
