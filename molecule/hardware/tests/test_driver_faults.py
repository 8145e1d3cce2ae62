# SPDX-License-Identifier: Apache-2.0
"""What the driver stage does with a host on which it cannot work, and what it leaves alone there: a fault a host, all in one run."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from conftest import REPORTS, ROOT, Packages, Run, describe, follows_release, play, shell

DRIVER, NEXT = "580.173.02", "595.71.05"
HOSTS = [f"h20-{number}" for number in range(21, 29)]
STAGE = ("--tags", "host_tuning,nvidia_driver", "--extra-vars", '{"fleet_hosts": "hardware"}')

HALF_DONE = """
root=$(mktemp -d)
install -d -m 0755 $root $root/DEBIAN
printf 'Package: half-done\\nVersion: 1\\nArchitecture: all\\nMaintainer: nobody <nobody@half.test>\\nDescription: fails\\n' > $root/DEBIAN/control
printf '#!/bin/sh\\nexit 1\\n' > $root/DEBIAN/postinst
chmod 0755 $root/DEBIAN/postinst
dpkg-deb --build $root /tmp/half-done.deb
! dpkg --install /tmp/half-done.deb
touch /var/lib/dpkg/updates/0001
"""
# What NVIDIA's installer leaves, as far as a stage sees it: its programs, the library, and no package that owns them.
RUNFILE = """
for program in nvidia-installer nvidia-smi; do
    printf '#!/bin/sh\\nexit 9\\n' > /usr/bin/$program
done
cat > /usr/bin/nvidia-uninstall <<'SCRIPT'
#!/bin/sh
case "$*" in *-s*) ;; *) echo "it would ask a question now" >&2; exit 1 ;; esac
rm -f /usr/bin/nvidia-installer /usr/bin/nvidia-uninstall /usr/bin/nvidia-smi /usr/lib/x86_64-linux-gnu/libnvidia-ml.so*
SCRIPT
chmod 0755 /usr/bin/nvidia-*
touch /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.86.15
ln -s libnvidia-ml.so.570.86.15 /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1
"""
UBUNTU = """
mkdir /tmp/ubuntu
cd /tmp/ubuntu
for deb in $(curl --silent --fail http://mirror.test/ubuntu/ | grep --only-matching '[a-z0-9_.-]*\\.deb' | sort --unique); do
    curl --silent --fail --remote-name http://mirror.test/ubuntu/$deb
done
dpkg --install ./*.deb
"""
HOLD_LOCK = "import fcntl, time; file = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); time.sleep(3600)"


def gone() -> dict[str, t.Any]:
    """A release of the site whose driver the repository has no more."""
    path = ROOT / "inventories/local/group_vars/all/release.yml"
    demo = yaml.safe_load(path.read_text(encoding="utf-8"))["fleet_releases"]["demo"]
    return {"fleet_release": "gone", "fleet_releases": {"gone": demo | {"driver": {"version": "580.199.01"}}}}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with a host, what the stage says of it, and what preflight finds: identifier and severity."""

    host: str
    says: tuple[str, ...]
    variables: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    prepare: str = ""
    mend: str = ""
    faults: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    findings: dict[str, str] = dataclasses.field(default_factory=dict)


# The first five have the driver of the release and are told to go to the next one; the last three have none.
FAULTS = {
    "dpkg locked": Fault(
        "h20-21",
        ("DPKG-LOCKED", "never delete the lock file"),
        {"fleet_release": "demo-next", "nvidia_driver_lock_timeout": 3},
        prepare=f'systemd-run --unit other-apt --collect python3 -c "{HOLD_LOCK}"; sleep 1',
        mend="systemctl stop other-apt",
        findings={"DPKG-LOCKED": "warn"},
    ),
    "dpkg interrupted": Fault(
        "h20-22",
        ("dpkg --configure -a",),
        {"fleet_release": "demo-next"},
        prepare=HALF_DONE,
        mend="rm -f /var/lib/dpkg/updates/0001; dpkg --purge half-done",
        findings={"DPKG-INTERRUPTED": "refuse"},
    ),
    "key of another fingerprint": Fault(
        "h20-23",
        ("has fingerprint", "nvidia_driver_repository_key_fingerprint"),
        {"fleet_release": "demo-next", "nvidia_driver_repository_key_fingerprint": "0" * 40},
    ),
    "repository unreachable": Fault(
        "h20-24",
        ("REPOSITORY-UNREACHABLE", "http://mirror.test:9"),
        {"fleet_release": "demo-next", "fleet_nvidia_mirror": "http://mirror.test:9"},
    ),
    "version gone": Fault("h20-25", ("PACKAGE-GONE", "580.199.01", "name a version that is there"), gone()),
    "driver of the .run installer": Fault(
        "h20-26",
        (".run", "fleet_driver_replace: true"),
        prepare=RUNFILE,
        findings={"DRIVER-FOREIGN": "refuse", "DRIVER-OLD": "refuse"},
    ),
    "packages of Ubuntu's archive": Fault(
        "h20-27",
        ("nvidia-driver-580-server-open", "fleet_driver_replace: true"),
        prepare=UBUNTU,
        findings={"DRIVER-FOREIGN": "refuse", "FABRIC": "warn"},  # nobody started its fabric manager
    ),
    "Secure Boot": Fault(
        "h20-28",
        ("Secure Boot is on", "fleet_secure_boot_enrolled: true"),
        faults={"secure_boot": True},
        findings={"SECURE-BOOT": "refuse"},
    ),
}


def everywhere(work: t.Callable[[Fault], t.Any]) -> dict[str, t.Any]:
    """Do it on all hosts at once; what it returned, by host."""
    with ThreadPoolExecutor() as pool:
        return dict(zip((fault.host for fault in FAULTS.values()), pool.map(work, FAULTS.values()), strict=True))


def inventory(path: Path, variables: dict[str, dict[str, t.Any]]) -> tuple[str, str]:
    """Arguments for a run in which each host has variables of its own."""
    path.write_text(yaml.safe_dump({"all": {"hosts": variables}}), encoding="utf-8")
    return "-i", str(path)


def failure(run: Run, host: str) -> str:
    """What the run says of the task that failed on a host, with every run of white space as one blank."""
    sections = re.findall(rf"^fatal: \[{host}\]: FAILED! =>(.*?)^(?=\S)", run.output, re.MULTILINE | re.DOTALL)
    return " ".join(" ".join(sections).split())


@dataclasses.dataclass(frozen=True)
class Refused:
    """A run of the stage over all faults: what preflight reports before it, and the packages before and after."""

    run: Run
    reports: dict[str, dict[str, t.Any]]
    before: dict[str, Packages]
    after: dict[str, Packages]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Refused:
    def prepare(fault: Fault) -> None:
        if fault.faults:
            describe(fault.host, {"base": "h20_141g", "faults": fault.faults}, "hardware")
        if fault.prepare:
            shell(fault.host, fault.prepare)

    everywhere(prepare)
    before = everywhere(lambda fault: Packages.of(fault.host))
    play("preflight", "--extra-vars", '{"fleet_hosts": "hardware"}')
    variables = {fault.host: fault.variables for fault in FAULTS.values()}
    run = play("site", *STAGE, *inventory(tmp_path_factory.mktemp("inventory") / "faults.yml", variables))
    return Refused(
        run=run,
        reports={host: yaml.safe_load((REPORTS / f"{host}.json").read_text(encoding="utf-8")) for host in HOSTS},
        before=before,
        after=everywhere(lambda fault: Packages.of(fault.host)),
    )


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_refused_with_the_remedy_and_nothing_half_installed(fault: Fault, refused: Refused) -> None:
    assert refused.run.rc == 2, refused.run.output
    said = failure(refused.run, fault.host)
    assert [words for words in fault.says if words not in said] == [], said or refused.run.output
    assert refused.after[fault.host] == refused.before[fault.host]
    assert shell(fault.host, "ls /var/lib/h20-fleet/out-of-service 2>/dev/null || true") == "", (
        "a host that was refused keeps its service"
    )


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_preflight_finds_what_it_can_see(fault: Fault, refused: Refused) -> None:
    report = refused.reports[fault.host]
    assert {finding["id"]: finding["severity"] for finding in report["findings"]} == fault.findings, report["findings"]


def test_mended_and_with_consent_all_converge(refused: Refused, tmp_path: Path) -> None:
    """The next run with the right settings goes on from what the refused one left."""

    def mend(fault: Fault) -> None:
        if fault.faults:
            describe(fault.host, "h20_141g", "hardware")
        if fault.mend:
            shell(fault.host, fault.mend)

    assert refused.run.rc == 2
    everywhere(mend)
    consent: dict[str, dict[str, t.Any]] = {
        "h20-26": {"fleet_driver_replace": True},
        "h20-27": {"fleet_driver_replace": True},
    }
    run = play("site", *STAGE, *inventory(tmp_path / "consent.yml", consent))
    assert run.rc == 0, run.output
    everywhere(lambda fault: follows_release(fault.host, DRIVER))
    assert (
        shell("h20-26", "ls /usr/bin/nvidia-uninstall /usr/lib/x86_64-linux-gnu/libnvidia-ml.so* 2>/dev/null || true")
        == ""
    )
    names = shell("h20-27", "dpkg-query --show --showformat='${Package}\\n'").splitlines()
    assert [name for name in names if name.endswith(("-580", "-580-server", "-580-server-open"))] == []


# A whole driver of another branch beside the module that is loaded; the pins of the release would keep it away.
NEWER = f"""
export DEBIAN_FRONTEND=noninteractive
mkdir --parents /tmp/no-pins
apt-mark unhold $(apt-mark showhold)
apt-get --quiet --yes --option Dir::Etc::PreferencesParts=/tmp/no-pins install nvidia-open={NEXT}-1
"""
PATCH_BEHIND = """
export DEBIAN_FRONTEND=noninteractive
apt-get --quiet --yes --allow-change-held-packages --allow-downgrades install nvidia-fabricmanager=580.159.04-1
"""
MIXED: dict[str, tuple[str, dict[str, t.Any], dict[str, str]]] = {
    "fabric manager a patch behind": (PATCH_BEHIND, {}, {"FM-VERSION": "refuse"}),
    "userspace newer than the module": (NEWER, {}, {"DRIVER-MIXED": "warn"}),
    "driver too old": (
        "echo 570.86.15 > /sys/module/nvidia/version",
        {},
        {"DRIVER-OLD": "warn", "DRIVER-MIXED": "warn", "FM-VERSION": "warn"},
    ),
    "nouveau loaded": ("", {"nouveau_loaded": True}, {"NOUVEAU": "warn"}),
    "fabric manager stopped": ("systemctl disable --now nvidia-fabricmanager", {}, {"FABRIC": "refuse"}),
}


@pytest.fixture(scope="module")
def mixed() -> tuple[dict[str, dict[str, t.Any]], Run]:
    """The reports on drivers that do not fit together, and the run of the stage over them."""

    def prepare(item: tuple[str, tuple[str, dict[str, t.Any], dict[str, str]]]) -> None:
        host, (script, faults, _findings) = item
        if faults:
            describe(host, {"base": "h20_141g", "faults": faults}, "hardware")
        if script:
            shell(host, script)

    dealt = dict(zip(HOSTS, MIXED.values(), strict=False))
    with ThreadPoolExecutor() as pool:
        list(pool.map(prepare, dealt.items()))
    play("preflight", "--extra-vars", '{"fleet_hosts": "hardware"}', "--limit", ",".join(dealt))
    reports = {host: yaml.safe_load((REPORTS / f"{host}.json").read_text(encoding="utf-8")) for host in dealt}
    return reports, play("site", *STAGE, "--limit", ",".join(dealt))


@pytest.mark.parametrize(("host", "name"), list(zip(HOSTS, MIXED, strict=False)))
def test_driver_that_does_not_fit_together_is_found_and_mended(
    host: str, name: str, mixed: tuple[dict[str, dict[str, t.Any]], Run]
) -> None:
    reports, run = mixed
    findings = reports[host]["findings"]
    assert {finding["id"]: finding["severity"] for finding in findings} == MIXED[name][2], findings
    assert run.rc == 0, run.output
    follows_release(host, DRIVER)
    assert shell(host, "nvidia-smi -q -x").count("<state>Completed</state>") == 8
    assert (
        shell(host, "systemctl is-active nvidia-fabricmanager nvidia-persistenced nvidia-dcgm").split()
        == ["active"] * 3
    )
