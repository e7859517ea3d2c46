//! What `--operations` and `--enable` mean.

use super::operations::{OPERATIONS, Operation};
use crate::error::{Error, Result};

/// What `--operations` and `--enable` say, as names in the order of the table.
pub(crate) fn select(operations: Option<&str>, enable: Option<&str>) -> Result<Vec<String>> {
    let defaults =
        || OPERATIONS.iter().filter(|operation| operation.default).map(|operation| operation.name);
    let mut wanted: Vec<&str> = match (operations, enable) {
        (Some(_), Some(_)) => {
            return Err(Error::usage("--operations and --enable exclude each other"));
        }
        (None, None) => defaults().collect(),
        // What is only taken away is taken away from something.
        (Some(list), None) if list.trim_start().starts_with('-') => defaults().collect(),
        (None, Some(list)) if list.split(',').any(|word| word.trim().starts_with('-')) => {
            return Err(Error::usage("--enable names what is done, and nothing else is")
                .hint("to leave something out: --operations defaults,-NAME"));
        }
        _ => Vec::new(),
    };
    for word in operations
        .or(enable)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let (remove, name) = match word.strip_prefix('-') {
            Some(name) => (true, name),
            None => (false, word),
        };
        let names: Vec<&str> = match name {
            "all" => OPERATIONS.iter().map(|operation| operation.name).collect(),
            "defaults" => defaults().collect(),
            name => vec![find(name)?.name],
        };
        if remove {
            wanted.retain(|wanted| !names.contains(wanted));
        } else {
            wanted.extend(names);
        }
    }
    if wanted.is_empty() {
        return Err(Error::usage("no operation is left: there is nothing to do")
            .hint("see them: cowhand seal --list-operations"));
    }
    let chosen =
        OPERATIONS.iter().map(|operation| operation.name).filter(|name| wanted.contains(name));
    Ok(chosen.map(str::to_owned).collect())
}

/// The operation of that name.
pub(crate) fn find(name: &str) -> Result<&'static Operation> {
    OPERATIONS.iter().find(|operation| operation.name == name).ok_or_else(|| {
        let mut near: Vec<(usize, &str)> = OPERATIONS
            .iter()
            .map(|operation| (distance(name, operation.name), operation.name))
            .collect();
        near.sort_unstable();
        let names: Vec<&str> = near.iter().take(3).map(|(_, name)| *name).collect();
        Error::usage(format!("there is no operation {name:?}"))
            .hint(format!("the nearest names: {}", names.join(", ")))
            .hint("see them all: cowhand seal --list-operations")
    })
}

/// How many letters have to be changed, added or left out (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_adds_and_takes_away_and_keeps_the_order_of_the_table() {
        assert_eq!(
            select(Some("machine-id,abrt-data"), None).expect("both"),
            ["abrt-data", "machine-id"]
        );
        let most = select(Some("defaults,-logfiles,fs-uuids"), None).expect("most");
        assert!(!most.contains(&"logfiles".to_owned()) && most.contains(&"fs-uuids".to_owned()));
        assert_eq!(
            select(None, None).expect("defaults").last().map(String::as_str),
            Some("machine-id")
        );
        assert_eq!(select(Some("all"), None).expect("all").len(), OPERATIONS.len());
        assert!(select(Some("defaults,-defaults"), None).is_err());
        assert!(select(None, Some("utmp,-logfiles")).is_err());
        assert_eq!(
            select(Some("-logfiles"), None).expect("less"),
            select(Some("defaults,-logfiles"), None).expect("same")
        );
        let error = select(None, Some("ssh-hostkey")).expect_err("a slip");
        assert!(error.hints()[0].contains("ssh-hostkeys"), "{:?}", error.hints());
    }
}
