//! How much of a file has been written, told while somebody else writes it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::ui::Task;

/// How often a person is told how much of a file has been written.
const TOLD: Duration = Duration::from_millis(100);

/// Does `work`, which writes to `file`, and tells `task` how much of that is on the disk.
pub(super) async fn watched<T>(task: &dyn Task, file: &File, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut told = tokio::time::interval(TOLD);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = told.tick() => {
                // What QEMU has put in the place of the file is another one: then nothing moves.
                if let Ok(about) = file.metadata() {
                    task.update(about.blocks() * 512, 0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Told(AtomicU64);

    impl Task for Told {
        fn update(&self, done: u64, _: u64) {
            self.0.store(done, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn how_much_of_a_file_is_written_is_told_while_it_is_written() {
        let (told, file) = (Told::default(), tempfile::tempfile().expect("a file"));
        let mut writer = file.try_clone().expect("a descriptor");
        let work = async {
            for _ in 0..3 {
                let before = told.0.load(Ordering::Relaxed);
                // Not to be compressed by a file system that does.
                let noise: Vec<u8> = (0..1_u64 << 17)
                    .flat_map(|n| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
                    .collect();
                std::io::Write::write_all(&mut writer, &noise).expect("it is written");
                writer.sync_all().expect("it is on the disk");
                while told.0.load(Ordering::Relaxed) <= before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, watched(&told, &file, work)).await.expect("it is told");
        assert!(told.0.load(Ordering::Relaxed) >= 2 << 20);
    }
}
