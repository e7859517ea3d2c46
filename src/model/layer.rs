//! Layers: one image file of the pool each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The image formats a layer may have, by QEMU's driver names. Overlays are always qcow2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Format {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
    Vpc,
}

impl Format {
    /// Every format there is.
    pub const ALL: [Self; 6] =
        [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhdx, Self::Vdi, Self::Vpc];

    /// QEMU's driver name, which is also the file name's extension.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Vpc => "vpc",
        }
    }

    /// Has QEMU a check for it (`qemu-img check`)?
    pub fn can_be_checked(self) -> bool {
        !matches!(self, Self::Raw | Self::Vpc)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == text).ok_or_else(|| {
            Error::usage(format!("{text:?} is not an image format that is supported"))
                .hint(format!("formats: {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// The identity of a layer: ten random characters of `0-9 a-z`, never used again. Short enough for
/// QEMU's node names (31).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

impl LayerId {
    const LENGTH: usize = 10;

    /// A new identity.
    pub fn random() -> Self {
        let mut bits = uuid::Uuid::new_v4().as_u128();
        // The version and variant bits of a UUID are fixed; folding keeps the characters evenly
        // random.
        bits ^= bits >> 64;
        let digit = |i: usize| char::from_digit(((bits >> (i * 6)) % 36) as u32, 36).unwrap_or('0');
        Self((0..Self::LENGTH).map(digit).collect())
    }

    /// The identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LayerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() == Self::LENGTH
            && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::damaged(format!("{text:?} is not the id of a layer")))
    }
}

impl TryFrom<String> for LayerId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> Self {
        id.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A layer: its identity and the format of its file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Layer {
    /// Who it is.
    pub id: LayerId,
    /// What its file is; said to QEMU, never probed.
    pub format: Format,
}

impl Layer {
    /// A layer that does not exist yet.
    pub fn new(format: Format) -> Self {
        Self { id: LayerId::random(), format }
    }

    /// The name of its file in the pool, and in the header of the overlays that depend on it.
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.id, self.format)
    }

    /// The layer a file name of the pool stands for; `None` when it is not one.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (id, format) = name.split_once('.')?;
        Some(Self { id: id.parse().ok()?, format: format.parse().ok()? })
    }

    /// The node name of the layer's format driver in every QEMU that opens it.
    pub fn node(&self) -> String {
        format!("l-{}", self.id)
    }

    /// The node name of the file below it.
    pub fn file_node(&self) -> String {
        format!("f-{}", self.id)
    }

    /// The layer behind a format node's name.
    pub fn id_of_node(node: &str) -> Option<LayerId> {
        node.strip_prefix("l-")?.parse().ok()
    }

    /// The layer behind [`Self::file_node`].
    pub fn id_of_file_node(node: &str) -> Option<LayerId> {
        node.strip_prefix("f-")?.parse().ok()
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}
