//! The seed as a file system: FAT, labelled `CIDATA`, by which cloud-init finds it.

use std::io::{Cursor, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use crate::error::{Error, Result};

/// The label, filled up with spaces as FAT wants it.
const LABEL: &[u8; 11] = b"CIDATA     ";
/// Bytes of the disk: room for the longest documents ([`super::request::LONGEST`]), which are at
/// most four.
const SIZE: usize = 1 << 20;

/// The bytes of a disk with these files in its only directory. The same files give the same bytes.
pub(crate) fn of(files: &[(&str, String)]) -> Result<Vec<u8>> {
    let failed =
        |error: std::io::Error| Error::failed("cannot make the seed for cloud-init").because(error);
    let mut disk = Cursor::new(vec![0; SIZE]);
    let options =
        FormatVolumeOptions::new().volume_label(*LABEL).volume_id(0).fat_type(FatType::Fat12);
    format_volume(&mut disk, options).map_err(failed)?;
    disk.set_position(0);
    let system = FileSystem::new(&mut disk, FsOptions::new()).map_err(failed)?;
    for (name, text) in files {
        let mut file = system.root_dir().create_file(name).map_err(failed)?;
        file.truncate().and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
    }
    system.unmount().map_err(failed)?;
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(image: Vec<u8>, name: &str) -> String {
        let system = FileSystem::new(Cursor::new(image), FsOptions::new()).expect("a file system");
        let mut text = String::new();
        system
            .root_dir()
            .open_file(name)
            .expect("a file")
            .read_to_string(&mut text)
            .expect("its text");
        text
    }

    #[test]
    fn what_is_put_in_comes_out_under_its_label_and_is_the_same_each_time() {
        for length in [0, 1, 512, 513, crate::cloudinit::request::LONGEST] {
            let files =
                [("user-data", "x".repeat(length)), ("meta-data", "instance-id: 1\n".to_owned())];
            let image = of(&files).expect("an image");
            assert!(image == of(&files).expect("an image"), "{length}");
            let system = FileSystem::new(Cursor::new(image.clone()), FsOptions::new())
                .expect("a file system");
            assert_eq!(
                system.read_volume_label_from_root_dir().expect("a label").as_deref(),
                Some("CIDATA")
            );
            assert_eq!(system.volume_label(), "CIDATA");
            drop(system);
            for (name, text) in &files {
                assert!(read(image.clone(), name) == *text, "{name} of {length}");
            }
        }
    }
}
