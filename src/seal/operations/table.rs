//! The table of operations.

mod logs;

use super::operation::Work::{
    DropLines, Empty, Remove, RemoveBut, RemoveFiles, Rewrite, Special as Does,
};
use super::operation::{Operation, Special as S, Work};

const fn op(name: &'static str, about: &'static str, work: &'static [Work]) -> Operation {
    Operation { name, about, default: true, sysprep: true, work }
}

const fn optional(name: &'static str, about: &'static str, work: &'static [Work]) -> Operation {
    Operation { name, about, default: false, sysprep: true, work }
}

const fn ours(name: &'static str, about: &'static str, work: &'static [Work]) -> Operation {
    Operation { name, about, default: true, sysprep: false, work }
}

/// All of them, in the order in which they are done.
pub const OPERATIONS: &[Operation] = &[
    op("abrt-data", "crash reports of ABRT", &[Remove("/var/spool/abrt/*")]),
    op(
        "backup-files",
        "left-over copies: *~ and *.bak below /etc, /root, /srv, /tmp, /var",
        &[Does(S::BackupFiles)],
    ),
    op("bash-history", "bash's history, of every user", &[Remove("~/.bash_history")]),
    op(
        "blkid-tab",
        "blkid's cache of block devices",
        &[
            Remove("/run/blkid/blkid.tab*"),
            Remove("/var/run/blkid.tab*"),
            Remove("/etc/blkid/blkid.tab*"),
            Remove("/etc/blkid.tab*"),
            Remove("/dev/.blkid.tab*"),
        ],
    ),
    optional(
        "ca-certificates",
        "certificates and keys that were installed by hand (Red Hat's places)",
        &[
            Remove("/etc/pki/CA/certs/*.crt"),
            Remove("/etc/pki/CA/crl/*.crt"),
            Remove("/etc/pki/CA/newcerts/*.crt"),
            Remove("/etc/pki/CA/private/*.key"),
            Remove("/etc/pki/tls/private/*.key"),
            RemoveBut("/etc/pki/tls/certs/*.crt", &["ca-bundle.crt", "ca-bundle.trust.crt"]),
        ],
    ),
    ours(
        "cloud-init",
        "cloud-init's memory of having run, its logs and the network configuration it wrote: a \
         clone runs it anew",
        &[
            Remove("/var/lib/cloud/*"),
            Remove("/var/log/cloud-init*.log"),
            Remove("/run/cloud-init"),
            Remove("/etc/netplan/50-cloud-init.yaml"),
            Remove("/etc/network/interfaces.d/50-cloud-init*"),
            Remove("/etc/NetworkManager/system-connections/cloud-init-*.nmconnection"),
            Remove("/etc/systemd/network/10-cloud-init-*"),
            Remove("/etc/sysconfig/network-scripts/ifcfg-*.cloud-init"),
        ],
    ),
    ours(
        "configuration-management",
        "the identity of Puppet, Salt and Chef agents: keys, certificates, ids",
        &[
            RemoveFiles("/etc/puppetlabs/puppet/ssl"),
            RemoveFiles("/opt/puppetlabs/puppet/cache"),
            RemoveFiles("/var/lib/puppet/ssl"),
            Remove("/etc/salt/minion_id"),
            Remove("/etc/salt/pki/minion/minion.p*"),
            Remove("/etc/salt/pki/minion/minion_master.pub"),
            RemoveFiles("/var/cache/salt/minion"),
            Remove("/etc/chef/client.pem"),
            Remove("/etc/cinc/client.pem"),
        ],
    ),
    op("crash-data", "kernel crash dumps", &[Remove("/var/crash/*"), Remove("/var/log/dump/*")]),
    op(
        "cron-spool",
        "users' crontabs and at jobs",
        &[
            RemoveFiles("/var/spool/cron"),
            RemoveFiles("/var/spool/at"),
            Remove("/var/spool/atjobs/*"),
            Remove("/var/spool/atspool/*"),
            Rewrite("/var/spool/cron/atjobs/.SEQ", "00000\n"),
            Rewrite("/var/spool/atjobs/.SEQ", "00000\n"),
            Rewrite("/var/spool/at/.SEQ", "00000\n"),
        ],
    ),
    op(
        "dhcp-client-state",
        "DHCP leases of dhclient, dhcpcd, NetworkManager and networkd",
        &[
            Remove("/var/lib/dhclient/*"),
            Remove("/var/lib/dhcp/*"),
            Remove("/var/lib/dhcpcd/*.lease*"),
            Remove("/var/lib/NetworkManager/*.lease"),
            Remove("/var/lib/NetworkManager/internal-*"),
            Remove("/var/lib/systemd/network/*"),
        ],
    ),
    op(
        "dhcp-server-state",
        "leases a DHCP server gave",
        &[Remove("/var/lib/dhcpd/*"), Remove("/var/lib/dhcp/dhcpd*"), Remove("/var/lib/kea/*")],
    ),
    ours(
        "dhcp-duid",
        "the DHCP unique identifier, by which a server knows a machine",
        &[
            Remove("/etc/dhcpcd.duid"),
            Remove("/var/lib/dhcpcd/duid"),
            Remove("/var/lib/dhcpcd/secret"),
            Remove("/etc/dhcpcd.secret"),
            Remove("/var/lib/dhcpv6/*duid*"),
            Remove("/var/lib/wicked/duid.xml"),
            Remove("/var/lib/wicked/iaid.xml"),
            Remove("/var/lib/wicked/lease-*"),
        ],
    ),
    op("dovecot-data", "Dovecot's run-time data", &[Remove("/var/lib/dovecot/*")]),
    optional(
        "firewall-rules",
        "firewall rules that were added by hand",
        &[
            Remove("/etc/sysconfig/iptables"),
            Remove("/etc/firewalld/services/*"),
            Remove("/etc/firewalld/zones/*"),
        ],
    ),
    optional(
        "flag-reconfiguration",
        "sets the flag that makes old Red Hat systems ask again at their next boot",
        &[Does(S::FlagReconfiguration)],
    ),
    optional(
        "fs-uuids",
        "gives ext4, xfs and btrfs file systems new UUIDs, and tells /etc/fstab and boot loaders",
        &[Does(S::FilesystemUuids)],
    ),
    op(
        "ipa-client",
        "the enrolment as a client of FreeIPA",
        &[
            Remove("/etc/ipa/ca.crt"),
            Remove("/etc/ipa/default.conf"),
            Remove("/var/lib/ipa-client/sysrestore/*"),
            Remove("/var/lib/ipa-client/pki/*"),
            Remove("/etc/pki/ca-trust/source/anchors/ipa-ca.crt"),
            Remove("/usr/local/share/ca-certificates/ipa-ca.crt"),
            Remove("/etc/pki/ca-trust/source/ipa.p11-kit"),
        ],
    ),
    optional(
        "kerberos-data",
        "a Kerberos server's data",
        &[RemoveBut("/var/kerberos/krb5kdc/*", &["kadm5.acl", "kdc.conf"])],
    ),
    op("kerberos-hostkeytab", "the host's Kerberos key", &[Remove("/etc/krb5.keytab")]),
    op("logfiles", "logs, the journal, and what installers left", logs::LOGS),
    op(
        "lvm-system-devices",
        "LVM's list of the devices it may use",
        &[Remove("/etc/lvm/devices/system.devices*")],
    ),
    op("lvm-uuids", "gives LVM physical volumes and volume groups new UUIDs", &[Does(S::LvmUuids)]),
    op("mail-spool", "users' mail", &[Remove("/var/spool/mail/*"), Remove("/var/mail/*")]),
    op(
        "net-hostname",
        "HOSTNAME and DHCP_HOSTNAME in Red Hat's interface files",
        &[DropLines("/etc/sysconfig/network-scripts/ifcfg-*", &["HOSTNAME=", "DHCP_HOSTNAME="])],
    ),
    op(
        "net-hwaddr",
        "HWADDR in Red Hat's interface files",
        &[DropLines("/etc/sysconfig/network-scripts/ifcfg-*", &["HWADDR="])],
    ),
    op(
        "net-nmconn",
        "NetworkManager's connections that are bound to a card or a UUID, on every distribution",
        &[Does(S::NmConnections)],
    ),
    ours(
        "network-manager",
        "NetworkManager's secret key, from which it derives addresses, and what it has seen",
        &[
            Remove("/var/lib/NetworkManager/secret_key"),
            Remove("/var/lib/NetworkManager/seen-bssids"),
            Remove("/var/lib/NetworkManager/timestamps"),
        ],
    ),
    op(
        "pacct-log",
        "process accounting",
        &[Empty("/var/account/pacct*"), Empty("/var/log/account/pacct*")],
    ),
    op(
        "package-manager-cache",
        "packages that were downloaded",
        &[
            RemoveFiles("/var/cache/apt/archives"),
            RemoveFiles("/var/cache/dnf"),
            RemoveFiles("/var/cache/libdnf5"),
            RemoveFiles("/var/cache/yum"),
            RemoveFiles("/var/cache/zypp"),
            Remove("/var/cache/apk/*"),
            RemoveFiles("/var/cache/pacman/pkg"),
        ],
    ),
    op(
        "pam-data",
        "PAM's memory of consoles and failed logins",
        &[
            Remove("/run/console/*"),
            Remove("/run/faillock/*"),
            Remove("/var/lib/faillock/*"),
            Remove("/run/sepermit/*"),
        ],
    ),
    op(
        "passwd-backups",
        "the copies of passwd, shadow and group that tools leave",
        &[
            Remove("/etc/passwd-"),
            Remove("/etc/shadow-"),
            Remove("/etc/group-"),
            Remove("/etc/gshadow-"),
            Remove("/etc/subuid-"),
            Remove("/etc/subgid-"),
        ],
    ),
    op(
        "puppet-data-log",
        "Puppet's logs and data",
        &[
            RemoveFiles("/var/log/puppet"),
            RemoveFiles("/var/log/puppetlabs"),
            RemoveFiles("/var/lib/puppet"),
        ],
    ),
    ours(
        "random-seed",
        "the random seed, which must not be the same twice, and systemd's credential secret",
        &[
            Remove("/var/lib/systemd/random-seed"),
            Remove("/var/lib/urandom/random-seed"),
            Remove("/var/lib/random-seed"),
            Remove("/var/lib/misc/random-seed"),
            Remove("/var/lib/seedrng/*"),
            Remove("/var/lib/systemd/credential.secret"),
            Does(S::EspRandomSeed),
        ],
    ),
    op(
        "rh-subscription-manager",
        "the registration with Red Hat's subscription service",
        &[
            Remove("/etc/pki/consumer/*"),
            Remove("/etc/pki/entitlement/*"),
            Remove("/var/lib/rhsm/*"),
        ],
    ),
    op(
        "rhn-systemid",
        "the registration with the Red Hat Network",
        &[Remove("/etc/sysconfig/rhn/systemid"), Remove("/etc/sysconfig/rhn/osad-auth.conf")],
    ),
    op("rpm-db", "RPM's host-specific database files", &[Remove("/var/lib/rpm/__db.*")]),
    op(
        "samba-db-log",
        "Samba's databases and logs",
        &[RemoveFiles("/var/log/samba"), RemoveFiles("/var/lib/samba")],
    ),
    ours(
        "service-identities",
        "the identity of services: iSCSI, NVMe, WireGuard, Tailscale, ZeroTier, k3s, kubelet, \
         snapd, Docker",
        &[
            Remove("/etc/iscsi/initiatorname.iscsi"),
            Remove("/etc/nvme/hostid"),
            Remove("/etc/nvme/hostnqn"),
            Remove("/etc/wireguard/*.key"),
            Remove("/etc/wireguard/*private*"),
            DropLines("/etc/wireguard/*.conf", &["PrivateKey"]),
            Remove("/var/lib/tailscale/*"),
            Remove("/var/lib/zerotier-one/identity.*"),
            Remove("/var/lib/zerotier-one/authtoken.secret"),
            Remove("/etc/rancher/node/password"),
            Remove("/var/lib/rancher/k3s/server/tls/*"),
            Remove("/var/lib/rancher/k3s/server/cred/*"),
            Remove("/var/lib/rancher/k3s/agent/*.k*"),
            Remove("/var/lib/rancher/k3s/agent/*.crt"),
            Remove("/var/lib/kubelet/pki/*"),
            Remove("/var/lib/snapd/device/*"),
            Remove("/etc/docker/key.json"),
            Remove("/var/lib/docker/engine-id"),
        ],
    ),
    ours(
        "shell-history",
        "the history of every other shell and tool that keeps one",
        &[
            Remove("~/.ash_history"),
            Remove("~/.sh_history"),
            Remove("~/.history"),
            Remove("~/.local/share/fish/fish_history"),
            Remove("~/.lesshst"),
            Remove("~/.viminfo"),
            Remove("~/.python_history"),
            Remove("~/.mysql_history"),
            Remove("~/.psql_history"),
            Remove("~/.sqlite_history"),
            Remove("~/.rediscli_history"),
            Remove("~/.node_repl_history"),
            Remove("~/.wget-hsts"),
            Remove("~/.sudo_as_admin_successful"),
        ],
    ),
    op(
        "smolt-uuid",
        "Smolt's hardware id",
        &[
            Remove("/etc/sysconfig/hw-uuid"),
            Remove("/etc/smolt/uuid"),
            Remove("/etc/smolt/hw-uuid"),
        ],
    ),
    op(
        "ssh-hostkeys",
        "the SSH server's keys; a clone makes its own at its first boot",
        &[Remove("/etc/ssh/*_host_*"), Remove("/etc/dropbear/dropbear_*_host_key")],
    ),
    op(
        "ssh-userdir",
        "users' private SSH keys and known hosts; authorized_keys and config stay",
        &[Does(S::SshUserDirectories)],
    ),
    Operation {
        name: "ssh-authorized-keys",
        about: "who may log in by SSH key, of every user",
        default: false,
        sysprep: false,
        work: &[Remove("~/.ssh/authorized_keys*")],
    },
    op(
        "sssd-db-log",
        "SSSD's databases and logs",
        &[Remove("/var/log/sssd/*"), Remove("/var/lib/sss/db/*")],
    ),
    op(
        "tmp-files",
        "temporary files",
        &[Remove("/tmp/*"), Remove("/tmp/.*"), Remove("/var/tmp/*"), Remove("/var/tmp/.*")],
    ),
    op(
        "udev-persistent-net",
        "names that old udevs gave to network cards",
        &[
            Remove("/etc/udev/rules.d/70-persistent-net.rules"),
            Remove("/etc/udev/rules.d/*-persistent-net.rules"),
        ],
    ),
    optional("user-account", "the accounts of people, with their homes", &[Does(S::UserAccounts)]),
    op("utmp", "who is logged in", &[Remove("/var/run/utmp"), Remove("/run/utmp")]),
    op("yum-uuid", "yum's id", &[Remove("/var/lib/yum/uuid")]),
    op(
        "zsh-history",
        "zsh's history, of every user",
        &[Remove("~/.zsh_history"), Remove("~/.zhistory")],
    ),
    ours(
        "hostname",
        "the host's name: a clone takes its own at its first boot",
        &[Does(S::Hostname), Remove("/etc/machine-info")],
    ),
    op("customize", "what the customise options say", &[Does(S::Customise)]),
    op("script", "the scripts of --run, --firstboot and their kin; done by `customize`", &[]),
    ours(
        "first-boot",
        "a unit that gives a clone host keys and a name at its first boot",
        &[Does(S::FirstBoot)],
    ),
    op(
        "machine-id",
        "the machine-id: empty, so that the next boot makes one; D-Bus' own becomes a link to it",
        &[Does(S::MachineId)],
    ),
];

#[cfg(test)]
mod tests;
