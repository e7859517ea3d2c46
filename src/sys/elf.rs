//! What of a program's file is loaded when it runs (`elf(5)`): the rest, symbols and debugging
//! information, lies behind it.

/// The part of an ELF file that is needed to run it; all of it where that cannot be told.
pub(crate) fn loadable(program: &[u8]) -> Vec<u8> {
    program[..end(program).unwrap_or(program.len())].to_vec()
}

fn end(program: &[u8]) -> Option<usize> {
    let number = |at: usize, bytes: usize| {
        let mut value = [0; 8];
        value.get_mut(..bytes)?.copy_from_slice(program.get(at..at + bytes)?);
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    // 64 bits, little endian.
    if program.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut end = table.checked_add(size.checked_mul(count)?)?;
    for header in (0..count).map(|index| table + index * size) {
        end = end.max(number(header + 8, 8)?.checked_add(number(header + 32, 8)?)?);
    }
    (end <= program.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_its_symbols_still_runs() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::current_exe().expect("this program");
        let whole = std::fs::read(path).expect("its file");
        let part = loadable(&whole);
        assert!(part.len() < whole.len(), "nothing was left out");
        let file = tempfile::Builder::new().tempfile().expect("a file");
        std::fs::write(file.path(), part).expect("written");
        let program = file.into_temp_path();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).expect("a mode");
        let listed = std::process::Command::new(&program).arg("--list").output().expect("it runs");
        assert!(listed.status.success());
    }

    #[test]
    fn rubbish_is_left_whole() {
        for rubbish in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01", &[0xff; 100]] {
            assert_eq!(loadable(rubbish), rubbish);
        }
    }
}
