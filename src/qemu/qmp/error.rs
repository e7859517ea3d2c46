//! What can go wrong between us and QEMU.

use std::io;
use std::path::PathBuf;

use crate::error::Error;

/// An error of a QMP connection.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum QmpError {
    /// Nobody listens.
    #[error("cannot connect to QEMU at {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// No answer in time: the command may have been carried out or not.
    #[error(
        "QEMU did not answer {command} within {seconds} s; whether it was carried out is unknown"
    )]
    Timeout { command: String, seconds: u64 },
    /// QEMU hung up, most likely because it ended.
    #[error("QEMU closed the connection")]
    Closed,
    /// QEMU said no. Nothing was done.
    #[error("QEMU refused {command}: \"{message}\"")]
    Refused { command: String, class: String, message: String },
    /// The answer was not what the command's documentation promises.
    #[error("QEMU's answer to {command} cannot be read")]
    Decode { command: String, source: serde_json::Error },
    /// A block job ended with an error.
    #[error("QEMU's job {job} failed: \"{message}\"")]
    Job { job: String, message: String },
}

impl QmpError {
    /// Does QEMU not have the device that it was asked about?
    pub fn is_no_device(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "DeviceNotFound")
    }

    /// Does nobody listen, or was the connection closed by a QEMU that ends?
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Connect { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Closed => true,
            _ => false,
        }
    }

    /// Is the outcome unknown, because the command was sent and no answer came?
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Closed)
    }
}

impl From<QmpError> for Error {
    fn from(error: QmpError) -> Self {
        let message = error.to_string();
        let lifted = Error::qemu(message);
        match error {
            QmpError::Connect { source, .. } => lifted.because(source),
            QmpError::Decode { source, .. } => lifted.because(source),
            _ => lifted,
        }
    }
}
