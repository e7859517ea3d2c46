//! `/etc/fstab` (`fstab(5)`): what a system mounts where. Pure.

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// `UUID=…`, `LABEL=…`, `/dev/…`.
    pub source: String,
    /// Where.
    pub place: String,
    /// `ext4`, `vfat`, …
    pub kind: String,
    /// `defaults`, `subvol=@home`, …
    pub options: Vec<String>,
}

impl Entry {
    /// The value of an option such as `subvol=`.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }

    /// Is it there to be mounted from a disk of the guest's own, somewhere below the root?
    pub(super) fn is_on_disk(&self) -> bool {
        let disk = ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "/dev/"]
            .iter()
            .any(|start| self.source.starts_with(start));
        let kind = ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "msdos", "auto"]
            .contains(&self.kind.as_str());
        disk && kind
            && self.place.starts_with('/')
            && self.place != "/"
            && !self.options.iter().any(|option| option == "bind")
    }
}

/// The entries, in the order in which they have to be mounted.
pub(super) fn parse(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = text.lines().filter_map(line).collect();
    entries.sort_by_key(|entry| entry.place.matches('/').count() - usize::from(entry.place == "/"));
    entries
}

fn line(line: &str) -> Option<Entry> {
    let mut fields =
        line.split_whitespace().take_while(|field| !field.starts_with('#')).map(unescape);
    let (source, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
    let options = fields.next().unwrap_or_default().split(',').map(str::to_owned).collect();
    let source = source.replace('"', "");
    Some(Entry { source, place, kind, options })
}

/// Blanks are written `\040`.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_from_disks_is_found_in_order() {
        let text = "# comment\n\
                    /dev/mapper/vg-var_log /var/log xfs defaults 0 0\n\
                    UUID=\"1-2\" /boot/efi vfat umask=0077 0 1\n\
                    LABEL=root / ext4 ro 0 1\n\
                    UUID=3 none swap sw 0 0\n\
                    tmpfs /tmp tmpfs defaults\n\
                    server:/x /srv nfs defaults\n\
                    UUID=4 /home btrfs subvol=@home,compress=zstd:1 0 0\n\
                    /dev/vdb1 /my\\040data auto nofail\n";
        let entries = parse(text);
        let places: Vec<&str> = entries
            .iter()
            .filter(|entry| entry.is_on_disk())
            .map(|entry| entry.place.as_str())
            .collect();
        assert_eq!(places, ["/home", "/my data", "/var/log", "/boot/efi"]);
        let home = entries.iter().find(|entry| entry.place == "/home").expect("home");
        assert_eq!(home.option("subvol"), Some("@home"));
        assert_eq!(
            entries.iter().find(|entry| entry.place == "/boot/efi").expect("efi").source,
            "UUID=1-2"
        );
    }
}
