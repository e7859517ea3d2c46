//! `vms/<name>/sums.json` of a template: the sum of the content of each of its layers, and when it
//! was noted. It goes where the template goes.

use std::collections::BTreeMap;
use std::io::Read;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Store, atomic, plain, schema};
use crate::error::{Error, IoContext, Result};
use crate::model::{LayerId, Name};

/// The longest file that is read, in bytes: a thousand layers take a fifth of that.
const LONGEST: u64 = 1 << 20;

/// The sums that were noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    schema: u32,
    /// By layer.
    pub layers: BTreeMap<LayerId, Sum>,
}

/// The sum of one layer ([`crate::layer::content`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sum {
    /// Hexadecimal digits.
    pub sha256: String,
    /// When it was noted.
    pub noted: Timestamp,
}

impl Sums {
    /// The version written today.
    const SCHEMA: u32 = 1;
}

impl Default for Sums {
    fn default() -> Self {
        Self { schema: Self::SCHEMA, layers: BTreeMap::new() }
    }
}

impl Store {
    /// What was noted of the template `name`; none if nothing was.
    pub fn sums(&self, name: &Name) -> Result<Sums> {
        let path = self.layout.sums(name);
        let Some(file) = plain::open(&path)? else { return Ok(Sums::default()) };
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text).on("read", &path)?;
        let damaged = |error: Error| match error.is_newer() {
            true => error,
            false => {
                Error::damaged(format!("{} cannot be read", path.display())).because_of(&error)
            }
        };
        schema::check_version(&text, Sums::SCHEMA)
            .and_then(|()| schema::parse(&text))
            .map_err(damaged)
    }

    /// Notes the sums of the template `name`.
    pub fn save_sums(&self, name: &Name, sums: &Sums) -> Result<()> {
        let text = serde_json::to_vec_pretty(sums)
            .map_err(|error| Error::failed("cannot note sums").because(error))?;
        atomic::write(&self.layout.sums(name), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::make_directory;

    #[test]
    fn what_is_noted_is_read_back_and_what_is_not_ours_is_an_error() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        let name: Name = "t".parse().expect("a name");
        make_directory(&store.layout.vm(&name)).expect("a directory");
        assert_eq!(store.sums(&name).expect("there are none"), Sums::default());
        let mut sums = Sums::default();
        sums.layers
            .insert(LayerId::random(), Sum { sha256: "0f".into(), noted: Timestamp::UNIX_EPOCH });
        store.save_sums(&name, &sums).expect("it is written");
        assert_eq!(store.sums(&name).expect("it is read"), sums);
        for text in ["", "{", "{\"schema\": 1}", "{\"schema\": 1, \"layers\": {\"../x\": {}}}"] {
            std::fs::write(store.layout.sums(&name), text).expect("a file");
            let error = store.sums(&name).expect_err("it is damaged");
            assert!(!error.is_newer(), "{text}: {}", error.full_message());
        }
        std::fs::write(store.layout.sums(&name), "{\"schema\": 2, \"sums\": []}").expect("a file");
        assert!(store.sums(&name).expect_err("it is newer").is_newer());
    }
}
