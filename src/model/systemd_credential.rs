//! systemd credentials: secrets and settings that a guest's services are given by its machine
//! (`systemd.exec(5)`, "Credentials").

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};

/// All credentials of a VM have at most this many bytes together, since the tables of SMBIOS have
/// 64 KiB.
pub const LONGEST: usize = 16 << 10;
/// As many strings a table of SMBIOS can have.
const MOST: usize = 250;

/// Credentials by their names. Each is kept in base64, as it is written down and as the guest is
/// told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials(BTreeMap<String, String>);

impl Credentials {
    /// Those of a record.
    pub fn from_encoded(encoded: BTreeMap<String, String>) -> Result<Self> {
        let mut credentials = Self::default();
        for (name, text) in encoded {
            let bytes = STANDARD
                .decode(&text)
                .map_err(|_| Error::damaged(format!("credential {name} is not base64")))?;
            credentials.insert(&name, &bytes)?;
        }
        Ok(credentials)
    }

    /// Each name with its content in base64.
    pub fn encoded(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Adds one, or replaces it.
    pub fn insert(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty()
            || name.len() > 128
            || name.starts_with('.')
            || !name.chars().all(is_plain)
        {
            return Err(Error::usage(format!("{name:?} is not the name of a credential")).hint(
                "a name has 1 to 128 letters, digits, dots, dashes and underscores, and does not \
                 start with a dot",
            ));
        }
        let mut with_it = self.0.clone();
        with_it.insert(name.to_owned(), STANDARD.encode(content));
        let bytes: usize = with_it.iter().map(|(name, text)| name.len() + text.len() / 4 * 3).sum();
        if bytes > LONGEST || with_it.len() > MOST {
            return Err(Error::usage(format!(
                "credential {name} is too long: all of a VM have at most {} KiB together",
                LONGEST >> 10
            ))
            .hint("put larger data on a disk"));
        }
        self.0 = with_it;
        Ok(())
    }

    /// Takes one away.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_all_together_are_short() {
        let mut all = Credentials::default();
        for name in ["", ".", "..", "a/b", "a b", "a=b", "a:b", "é", &"x".repeat(129)] {
            assert!(all.insert(name, b"x").is_err(), "{name}");
        }
        all.insert("a.b-c_1", &[0, 255, b'\n']).expect("a credential");
        all.insert("large", &[1; 12 << 10]).expect("a credential");
        assert!(all.insert("more", &[1; 5 << 10]).is_err());
        all.insert("large", b"small").expect("it is replaced");
        all.insert("more", &[1; 5 << 10]).expect("there is room");
        assert_eq!(all.names().collect::<Vec<_>>(), ["a.b-c_1", "large", "more"]);
        let again = Credentials::from_encoded(all.encoded().clone()).expect("it is read");
        assert_eq!(again, all);
        all.remove("more");
        assert_eq!(all.names().count(), 2);
        assert!(Credentials::from_encoded(BTreeMap::from([("a".into(), "%".into())])).is_err());
    }
}
