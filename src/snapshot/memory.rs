//! Who can take up a guest's memory again: what the QEMU was like that wrote it, against the one that would be started now. And whether
//! there is room for it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::{Config, Fingerprint, Memory, Name, PointRef, Record, Snapshot, human};
use crate::qemu::accel::{self, Chosen, Host};
use crate::qemu::cmdline::{self, How, Sockets};
use crate::qemu::probe::Probe;
use crate::qemu::process;
use crate::qemu::qmp::Qmp;
use crate::settings::Accel;
use crate::sys::space;
use crate::vm::{cdrom, start};

/// What an overlay, the journal and the record take, at most.
const SMALL: u64 = 1 << 20;

#[derive(Deserialize)]
struct Kvm {
    enabled: bool,
}

#[derive(Deserialize)]
struct Property {
    name: String,
    r#type: String,
}

/// What the running QEMU is like.
pub async fn fingerprint(qmp: &mut Qmp, config: &Config) -> Result<Fingerprint> {
    let kvm: Kvm = qmp.call("query-kvm", json!({})).await?;
    let host = Host::observe();
    let wanted = if kvm.enabled { Accel::Kvm } else { Accel::Tcg };
    let chosen = accel::choose(wanted, &Host { kvm: Ok(()), ..host.clone() })?;
    let peripherals: Vec<Property> = qmp.call("qom-list", json!({"path": "/machine/peripheral"})).await?;
    let devices = peripherals.into_iter().filter_map(|device| {
        let driver = device.r#type.strip_prefix("child<")?.strip_suffix('>')?.to_owned();
        Some(format!("{} {driver}", device.name))
    });
    Ok(print(qmp.version(), &chosen, &host, config, devices.collect()))
}

/// The network cards for which the running QEMU was told to begin its table of leases one address earlier: [`Memory::leased`].
pub fn leased(qmp: &Qmp, config: &Config) -> Vec<usize> {
    qmp.pid().map(process::argv).map(|argv| cmdline::leased(&argv, config.nics.len())).unwrap_or_default()
}

/// What the QEMU would be like that were started here and now.
pub fn planned(context: &Context, name: &Name, record: &Record) -> Result<Fingerprint> {
    let host = Host::observe();
    let chosen = accel::choose(context.settings.accel, &host)?;
    let sockets = Sockets::new(start::runtime_directory(context, record.uuid)?);
    let argv = start::argv(context, name, record, &chosen, &sockets, How::Incoming { leased: &[] })?;
    let options = argv.windows(2).filter(|pair| pair[0] == "-device");
    let devices = options.filter_map(|pair| {
        let device: Value = serde_json::from_str(&pair[1]).ok()?;
        Some(format!("{} {}", device["id"].as_str()?, device["driver"].as_str()?))
    });
    Ok(print(&Probe::get(context)?.version, &chosen, &host, &record.config, devices.collect()))
}

fn print(qemu: &str, chosen: &Chosen, host: &Host, config: &Config, mut devices: Vec<String>) -> Fingerprint {
    devices.sort();
    Fingerprint {
        qemu: qemu.to_owned(),
        accel: chosen.accel.to_owned(),
        cpu: config.cpu.clone().unwrap_or_else(|| chosen.cpu.to_owned()),
        host_cpu: (chosen.accel == "kvm").then(|| host.model.clone()),
        devices,
    }
}

/// Refuses memory that the QEMU of here and now could not take up, naming the difference. `after` is the VM as it would be.
pub fn check(context: &Context, vm: &Name, after: &Record, snapshot: &Snapshot, memory: &Memory) -> Result<()> {
    let point = PointRef { vm: vm.clone(), snapshot: Some(snapshot.name.clone()) };
    let cold = format!("take back the disks alone, and let the guest boot: cowhand snapshot revert {point} --cold");
    cdrom::check_isos(&after.config).map_err(|error| error.hint(cold.clone()))?;
    if let Some(difference) = memory.writer.difference(&planned(context, vm, after)?) {
        return Err(Error::refused(format!("the memory of {point} cannot be taken up: {difference}")).hint(cold));
    }
    if let Some(image) = &memory.image {
        let path = context.store.layout.ram(image);
        let length = std::fs::metadata(&path).map(|about| about.len());
        if !length.is_ok_and(|length| length == memory.bytes) {
            let error = Error::damaged(format!("the memory of {point} is missing or cut short: {}", path.display()));
            return Err(error.hint(cold));
        }
    }
    Ok(())
}

/// Refuses a snapshot there is no room for: overlays, and memory of which no more can be written than QEMU has in use.
pub fn check_space(context: &Context, config: &Config, qemu: Option<i32>) -> Result<()> {
    let overlays = SMALL * (1 + config.writable().count() as u64);
    let memory = qemu.map_or(0, |pid| space::resident(pid).unwrap_or(u64::MAX).min(config.memory_bytes));
    let root = context.store.layout.root();
    let free = space::free(root).on("look at the file system of", root)?;
    if free >= overlays + memory {
        return Ok(());
    }
    let parts = if memory > 0 {
        format!(" (overlays {}, memory up to {})", human(overlays), human(memory))
    } else {
        String::new()
    };
    Err(Error::refused(format!(
        "{} has {} free, and the snapshot may need {}{parts}",
        root.display(),
        human(free),
        human(overlays + memory)
    ))
    .hint("make room: cowhand gc --older-than 0    empties the trash"))
}
