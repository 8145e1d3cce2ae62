#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Build one vLLM wheel from its source and put it among the wheels of a mirror, with the lock that installs it.

    wheel_build.py inspect JOB   print as JSON whether it is there, and what stands against building it
    wheel_build.py build JOB     build it where it is not there yet

JOB is a JSON file:
  source        {"sdist": {"requirement", "sha256"}} (fetched by pip, so from any index or folder) or {"git": {"url", "revision": 40 hexadecimal digits}}
  version, target_device                  of vLLM; the wheel's version is this one, whatever label its build adds
  uv, python, build_lock                  the uv program, what it takes as --python, and the locked packages of the build: torch, setuptools, pip, ...
  cuda_home, memory_per_job_gib           for the target cuda; as many jobs run as there are cores and as fit the memory that is available
  folder                                  of this build: what was built is remembered in build.json, and all else is deleted once it is there
  lock, built_lock                        the release's lock, and the file to write it to with vLLM's pin and hash replaced by those of the wheel
  wheels                                  folder of wheels
  environment                             variables that are added
Wheel, lock and build.json appear by a rename, in this order, so that whoever sees one sees all of it. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import typing as t
from pathlib import Path

GIB = 1024**3
PIN = re.compile(r"^vllm==[^\n]*\\\n(?:[ \t]+[^\n]*\n)+|^vllm==[^\n]*\n", re.MULTILINE)
WHEEL = re.compile(r"^vllm-(?P<version>[^-]+)-[^-]+-[^-]+-[^-]+\.whl$")


class BuildError(Exception):
    """What stands against the build, and its remedy."""


class Job:
    """One build, as its file describes it."""

    def __init__(self, path: Path) -> None:
        content: dict[str, t.Any] = json.loads(path.read_text(encoding="utf-8"))
        self.source: dict[str, dict[str, str]] = {kind: told for kind, told in content["source"].items() if told}
        self.version, self.target = str(content["version"]), str(content["target_device"])
        self.uv, self.python = str(content["uv"]), str(content["python"])
        self.cuda_home = Path(content["cuda_home"])
        self.memory_per_job = float(content["memory_per_job_gib"])
        self.folder, self.wheels = Path(content["folder"]), Path(content["wheels"])
        self.build_lock, self.lock = Path(content["build_lock"]), Path(content["lock"])
        self.built_lock = Path(content["built_lock"])
        self.environment = {name: str(value) for name, value in content["environment"].items()}

    @property
    def memory(self) -> Path:
        """What is remembered of the build."""
        return self.folder / "build.json"

    @property
    def work(self) -> Path:
        """What is deleted after it."""
        return self.folder / "work"


def remembered(job: Job) -> dict[str, t.Any] | None:
    """What was built before, if its wheel is still among the wheels as it was."""
    try:
        built: dict[str, t.Any] = json.loads(job.memory.read_text(encoding="utf-8"))
        return built if sha256(job.wheels / built["wheel"]) == built["sha256"] else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def locked(job: Job, built: dict[str, t.Any]) -> str:
    """The release's lock with vLLM pinned to the wheel."""
    pin = f"vllm=={built['version']} \\\n    --hash=sha256:{built['sha256']}\n"
    text, count = PIN.subn(lambda _match: pin, job.lock.read_text(encoding="utf-8"))
    if count != 1:
        raise BuildError(f"{job.lock} pins vllm {count} times -> the lock of a release from source holds one pin of it")
    return text


def obstacles(job: Job) -> list[str]:
    """All that stands against building on this host."""
    found = []
    if job.target == "cuda" and not (job.cuda_home / "bin/nvcc").exists():
        found.append(
            f"{job.cuda_home}/bin/nvcc is not there -> bring the CUDA toolkit first: --tags cuda_toolkit on this host"
        )
    if available() < job.memory_per_job * GIB:
        found.append(
            f"{available() / GIB:.1f} GiB of memory are free and one job may take {job.memory_per_job:g}"
            " -> stop what serves here, build on another host, or lower vllm_build_memory_per_job_gib"
        )
    return found


def inspect(job: Job) -> dict[str, t.Any]:
    """State of the build for the module: complete, whether a wheel must be built, what stands against it, and the wheel."""
    built = remembered(job)
    complete = built is not None and read(job.built_lock) == locked(job, built)
    return {
        "complete": complete,
        "to_build": built is None,
        "obstacles": obstacles(job) if built is None else [],
        "wheel": built,
    }


def build(job: Job) -> None:
    """Build the wheel where it is not there yet, and write the lock that installs it."""
    built = remembered(job)
    if built is None:
        if found := obstacles(job):
            raise BuildError("; ".join(found))
        built = make(job)
        write(job.memory, json.dumps(built, indent=2) + "\n")
    else:
        say(f"{built['wheel']} is there already, nothing is built")
    write(job.built_lock, locked(job, built))


def make(job: Job) -> dict[str, t.Any]:
    """Build the wheel, place it, and return what is to be remembered of it."""
    began = time.monotonic()
    shutil.rmtree(job.work, ignore_errors=True)
    (job.work / "tmp").mkdir(parents=True)
    environment = variables(job)
    python = job.work / "venv/bin/python"
    say("making the environment of the build")
    run(job, [job.uv, "venv", "--quiet", "--no-project", "--python", job.python, str(job.work / "venv")], environment)
    sync = [job.uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(job.build_lock)]
    run(job, sync, environment)
    source = fetch(job, environment, python)
    say(f"building for {job.target}, {environment['MAX_JOBS']} jobs at a time")
    offline = {} if job.target == "cuda" else {"UV_OFFLINE": "1"}  # CMake clones the sources of further kernels
    command = [job.uv, "build", "--wheel", "--no-build-isolation", "--python", str(python)]
    run(job, [*command, "--out-dir", str(job.work / "dist"), str(source)], environment | offline)
    [wheel] = (job.work / "dist").glob("*.whl")
    match = WHEEL.match(wheel.name)
    version = match["version"] if match else ""
    if version != job.version and not version.startswith((f"{job.version}+", f"{job.version}.")):
        raise BuildError(
            f"the source gave {wheel.name}, the release wants vllm {job.version} -> correct vllm.version or vllm.source"
        )
    digest = sha256(wheel)
    result = {
        "wheel": wheel.name,
        "version": version,
        "sha256": digest,
        "seconds": round(time.monotonic() - began, 1),
        "largest_process_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "disk_mib": sum(path.lstat().st_size for path in job.work.rglob("*")) // 2**20,
    }
    place(job, wheel, digest)
    shutil.rmtree(job.work)
    say(f"built {wheel.name}, sha256 {digest}, in {result['seconds']} s")
    return result


def fetch(job: Job, environment: dict[str, str], python: Path) -> Path:
    """The folder of the source, proved by its hash or revision."""
    folder = job.work / "source"
    folder.mkdir()
    if "sdist" in job.source:
        told = job.source["sdist"]
        say(f"fetching the source of {told['requirement']}")
        requirement = job.work / "source.txt"
        write(requirement, f"{told['requirement']} --hash=sha256:{told['sha256']}\n")
        command = [
            str(python),
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary=:all:",
            "--no-build-isolation",
        ]
        command += ["--require-hashes", "--requirement", str(requirement), "--dest", str(job.work / "sdist")]
        # pip asks the source for its name and version; with the label that a build adds it would take it for another one.
        run(job, command, environment | {"VLLM_SKIP_VERSION_SUFFIX": "1", "VLLM_TARGET_DEVICE": "empty"})
        # As a folder: of an archive, uv lets its build say no other version than it has itself, not even with a label.
        [archive] = (job.work / "sdist").iterdir()
        unpack = ["tar", "--extract", "--no-same-owner", "--strip-components", "1"]
        run(job, [*unpack, "--directory", str(folder), "--file", str(archive)], environment)
        return folder
    told = job.source["git"]
    say(f"fetching {told['revision']} of {told['url']}")
    git = ["git", "-C", str(folder), "-c", "advice.detachedHead=false"]
    run(job, [*git, "init", "--quiet"], environment)
    run(job, [*git, "fetch", "--quiet", "--depth", "1", told["url"], told["revision"]], environment)
    run(job, [*git, "checkout", "--quiet", told["revision"]], environment)
    return folder


def variables(job: Job) -> dict[str, str]:
    """What the tools see: nothing of the one who started this but the search path."""
    jobs = max(1, min(os.cpu_count() or 1, int(available() / GIB / job.memory_per_job)))
    search = [str(job.work / "venv/bin"), str(job.cuda_home / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]
    own = {
        "PATH": os.pathsep.join(search),
        "HOME": str(job.work),
        "TMPDIR": str(job.work / "tmp"),
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": "315532800",  # the same input is the same wheel, to the byte
        "VLLM_TARGET_DEVICE": job.target,
        "MAX_JOBS": str(jobs),
        "NVCC_THREADS": "1",  # vLLM divides the jobs by it
        "CMAKE_BUILD_TYPE": "Release",
    }
    if job.target == "cuda":
        own["CUDA_HOME"] = str(job.cuda_home)
    if "git" in job.source:  # a shallow clone has no tags to tell it from
        own["SETUPTOOLS_SCM_PRETEND_VERSION"] = job.version
    return own | job.environment


def available() -> int:
    """Memory in bytes that is free or can be freed."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def place(job: Job, wheel: Path, digest: str) -> None:
    """Put the wheel among the others; one of its name that another release's lock still names stays."""
    target = job.wheels / wheel.name
    if target.exists() and (old := sha256(target)) != digest:
        others = [path for path in job.built_lock.parent.glob("*.txt") if path != job.built_lock]
        if users := [path.stem for path in others if old in path.read_text(encoding="utf-8")]:
            raise BuildError(
                f"{target} is there from other inputs, and release {', '.join(users)} installs it"
                f" -> delete {job.built_lock.parent}/{users[0]}.txt once no host shall install that release, or build with the same inputs"
            )
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(wheel, part)
    part.chmod(0o644)
    sync_and_rename(part, target)


def write(path: Path, text: str) -> None:
    """Write a file by a rename; what is there already is left alone."""
    if read(path) == text:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    sync_and_rename(part, path)


def sync_and_rename(part: Path, path: Path) -> None:
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.replace(path)


def read(path: Path) -> str | None:
    """A file's text; None where it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def run(job: Job, command: list[str], environment: dict[str, str]) -> None:
    """Run a step; what it prints goes where this program's own words go."""
    done = subprocess.run(command, env=environment, cwd=job.work, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        step = " ".join(word for word in command[:4] if not word.startswith("-"))
        raise BuildError(f"{step} ended with status {done.returncode}; the lines before say why")


def say(text: str) -> None:
    print(f"wheel_build: {text}", flush=True)


def main(arguments: list[str]) -> int:
    try:
        verb, job = arguments[0], Job(Path(arguments[1]))
        if verb == "inspect":
            print(json.dumps(inspect(job)))
        else:
            {"build": build}[verb](job)
    except (IndexError, KeyError):
        print(__doc__, file=sys.stderr)
        return 2
    except (BuildError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
