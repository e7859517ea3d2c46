//! Well-known cloud images: where they are, and where their checksums are. A file `catalogue.toml`
//! in the store adds entries, and replaces those of the same name and version.

use serde::Deserialize;

use super::source;
use crate::error::{Error, Result};
use crate::fetch::digest::Digest;
use crate::fetch::http;
use crate::model::Format;
use crate::store::{Store, plain};

const BUILT_IN: &str = include_str!("catalogue.toml");

/// An image of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Of what.
    pub name: String,
    /// Which version.
    pub version: String,
    /// Other words for the version.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Where it is.
    pub url: String,
    /// Where its checksum is.
    #[serde(default)]
    pub sums: Option<String>,
    /// Its SHA-256 checksum.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Its SHA-512 checksum.
    #[serde(default)]
    pub sha512: Option<String>,
    /// Its format, once decompressed.
    pub format: Format,
    /// The user that cloud-init makes in it by itself.
    #[serde(default)]
    pub user: Option<String>,
}

impl Entry {
    /// The checksum that is in the catalogue itself.
    pub fn digest(&self) -> Result<Option<Digest>> {
        match (&self.sha512, &self.sha256) {
            (Some(hex), _) => Digest::sha512(hex).map(Some),
            (None, Some(hex)) => Digest::sha256(hex).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Where it is, without a query, which may be a secret.
    pub fn shown_url(&self) -> String {
        shown(&self.url)
    }

    /// Where its checksum is, likewise.
    pub fn shown_sums(&self) -> Option<String> {
        self.sums.as_deref().map(shown)
    }

    fn is(&self, name: &str, version: &str) -> bool {
        self.name == name
            && (self.version == version || self.aliases.iter().any(|alias| alias == version))
    }
}

fn shown(address: &str) -> String {
    source::url(address)
        .map_or_else(|_| "an address that cannot be used".to_owned(), |url| http::shown(&url))
}

/// All that are known.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    #[serde(default, rename = "image")]
    entries: Vec<Entry>,
}

impl Catalogue {
    /// What is built in, with what the store has.
    pub fn load(store: &Store) -> Result<Self> {
        let path = store.layout.catalogue();
        let mut all = Self::parse(BUILT_IN)
            .map_err(|why| Error::failed("the catalogue cannot be read").because(why))?;
        let Some(text) = plain::read(&path)? else { return Ok(all) };
        let own = String::from_utf8(text)
            .map_err(|error| error.to_string())
            .and_then(|text| Self::parse(&text));
        let own = own.map_err(|why| {
            Error::usage(format!("{} cannot be read", path.display())).because(why)
        })?;
        all.entries.retain(|entry| {
            !own.entries
                .iter()
                .any(|own| (&own.name, &own.version) == (&entry.name, &entry.version))
        });
        all.entries.splice(0..0, own.entries);
        Ok(all)
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// All of them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The one that `name:version` stands for.
    pub fn find(&self, name: &str, version: &str) -> Result<&Entry> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.is(name, version)) {
            return Ok(entry);
        }
        let versions: Vec<String> = self
            .entries
            .iter()
            .filter(|entry| entry.name == name)
            .map(|entry| format!("{name}:{}", entry.version))
            .collect();
        let error = Error::not_found(format!("the catalogue has no image {name}:{version}"));
        Err(match versions.is_empty() {
            true => error.hint("cowhand image ls --catalogue    lists all it has"),
            false => error.hint(format!("it has: {}", versions.join(", "))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    #[test]
    fn each_built_in_entry_can_be_asked_for_and_is_verified_over_https() {
        let all = Catalogue::parse(BUILT_IN).expect("it is TOML");
        assert!(all.entries.len() > 10);
        for entry in &all.entries {
            let words = [&entry.name, &entry.version].into_iter().chain(&entry.aliases);
            for word in words {
                word.parse::<Name>().expect("a word that can be typed");
            }
            assert_eq!(entry.url.get(..8), Some("https://"), "{entry:?}");
            source::name(&source::file_name(&source::url(&entry.url).expect("an address")))
                .expect("a name");
            let sums = entry.sums.as_ref().expect("each has a checksum file");
            assert_eq!(source::url(sums).expect("an address").scheme(), "https");
            assert_eq!(all.find(&entry.name, &entry.version).expect("it is there"), entry);
            for alias in &entry.aliases {
                assert_eq!(all.find(&entry.name, alias).expect("it is there"), entry);
            }
        }
    }

    #[test]
    fn the_store_adds_entries_and_replaces_those_that_are_built_in() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        let built_in = Catalogue::load(&store).expect("it can be read").entries.len();
        let own = "[[image]]\n\
                   name = \"debian\"\n\
                   version = \"12\"\n\
                   url = \"https://mirror/x.qcow2\"\n\
                   format = \"qcow2\"\n\
                   [[image]]\n\
                   name = \"ours\"\n\
                   version = \"1\"\n\
                   url = \"https://mirror/y.raw.zst\"\n\
                   format = \"raw\"\n";
        std::fs::write(store.layout.catalogue(), own).expect("a file");
        let all = Catalogue::load(&store).expect("it can be read");
        assert_eq!(all.entries.len(), built_in + 1);
        assert_eq!(all.find("debian", "12").expect("it is there").url, "https://mirror/x.qcow2");
        assert_eq!(all.find("ours", "1").expect("it is there").format, Format::Raw);
        let error = all.find("debian", "99").expect_err("there is none");
        assert!(error.hints()[0].contains("debian:12"), "{error:?}");
        for wrong in [
            "[[image]]\nname = 1\n",
            "x = 1\n",
            "[[image]]\nname = \"a\"\nversion = \"1\"\nurl = \"u\"\nformat = \"floppy\"\n",
        ] {
            std::fs::write(store.layout.catalogue(), wrong).expect("a file");
            let error = Catalogue::load(&store).expect_err(wrong);
            assert!(error.message().contains("catalogue.toml"), "{error:?}");
        }
    }
}
