//! The host: is QEMU there, can it be confined, and does KVM really run a guest?

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::{Finding, confinement};
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::qemu::accel::Host;
use crate::qemu::img::Img;
use crate::qemu::probe::{self, Probe};
use crate::settings::Accel;
use crate::sys::command;

/// The oldest QEMU that the tests run on.
const OLDEST: [u32; 2] = [7, 2];
/// How long the probe guest may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What QEMU exits with when the probe guest has written [`WORD`] to the debug port: `(word << 1) |
/// 1` (`hw/misc/debugexit.c`).
const EXPECTED: i32 = ((WORD as i32) << 1) | 1;
const WORD: u8 = 0x10;
const PORT: u8 = 0xf4;

/// Looks at the host.
pub(super) async fn examine(context: &Context) -> Vec<Finding> {
    let probe = match Probe::get(context) {
        Ok(probe) => probe,
        Err(error) => {
            let hint = error.hints().first().cloned().unwrap_or_default();
            return vec![Finding::fail("qemu", error.full_message()).hint(hint)];
        }
    };
    let mut findings = vec![qemu(&probe), tools(context, &probe)];
    findings.extend(confinement::of_host(context, &probe));
    findings.push(kvm(context, &probe).await);
    findings
}

fn qemu(probe: &Probe) -> Finding {
    let about = format!("QEMU {} ({})", probe.version, probe.path.display());
    let number: Vec<u32> = probe.version.split('.').filter_map(|part| part.parse().ok()).collect();
    if number.iter().take(2).lt(OLDEST.iter()) {
        return Finding::warn("qemu", format!("{about} is older than what cowhand is tested with"))
            .hint("use QEMU 7.2 or newer: COWHAND_QEMU=/path/to/qemu-system-x86_64");
    }
    Finding::ok("qemu", about)
}

fn tools(context: &Context, probe: &Probe) -> Finding {
    if let Err(error) = Img::find(context) {
        return Finding::fail("tools", error.full_message()).hint(
            "install it: apt-get install qemu-utils; without it there are no internal snapshots, \
             checks and exports",
        );
    }
    match probe::storage_daemon(&probe.path, context) {
        Some(path) => {
            Finding::ok("tools", format!("qemu-img, and {} for stopped VMs", path.display()))
        }
        None => Finding::info(
            "tools",
            "qemu-storage-daemon is not installed: \
             merging layers of stopped VMs starts a whole QEMU",
        )
        .hint("apt-get install qemu-utils, or the package that has it"),
    }
}

/// Runs a guest: that `/dev/kvm` can be opened proves nothing.
async fn kvm(context: &Context, probe: &Probe) -> Finding {
    if context.settings.accel == Accel::Tcg {
        return Finding::info("kvm", "not tried: guests run emulated, as --accel tcg asks for");
    }
    let host = Host::observe();
    let bad = |message: String| {
        Finding::warn("kvm", message)
            .hint("guests run emulated, which is much slower: --accel auto says so at every start")
    };
    if let Err(why) = &host.kvm {
        return bad(format!("/dev/kvm cannot be used: {why}"));
    }
    match guest(&probe.path, host.hardware).await {
        Ok(None) if host.hardware => Finding::ok("kvm", "a probe guest ran under KVM"),
        Ok(None) => bad(
            "a probe guest ran under KVM, but the processor announces neither vmx nor svm: many \
             guests will not boot"
                .into(),
        ),
        Ok(Some(words)) => bad(format!("/dev/kvm opens, but a probe guest did not run: {words}")),
        Err(error) => bad(format!("a probe guest could not be tried: {}", error.full_message())),
    }
}

/// Five bytes of firmware at the reset vector that end QEMU with a known exit code. `None`: they
/// ran.
async fn guest(qemu: &Path, hardware: bool) -> Result<Option<String>> {
    let mut firmware = vec![0xf4; 64 << 10];
    let reset = firmware.len() - 16;
    // mov al, WORD; out PORT, al; hlt
    firmware[reset..reset + 5].copy_from_slice(&[0xb0, WORD, 0xe6, PORT, 0xf4]);
    let place = std::env::temp_dir();
    let mut file = tempfile::NamedTempFile::new().on("write in", &place)?;
    file.write_all(&firmware).on("write", file.path())?;
    let cpu = if hardware { "host" } else { "qemu64" };
    let device = format!("isa-debug-exit,iobase={PORT:#x},iosize=1");
    let bios = file.path().to_string_lossy().into_owned();
    let args = [
        "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "kvm",
        "-cpu", cpu,
    ];
    let rest = ["-m", "16", "-device", &device, "-bios", &bios, "-no-reboot"];
    let args: Vec<String> = args.into_iter().chain(rest).map(str::to_owned).collect();
    let output = match tokio::time::timeout(PATIENCE, command::outcome(qemu, &args)).await {
        Ok(output) => output.on("run", qemu)?,
        Err(_) => return Ok(Some(format!("it got nowhere in {} s", PATIENCE.as_secs()))),
    };
    if output.status.code() == Some(EXPECTED) {
        return Ok(None);
    }
    let words = command::tail(&output.stderr);
    Ok(Some(if words.is_empty() { output.status.to_string() } else { format!("\"{words}\"") }))
}
