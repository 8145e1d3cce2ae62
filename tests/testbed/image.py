# SPDX-License-Identifier: Apache-2.0
"""The image of a bare host: a minimal Debian or Ubuntu that boots systemd, made by mmdebstrap, so that no registry is needed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from docker import DockerClient

from testbed import LABEL, STATE, SetupError, engine, run, say

REPOSITORY = "h20-fleet/host"
PACKAGES = "systemd,systemd-sysv,dbus,kmod,procps,iproute2,openssh-server,sudo,python3,python3-apt,ca-certificates,curl"

# Runs in the new root. Host keys and the machine id are left to the first boot: every host has its own, as after a real installation.
# The background jobs of apt would take its lock at random moments and fetch the same lists once a host.
SETUP = """
useradd --create-home --groups adm --shell /bin/bash --uid 1000 ops
install -d -m 0700 -o ops -g ops /home/ops/.ssh
echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/ops
chmod 0440 /etc/sudoers.d/ops
echo 'LANG=C.UTF-8' > /etc/default/locale
rm -f /etc/ssh/ssh_host_*
: > /etc/machine-id
cat > /etc/systemd/system/ssh-host-keys.service <<UNIT
[Unit]
Description=OpenSSH host keys of this machine
Before=ssh.service ssh.socket
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes
[Install]
WantedBy=multi-user.target
UNIT
systemctl enable ssh-host-keys.service ssh.service
systemctl disable apt-daily.timer apt-daily-upgrade.timer
cat > /etc/systemd/system/testbed-hardware.service <<UNIT
[Unit]
Description=Show what the kernel of a real host shows
DefaultDependencies=no
Requires=testbed-hardware.socket
After=testbed-hardware.socket
Before=systemd-journald.service sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
StandardOutput=null
ExecStart=/usr/libexec/testbed/hardware
[Install]
WantedBy=sysinit.target
UNIT
cat > /etc/systemd/system/testbed-hardware.socket <<UNIT
[Unit]
Description=Kernel messages of this host on their way to the journal
DefaultDependencies=no
Before=systemd-journald.service shutdown.target
Conflicts=shutdown.target
[Socket]
ListenFIFO=/dev/kmsg
SocketMode=0600
RemoveOnStop=yes
[Install]
WantedBy=sysinit.target
UNIT
install -d /usr/libexec/testbed
cat > /usr/libexec/testbed/hardware <<'SCRIPT'
#!/bin/sh
# The engine masks /sys/firmware, and nobody can add to /sys/class but by another one.
set -e
mount --bind /etc/testbed/sys/firmware /sys/firmware
mkdir -p /run/testbed/class
cd /sys/class
find . ! -path ./infiniband ! -path './infiniband/*' '(' -type d -o -type l ')' -print0 | tar --create --null --no-recursion --files-from - |
    tar --extract --directory /run/testbed/class
ln -s /etc/testbed/sys/class/infiniband /run/testbed/class/infiniband
mount --bind /run/testbed/class /sys/class
# The engine names itself as the way out even where it lets nothing through.
[ ! -e /etc/testbed/isolated ] || ip route flush exact 0.0.0.0/0
SCRIPT
chmod 0755 /usr/libexec/testbed/hardware
systemctl enable testbed-hardware.service testbed-hardware.socket
systemctl mask getty.target console-getty.service systemd-remount-fs.service sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount
"""

# Runs after it. The packages of the running kernel, $KERNEL: its image and the metapackage that follows it are installed, the headers wait in a source. They
# weigh nothing. The epoch puts the metapackages before those of the distribution, which know another kernel.
KERNEL_SETUP = """
flavour=amd64
! grep -q '^ID=ubuntu' /etc/os-release || flavour=generic
place=/usr/share/testbed/kernel
version=${KERNEL%%-*}
install -d $place
deb() {  # name, dependency; its files are in $root
    install -d $root/DEBIAN
    {
        echo "Package: $1"
        echo "Version: 1:$version-1"
        echo "Architecture: $(dpkg --print-architecture)"
        echo "Section: kernel"
        echo "Priority: optional"
        echo "Maintainer: h20.fleet test bed <kernel@testbed.test>"
        [ -z "$2" ] || echo "Depends: $2"
        echo "Description: stand-in of the h20.fleet test bed for a package of the kernel"
    } > $root/DEBIAN/control
    chmod -R go=rX $root
    dpkg-deb --root-owner-group --build $root $place/$1.deb > /dev/null
    {
        dpkg-deb --field $place/$1.deb
        echo "Filename: ./$1.deb"
        echo "Size: $(stat --format=%s $place/$1.deb)"
        echo "SHA256: $(sha256sum $place/$1.deb | cut --delimiter=' ' --fields=1)"
        echo
    } >> $place/Packages
    rm -r $root
}
root=/tmp/package
install -d $root/boot $root/lib/modules/$KERNEL
echo 'nothing boots from it' > $root/boot/vmlinuz-$KERNEL
touch $root/lib/modules/$KERNEL/modules.order $root/lib/modules/$KERNEL/modules.builtin
deb linux-image-$KERNEL ''
install -d $root/usr/src/linux-headers-$KERNEL $root/lib/modules/$KERNEL
echo 'all:' > $root/usr/src/linux-headers-$KERNEL/Makefile
ln -s /usr/src/linux-headers-$KERNEL $root/lib/modules/$KERNEL/build
deb linux-headers-$KERNEL ''
deb linux-image-$flavour "linux-image-$KERNEL (= 1:$version-1)"
deb linux-headers-$flavour "linux-headers-$KERNEL (= 1:$version-1)"
{
    echo "Origin: h20.fleet test bed"
    echo "Label: testbed-kernel"
    echo "Suite: testbed"
    echo "Date: $(date --utc --rfc-email | sed 's/+0000/UTC/')"
    echo "Architectures: $(dpkg --print-architecture)"
    echo "SHA256:"
    echo " $(sha256sum $place/Packages | cut --delimiter=' ' --fields=1) $(stat --format=%s $place/Packages) Packages"
} > $place/Release
echo "deb file:$place ./" > /etc/apt/sources.list.d/testbed-kernel.list
dpkg --install $place/linux-image-*.deb
"""

# Runs last, on this machine with the new root as $1: signs that source, as any archive is that a site may carry to where there is no network. Its key is
# trusted by every host and kept by nobody.
KERNEL_SIGNATURE = """
home=$(mktemp --directory)
archive="$1/usr/share/testbed/kernel"
sign() { gpg --homedir $home --batch --quiet --no-tty --pinentry-mode loopback --passphrase '' "$@"; }
sign --quick-generate-key 'h20.fleet test bed <kernel@testbed.test>' ed25519 sign never
sign --output "$archive/InRelease" --clearsign "$archive/Release"
sign --armor --output "$1/etc/apt/trusted.gpg.d/testbed-kernel.asc" --export
chmod 0644 "$archive/InRelease" "$1/etc/apt/trusted.gpg.d/testbed-kernel.asc"
gpgconf --homedir $home --kill gpg-agent
rm -r $home
"""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the image holds; `mirror` is "" for mmdebstrap's own default, `apt_options` are lines of apt.conf, `kernel` is the release
    of the kernel that all hosts share."""

    suite: str
    mirror: str
    architecture: str
    apt_options: tuple[str, ...]
    kernel: str
    packages: str = PACKAGES
    setup: str = SETUP + KERNEL_SETUP
    signature: str = KERNEL_SIGNATURE

    @property
    def reference(self) -> str:
        """The image's name and tag; the tag is a hash of the recipe."""
        return f"{REPOSITORY}:{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]}"

    def command(self, archive: str) -> list[str]:
        """Return the mmdebstrap command that writes the root file system as the tar file `archive`."""
        options = [f"--aptopt={option}" for option in self.apt_options]
        setup = f'chroot "$1" env KERNEL={self.kernel} sh -euc {shlex.quote(self.setup)}'
        include = f"--include={self.packages}"
        mirror = [self.mirror] if self.mirror else []
        return [
            "mmdebstrap",
            "--variant=minbase",
            include,
            *options,
            f"--customize-hook={setup}",
            f'--customize-hook=sh -euc {shlex.quote(self.signature)} sh "$1"',
            self.suite,
            archive,
            *mirror,
        ]


def apt_proxies(dump: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the apt.conf lines of this machine's apt proxy: from the text of `apt-config dump`, else from http_proxy and https_proxy."""
    lines = re.findall(r'^(Acquire::https?::Proxy(?:::\S+)? "[^"]+";)$', dump, re.MULTILINE)
    if lines:
        return tuple(lines)
    settings = {scheme: environ.get(f"{scheme}_proxy", "") for scheme in ("http", "https")}
    return tuple(f'Acquire::{scheme}::Proxy "{url}";' for scheme, url in settings.items() if url)


def recipe(environ: Mapping[str, str]) -> Recipe:
    """Return the recipe that H20_TESTBED_SUITE, H20_TESTBED_MIRROR and this machine's apt settings ask for."""
    apt = shutil.which("apt-config")
    dump = subprocess.run([apt, "dump"], capture_output=True, text=True, check=True).stdout if apt else ""
    return Recipe(
        suite=environ.get("H20_TESTBED_SUITE") or "bookworm",
        mirror=environ.get("H20_TESTBED_MIRROR", ""),
        architecture=platform.machine(),
        apt_options=apt_proxies(dump, environ),
        kernel=platform.release(),
    )


def ensure(client: DockerClient) -> str:
    """Return the reference of the host image, built first where this engine does not have it (about 40 s)."""
    wanted = recipe(os.environ)
    if client.images.list(filters={"reference": wanted.reference}):
        say("image", f"{wanted.reference} is there")
        return wanted.reference
    ensure_builder()
    say("image", f"building {wanted.reference}: {wanted.suite} from {wanted.mirror or 'the default mirror'}")
    archive = STATE / "rootfs.tar"
    try:
        run("image", wanted.command(str(archive)), STATE / "log" / "mmdebstrap.log")
        load(client, wanted)
    finally:
        archive.unlink(missing_ok=True)
    return wanted.reference


def ensure_builder() -> None:
    """Make sure that mmdebstrap is there and can work; SetupError with what to type where this user may not install it."""
    rootless = os.geteuid() != 0  # then mmdebstrap works in a user namespace
    if rootless and not (shutil.which("mmdebstrap") and shutil.which("newuidmap")):
        raise SetupError(
            "Building the image needs mmdebstrap, and without root uidmap. Type: sudo apt-get install mmdebstrap uidmap"
        )
    if shutil.which("mmdebstrap") is None:
        engine.install("mmdebstrap", "mmdebstrap")


def load(client: DockerClient, wanted: Recipe) -> None:
    """Import the root file system that mmdebstrap wrote under the recipe's reference."""
    started = time.monotonic()
    name, tag = wanted.reference.split(":")
    changes = ['CMD ["/sbin/init"]', "ENV container=docker", f"LABEL {LABEL}=image"]
    say("image", "importing it into the engine")
    with (STATE / "rootfs.tar").open("rb") as archive:
        answer = client.api.import_image_from_data(archive, repository=name, tag=tag, changes=changes)
    if '"error"' in answer:
        raise SetupError(f"The engine does not import the image: {answer.strip()[-300:]}")
    say("image", f"imported in {time.monotonic() - started:.0f} s")
