//! The memory of a guest as it was at a snapshot, and what a QEMU must be like to take it up again.

use super::LayerId;

/// The memory that belongs to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Its file; `None` when it lies in the disk image, beside an internal snapshot.
    pub image: Option<RamImage>,
    /// Bytes on disk.
    pub bytes: u64,
    /// The QEMU that wrote it.
    pub writer: Fingerprint,
    /// The network cards for which that QEMU's table of leases begins one address earlier (see
    /// [`super::Warm::leased`]). The table comes with the memory.
    pub leased: Vec<usize>,
}

/// A file with memory and device state, `ram/<id>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamImage {
    /// Its identity, as random as a layer's.
    pub id: LayerId,
    /// It is compressed with zstd.
    pub compressed: bool,
}

impl RamImage {
    /// A new one.
    pub fn new(compressed: bool) -> Self {
        Self { id: LayerId::random(), compressed }
    }

    /// The name of its file.
    pub fn file_name(&self) -> String {
        if self.compressed { format!("{}.zst", self.id) } else { self.id.to_string() }
    }
}

/// What has to be the same for memory to be taken up again. Machine type, memory size and disks are
/// not in here: they come back with the snapshot's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// QEMU's version.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// The CPU model as QEMU was told.
    pub cpu: String,
    /// The host's processor, where the guest sees it (KVM).
    pub host_cpu: Option<String>,
    /// The devices, `id driver` each, sorted.
    pub devices: Vec<String>,
}

impl Fingerprint {
    /// How `now` differs, in words; `None` when it does not.
    pub fn difference(&self, now: &Self) -> Option<String> {
        let fields = [
            ("QEMU", &self.qemu, &now.qemu),
            ("accelerator", &self.accel, &now.accel),
            ("CPU model", &self.cpu, &now.cpu),
        ];
        if let Some((what, then, now)) = fields.into_iter().find(|(_, then, now)| then != now) {
            return Some(format!("{what} was {then} and is {now}"));
        }
        if self.host_cpu != now.host_cpu {
            let words = |cpu: &Option<String>| cpu.clone().unwrap_or_else(|| "unknown".to_owned());
            return Some(format!(
                "the host's processor was {} and is {}",
                words(&self.host_cpu),
                words(&now.host_cpu)
            ));
        }
        if let Some(gone) = self.devices.iter().find(|device| !now.devices.contains(device)) {
            return Some(format!("it had the device {gone}"));
        }
        now.devices
            .iter()
            .find(|device| !self.devices.contains(device))
            .map(|new| format!("it had no device {new}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named() {
        let then = Fingerprint {
            qemu: "7.2.22".into(),
            accel: "kvm".into(),
            cpu: "host".into(),
            host_cpu: Some("Xeon".into()),
            devices: vec!["dev-vda virtio-blk-pci".into()],
        };
        assert_eq!(then.difference(&then), None);
        let changed = |change: &dyn Fn(&mut Fingerprint)| {
            let mut now = then.clone();
            change(&mut now);
            then.difference(&now).expect("a difference")
        };
        assert_eq!(changed(&|now| now.qemu = "10.0.2".into()), "QEMU was 7.2.22 and is 10.0.2");
        assert_eq!(changed(&|now| now.cpu = "max".into()), "CPU model was host and is max");
        assert_eq!(
            changed(&|now| now.host_cpu = None),
            "the host's processor was Xeon and is unknown"
        );
        assert_eq!(changed(&|now| now.devices.clear()), "it had the device dev-vda virtio-blk-pci");
        assert_eq!(changed(&|now| now.devices.push("x".into())), "it had no device x");
    }
}
