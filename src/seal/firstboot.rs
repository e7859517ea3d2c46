//! What a clone does by itself at its first boot: host keys and a name of its own, then the user's
//! first-boot scripts. systemd makes the machine-id and the random seed anew without being asked;
//! most distributions do nothing about the rest.
//!
//! The name comes from the host: cowhand puts the VM's name into the SMBIOS chassis asset tag
//! (`-smbios type=3,asset=…`), where every Linux shows it without a driver.

/// The script.
pub(crate) const SCRIPT_PATH: &str = "/usr/lib/cowhand/first-boot";
/// Where the user's scripts lie.
pub(crate) const SCRIPTS: &str = "/usr/lib/cowhand/first-boot.d";
/// A unit of systemd's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    /// Where it lies.
    pub path: &'static str,
    /// What makes systemd start it.
    pub wanted: &'static str,
    /// Its text.
    pub text: &'static str,
    /// While this file is there, it has still to run.
    pub flag: Option<&'static str>,
    /// It is installed where this is there.
    pub needs: &'static str,
}

/// The units. A name comes before everything that might use it; host keys before the SSH server,
/// and in nobody else's way, for making them takes a while; the user's scripts when there is a
/// network.
pub(crate) const UNITS: [Unit; 3] = [
    Unit {
        path: "/etc/systemd/system/cowhand-identity.service",
        wanted: "/etc/systemd/system/sysinit.target.wants/cowhand-identity.service",
        text: IDENTITY,
        flag: Some("/var/lib/cowhand/first-boot"),
        needs: "/etc",
    },
    Unit {
        path: "/etc/systemd/system/cowhand-host-keys.service",
        wanted: "/etc/systemd/system/multi-user.target.wants/cowhand-host-keys.service",
        text: HOST_KEYS,
        flag: Some("/var/lib/cowhand/host-keys"),
        needs: "/etc/ssh/sshd_config",
    },
    Unit {
        path: "/etc/systemd/system/cowhand-first-boot.service",
        wanted: "/etc/systemd/system/multi-user.target.wants/cowhand-first-boot.service",
        text: FIRST_BOOT,
        flag: None,
        needs: SCRIPTS,
    },
];

const FIRST_BOOT: &str = "\
[Unit]
Description=Run the first-boot scripts of this clone
ConditionDirectoryNotEmpty=/usr/lib/cowhand/first-boot.d
After=network-online.target cloud-init.service
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/lib/cowhand/first-boot scripts
TimeoutSec=infinity

[Install]
WantedBy=multi-user.target
";

const HOST_KEYS: &str = "\
[Unit]
Description=Make SSH host keys for this clone
DefaultDependencies=no
ConditionPathExists=/var/lib/cowhand/host-keys
After=local-fs.target systemd-remount-fs.service systemd-tmpfiles-setup.service
Conflicts=shutdown.target
Before=ssh.service ssh.socket sshd.service sshd.socket sshd-keygen.target shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/lib/cowhand/first-boot host-keys
TimeoutSec=600

[Install]
WantedBy=multi-user.target
";

const IDENTITY: &str = "\
[Unit]
Description=Give this clone a name of its own
DefaultDependencies=no
ConditionPathExists=/var/lib/cowhand/first-boot
After=local-fs.target systemd-remount-fs.service
Before=sysinit.target network-pre.target systemd-networkd.service NetworkManager.service \
                        cloud-init-local.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/lib/cowhand/first-boot identity
TimeoutSec=600

[Install]
WantedBy=sysinit.target
";

/// The script's text.
pub(crate) const SCRIPT: &str = concat!(
    r#"#!/bin/sh
# Put here when the template of this machine was sealed. Runs once, at the first boot of each clone.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

case "$1" in
    identity)
        # The name that the virtual machine has on its host.
        if [ ! -s /etc/hostname ] && read -r name < /sys/class/dmi/id/chassis_asset_tag; then
            case "$name" in 'No Asset Tag' | 'Not Specified' | "#,
    r#"'To Be Filled By O.E.M.') name= ;; esac
            name=$(printf %s "$name" | tr -c 'A-Za-z0-9.-' '-' | sed 's/^[-.]*//; s/[-.]*$//')
            if [ -n "$name" ]; then
                echo "$name" > /etc/hostname
                hostname "$name" 2>/dev/null || echo "$name" > /proc/sys/kernel/hostname
                grep -q '^127\.0\.1\.1' /etc/hosts 2>/dev/null || "#,
    r#"echo "127.0.1.1 $name" >> /etc/hosts
            fi
        fi
        rm -f /var/lib/cowhand/first-boot
        ;;
    host-keys)
        ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1 || ssh-keygen -A
        rm -f /var/lib/cowhand/host-keys
        ;;
    scripts)
        for script in /usr/lib/cowhand/first-boot.d/*; do
            [ -x "$script" ] || continue
            echo "first boot: $script"
            "$script"
            rm -f "$script"
        done
        ;;
    *)
        echo "usage: $0 identity|host-keys|scripts" >&2
        exit 2
        ;;
esac
"#
);
