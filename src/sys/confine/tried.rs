//! What this host can do, by trying it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

use super::super::cgroup;
use super::networks::{Destinations, Networks};
use super::{Confinement, NO_GROUP};

/// Does this kernel have Landlock, and has it been switched on?
pub fn has_landlock() -> bool {
    let asked = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    asked.handle_access(AccessFs::Execute).and_then(Ruleset::create).is_ok()
}

/// Runs `program --version`, confined as strictly as can be. Where that does not work, the reason.
pub fn strictly(program: &Path) -> Option<String> {
    let confinement = Confinement::new(true).saving_memory();
    match version(&confinement, program) {
        Ok(Some(0)) => None,
        Ok(_) => Some(format!("{} --version fails when it is confined", program.display())),
        Err(error) => Some(confinement.refusal(&error).unwrap_or_else(|| error.to_string())),
    }
}

/// The same, to see whether its destinations are filtered here. What else this host lacks is no
/// reason.
pub fn destinations(program: &Path) -> Option<String> {
    let group = cgroup::planned(&format!("try-{}", std::process::id()));
    let networks = Networks::To { destinations: Destinations::default(), group: group.clone() };
    let confinement = Confinement::new(true).with_networks(networks);
    let tried = version(&confinement, program);
    group.iter().for_each(|group| cgroup::remove(group));
    match tried {
        Err(error) if confinement.is_for_destinations(&error) => {
            let code = error.raw_os_error().unwrap_or_default() - NO_GROUP;
            Some(io::Error::from_raw_os_error(code).to_string())
        }
        Err(error) if error.raw_os_error().is_none() => Some(error.to_string()),
        _ => None,
    }
}

/// What `program --version` exits with, confined.
fn version(confinement: &Confinement, program: &Path) -> io::Result<Option<i32>> {
    let mut command = Command::new(program);
    command.env_clear().arg("--version").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    confinement.start(command, |_| ()).and_then(|program| program.wait())
}
