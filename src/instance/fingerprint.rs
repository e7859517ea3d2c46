//! What a QEMU is like, as far as the memory of a guest depends on it: the one that runs, and the
//! one that would be started here and now.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{launch, sockets};
use crate::context::Context;
use crate::error::Result;
use crate::model::{Config, Fingerprint, Name, Record};
use crate::qemu::accel::{self, Chosen, Host};
use crate::qemu::cmdline::{self, StartMode};
use crate::qemu::probe::Probe;
use crate::qemu::process;
use crate::qemu::qmp::Qmp;
use crate::qemu::sockets::Sockets;
use crate::settings::Accel;

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
pub(crate) async fn fingerprint(qmp: &mut Qmp, config: &Config) -> Result<Fingerprint> {
    let kvm: Kvm = qmp.call("query-kvm", json!({})).await?;
    let host = Host::observe();
    let wanted = if kvm.enabled { Accel::Kvm } else { Accel::Tcg };
    let chosen = accel::choose(wanted, &Host { kvm: Ok(()), ..host.clone() })?;
    let peripherals: Vec<Property> =
        qmp.call("qom-list", json!({"path": "/machine/peripheral"})).await?;
    let devices = peripherals.into_iter().filter_map(|device| {
        let driver = device.r#type.strip_prefix("child<")?.strip_suffix('>')?.to_owned();
        Some(format!("{} {driver}", device.name))
    });
    Ok(print(qmp.version(), &chosen, &host, config, devices.collect()))
}

/// The network cards for which the running QEMU was told to begin its table of leases one address
/// earlier: [`Memory::leased`].
pub(crate) fn leased(qmp: &Qmp, config: &Config) -> Vec<usize> {
    qmp.pid()
        .map(process::argv)
        .map(|argv| cmdline::leased(&argv, config.nics.len()))
        .unwrap_or_default()
}

/// What the QEMU would be like that were started here and now.
pub(crate) fn planned(context: &Context, name: &Name, record: &Record) -> Result<Fingerprint> {
    let host = Host::observe();
    let chosen = accel::choose(context.settings.accel, &host)?;
    let sockets = Sockets::new(sockets::directory(context, record.uuid)?);
    let argv = launch::argv(
        context,
        name,
        record,
        &chosen,
        &sockets,
        StartMode::Incoming { leased: &[] },
    )?;
    let options = argv.windows(2).filter(|pair| pair[0] == "-device");
    let devices = options.filter_map(|pair| {
        let device: Value = serde_json::from_str(&pair[1]).ok()?;
        Some(format!("{} {}", device["id"].as_str()?, device["driver"].as_str()?))
    });
    Ok(print(&Probe::get(context)?.version, &chosen, &host, &record.config, devices.collect()))
}

fn print(
    qemu: &str,
    chosen: &Chosen,
    host: &Host,
    config: &Config,
    mut devices: Vec<String>,
) -> Fingerprint {
    devices.sort();
    Fingerprint {
        qemu: qemu.to_owned(),
        accel: chosen.accel.to_owned(),
        cpu: config.cpu.clone().unwrap_or_else(|| chosen.cpu.to_owned()),
        host_cpu: (chosen.accel == "kvm").then(|| host.model.clone()),
        devices,
    }
}
