//! How a store of the model came to be: VMs write, are snapshot, reverted and cloned, and forget.

use proptest::prelude::*;
use uuid::Uuid;

use super::super::*;
use super::model::{BLOCK, Part, World, name, volume};
use crate::model::{Disk, Fingerprint, Role};

/// A history.
#[derive(Debug, Clone)]
pub(crate) struct History {
    /// How many disks the first VM has.
    pub disks: usize,
    /// Its first disk is a raw file.
    pub raw: bool,
    /// Its last disk is only read.
    pub read_only: bool,
    /// It has variables of UEFI.
    pub nvram: bool,
    /// What happened, and three numbers that say where.
    pub events: Vec<(u8, usize, usize, usize)>,
}

impl History {
    /// The store at the end of it.
    pub(crate) fn world(&self) -> World {
        let mut world = World::default();
        self.found(&mut world);
        for (what, one, two, three) in &self.events {
            let vm = world.vm(*one);
            match what {
                0..8 => write(&mut world, &vm, *two, *three as u64),
                8..13 => snapshot(&mut world, &vm, two.is_multiple_of(4)),
                13..16 => go_back(&mut world, &vm, *two),
                16 | 17 => clone(&mut world, &vm, *two, false),
                18 => clone(&mut world, &vm, *two, true),
                19 | 20 => forget(&mut world, &vm, *two),
                21 => resize(&mut world, &vm, *two, *three as u64 % 5 + 1),
                22 => keep_inside(&mut world, &vm, *two, *three),
                _ => add_disk(&mut world, &vm, *two),
            }
        }
        world
    }

    fn found(&self, world: &mut World) {
        let text = include_bytes!("../../../../tests/fixtures/vm-v1.json");
        let mut record = crate::store::schema::parse_record(text).expect("a record");
        (record.snapshots, record.current) = (Vec::new(), None);
        record.config.disks.clear();
        for number in 0..self.disks {
            let format = if self.raw && number == 0 { Format::Raw } else { Format::Qcow2 };
            let mut disk = disk(world, &format!("vd{}", char::from(b'a' + number as u8)), format);
            disk.read_only = self.read_only && number > 0 && number + 1 == self.disks;
            record.config.disks.push(disk);
        }
        record.config.nvram = self.nvram.then(|| disk(world, "nvram", Format::Qcow2));
        world.records.insert(name("vm"), record);
    }
}

/// A new disk with some data.
fn disk(world: &mut World, target: &str, format: Format) -> Disk {
    let layer = Layer::new(format);
    world.make(&layer, None, 3);
    let value = world.number();
    world.held(&layer).blocks.extend([(0, value), (2, value)]);
    Disk::new(target, layer, 3 * BLOCK)
}

/// The guest writes to a disk.
fn write(world: &mut World, vm: &Name, number: usize, at: u64) {
    let value = world.number();
    let Some(disk) = volume(world.records.get_mut(vm).expect("a record"), number) else { return };
    let layer = disk.layer.clone();
    let held = world.held(&layer);
    let at = at % held.size;
    held.blocks.insert(at, value);
}

/// A snapshot that is about to be taken.
pub(crate) fn taking(world: &mut World, with_memory: bool) -> Taking {
    let image = with_memory.then(|| RamImage::new(false));
    let writer = Fingerprint {
        qemu: "7.2.22".to_owned(),
        accel: "kvm".to_owned(),
        cpu: "host".to_owned(),
        host_cpu: None,
        devices: Vec::new(),
    };
    world.images.extend(image.iter().map(|image| image.id.clone()));
    Taking {
        name: name(&format!("s{}", world.number())),
        description: String::new(),
        state: if with_memory { State::Running } else { State::Stopped },
        freeze: None,
        freeze_limit: None,
        memory: image.map(|image| Memory {
            image: Some(image),
            bytes: 1,
            writer,
            leased: Vec::new(),
        }),
        expires: None,
    }
}

fn carry_out(world: &mut World, vm: &Name, plan: &Plan) {
    plan.parts().0.iter().for_each(|step| world.apply(vm, step, Part::Whole));
}

fn snapshot(world: &mut World, vm: &Name, with_memory: bool) {
    let taking = taking(world, with_memory);
    let (_, plan) = take(&world.records[vm], &taking);
    carry_out(world, vm, &plan);
}

/// A snapshot of the VM by its number.
pub(crate) fn chosen(world: &World, vm: &Name, number: usize) -> Option<Snapshot> {
    let snapshots = &world.records[vm].snapshots;
    snapshots.get(number % snapshots.len().max(1)).cloned()
}

fn go_back(world: &mut World, vm: &Name, number: usize) {
    let Some(snapshot) = chosen(world, vm, number) else { return };
    let reverting = Reverting { live: false, memory: None, trash: "t".to_owned() };
    let (_, plan) = revert(&world.records[vm], &snapshot, &reverting);
    carry_out(world, vm, &plan);
}

/// Another VM, or a template, on the layers of a snapshot.
fn clone(world: &mut World, vm: &Name, number: usize, is_template: bool) {
    let Some(snapshot) = chosen(world, vm, number) else { return };
    let mut record = world.records[vm].clone();
    (record.snapshots, record.current, record.config) = (Vec::new(), None, snapshot.config);
    record.uuid = Uuid::new_v4();
    for disk in record.config.disks.iter_mut().chain(&mut record.config.nvram) {
        let layer = Layer::new(Format::Qcow2);
        world.make(&layer, Some(&disk.layer), disk.virtual_bytes / BLOCK);
        disk.layer = layer;
    }
    if is_template {
        record.role = Role::Template {
            frozen: record.created,
            sealed: false,
            stamps: Vec::new(),
            image: None,
        };
    }
    let name = name(&format!("c{}", world.number()));
    world.records.insert(name, record);
}

/// A snapshot loses its name, and its layers stay.
fn forget(world: &mut World, vm: &Name, number: usize) {
    let Some(snapshot) = chosen(world, vm, number) else { return };
    let after = without(&world.records[vm], &snapshot.name);
    world.records.insert(vm.clone(), after);
    let needed = world.reachable();
    world.layers.retain(|layer, _| needed.contains(layer));
}

fn resize(world: &mut World, vm: &Name, number: usize, size: u64) {
    let Some(disk) = volume(world.records.get_mut(vm).expect("a record"), number) else { return };
    disk.virtual_bytes = size * BLOCK;
    let layer = disk.layer.clone();
    world.grow(&layer, size);
    let held = world.held(&layer);
    held.size = size;
    held.blocks.retain(|at, _| *at < size);
}

/// An internal snapshot, or memory behind the end of the disk.
fn keep_inside(world: &mut World, vm: &Name, number: usize, memory: usize) {
    let value = world.number();
    let Some(disk) = volume(world.records.get_mut(vm).expect("a record"), number) else { return };
    if disk.layer.format != Format::Qcow2 {
        return;
    }
    let layer = disk.layer.clone();
    let held = world.held(&layer);
    match memory.is_multiple_of(2) {
        true => drop(held.blocks.insert(held.size, value)),
        false => held.inner.push((held.size, held.blocks.clone())),
    }
}

fn add_disk(world: &mut World, vm: &Name, number: usize) {
    let target = format!("vd{}", char::from(b'd' + (number % 4) as u8));
    if world.records[vm].config.disks.iter().any(|disk| disk.target == target) {
        return;
    }
    let disk = disk(world, &target, Format::Qcow2);
    world.records.get_mut(vm).expect("a record").config.disks.push(disk);
}

/// What a world was made by: the form of its first VM, and what happened then.
pub(crate) fn histories() -> impl Strategy<Value = History> {
    let happened = (0_u8..24, 0_usize..64, 0_usize..64, 0_usize..64);
    (1_usize..4, any::<[bool; 3]>(), prop::collection::vec(happened, 0..40)).prop_map(
        |(disks, [raw, read_only, nvram], events)| History { disks, raw, read_only, nvram, events },
    )
}
