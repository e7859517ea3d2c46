//! Is a process still alive that said it would look after something? Its number alone does not
//! tell: numbers are used again.

use std::fs;

use super::boot;
use crate::model::Owner;

/// This process.
pub(crate) fn ours() -> Option<Owner> {
    let pid = std::process::id().cast_signed();
    Some(Owner { pid, started: started(pid)?, boot: boot::id()?, namespace: namespace()? })
}

/// Is it still there? A dead process that nobody has waited for is not.
pub(crate) fn is_alive(owner: &Owner) -> bool {
    if namespace().is_some_and(|ours| ours != owner.namespace) {
        // It cannot be seen from here.
        return boot::id().is_none_or(|boot| boot == owner.boot);
    }
    boot::id().is_none_or(|boot| boot == owner.boot) && started(owner.pid) == Some(owner.started)
}

fn namespace() -> Option<u64> {
    Some(std::os::unix::fs::MetadataExt::ino(&fs::metadata("/proc/self/ns/pid").ok()?))
}

fn started(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in brackets and may contain anything; the third is the state, the 22nd
    // the start.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_alive_and_others_of_our_number_are_not() {
        let ours = ours().expect("we are");
        assert!(is_alive(&ours));
        assert!(!is_alive(&Owner { started: ours.started + 1, ..ours.clone() }));
        assert!(!is_alive(&Owner { boot: "another".into(), ..ours.clone() }));
        let mut child = std::process::Command::new("true").spawn().expect("a child");
        let pid = child.id().cast_signed();
        let owner = started(pid).map(|started| Owner { pid, started, ..ours });
        child.wait().expect("it ends");
        assert!(owner.is_none_or(|owner| !is_alive(&owner)));
    }
}
