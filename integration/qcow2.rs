//! The empty qcow2 images we write ourselves, judged by qemu-img.

use cowhand::layer::{create, qcow2};
use cowhand::model::Format;

use crate::lab::qemu_img;

#[test]
fn qemu_img_finds_nothing_wrong_with_our_empty_images() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base.raw");
    std::fs::File::create(&base).unwrap().set_len(1 << 20).unwrap();
    let sizes = [512, 1 << 20, (1 << 29) + 512, 20 << 30, 5 << 40, 63 << 40];
    for (bytes, backing) in sizes
        .into_iter()
        .flat_map(|bytes| [(bytes, None), (bytes, Some(("base.raw", Format::Raw)))])
    {
        let image = directory.path().join("image.qcow2");
        create::empty_at(&image, backing, bytes).unwrap();
        let path = image.to_str().unwrap();
        let check: serde_json::Value =
            serde_json::from_str(&qemu_img(&["check", "-f", "qcow2", "--output=json", path]))
                .unwrap();
        assert_eq!(
            (&check["check-errors"], check.get("leaks")),
            (&0.into(), None),
            "{bytes}: {check}"
        );
        let info: serde_json::Value =
            serde_json::from_str(&qemu_img(&["info", "-f", "qcow2", "--output=json", path]))
                .unwrap();
        assert_eq!(info["virtual-size"], bytes);
        assert_eq!(
            info.get("backing-filename").and_then(|name| name.as_str()),
            backing.map(|(name, _)| name)
        );
        assert_eq!(
            info.get("backing-filename-format").and_then(|name| name.as_str()),
            backing.map(|(_, format)| format.as_str())
        );
        // It takes writes at both ends and reads them back, through QEMU.
        let last = bytes - 512;
        let io = |command: String| {
            let output = std::process::Command::new("qemu-io")
                .args(["-f", "qcow2", "-c", &command, path])
                .output()
                .unwrap();
            assert!(
                output.status.success()
                    && !String::from_utf8_lossy(&output.stdout).contains("failed"),
                "{command}: {output:?}"
            );
        };
        io("write -P 7 0 512".to_owned());
        io(format!("write -P 7 {last} 512"));
        io(format!("read -P 7 {last} 512"));
        qemu_img(&["check", "-q", "-f", "qcow2", path]);
    }
}

/// What QEMU itself makes is never taken for damaged.
#[test]
fn nothing_is_wrong_with_the_header_of_any_image_of_qemu_img() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image.qcow2");
    let path = image.to_str().unwrap();
    let sound = |what: &str| {
        let bytes = std::fs::read(path).unwrap();
        let start = &bytes[..bytes.len().min(qcow2::HEADER_BYTES)];
        assert_eq!(qcow2::problem(start, bytes.len() as u64), None, "{what}");
    };
    let mut options = Vec::new();
    for cluster in ["512", "2M"] {
        options.extend(
            ["0.10", "1.1"].map(|version| format!("cluster_size={cluster},compat={version}")),
        );
    }
    let others = [
        "refcount_bits=1", "refcount_bits=64", "lazy_refcounts=on", "compression_type=zstd",
        "extended_l2=on",
    ];
    options.extend(others.into_iter().chain(["preallocation=metadata"]).map(str::to_owned));
    for options in &options {
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, path, "20M"]);
        sound(options);
        qemu_img(&["resize", "-q", "-f", "qcow2", path, "+30M"]);
        sound(&format!("{options}, larger"));
    }
    qemu_img(&["snapshot", "-c", "s", path]);
    sound("with an internal snapshot");
    qemu_img(&["snapshot", "-d", "s", path]);
    qemu_img(&["resize", "-q", "-f", "qcow2", "--shrink", path, "1M"]);
    sound("smaller");
    qemu_img(&["create", "-q", "-f", "qcow2", path, "0"]);
    sound("empty");
}
