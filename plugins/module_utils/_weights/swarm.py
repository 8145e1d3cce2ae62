# SPDX-License-Identifier: Apache-2.0
"""This host's part in the swarms: several processes of aria2, each with a port and files of its own, since one process moves all its bytes on one core."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import socket
import time
import typing as t
from pathlib import Path, PurePosixPath

from . import addresses, children, torrent
from .children import Child, ChildError
from .job import Job
from .manifest import File, Manifest

#: Files that one process receives at a time; those that it has are served besides.
DOWNLOADS = 4
#: Announcements a second that a tracker gets from a whole site, and the seconds between two of the same torrent at least. After each a peer calls all that
#: it does not know, though an aria2 takes no more than three calls a second: with 10 seconds nobody got through any more.
ANNOUNCEMENTS, INTERVAL = 500, 120
#: Peers that each knows of a torrent. An aria2 takes three calls a second: where all call all, a hundred hosts would queue for minutes.
PEERS = 16
#: Seconds that an answer may take.
PATIENCE = 20
#: How often a process may die before it is not started again.
DEATHS = 5

CONFIGURATION = """\
enable-rpc=true
rpc-listen-all=false
rpc-listen-port={rpc_port}
rpc-secret={secret}
rpc-max-request-size=64M
rpc-save-upload-metadata=false
listen-port={port}
interface={own}
enable-dht=false
enable-dht6=false
enable-peer-exchange=false
bt-enable-lpd=false
disable-ipv6=true
bt-detach-seed-only=true
bt-tracker-interval={interval}
bt-tracker-connect-timeout=10
bt-tracker-timeout=10
bt-max-open-files=1024
bt-max-peers={peers}
max-concurrent-downloads={files}
seed-ratio=0.0
check-integrity=true
file-allocation=none
disk-cache=64M
auto-save-interval=30
max-download-result=10000
rlimit-nofile=65536
async-dns=false
quiet=true
"""


class Peer:
    """One process of aria2 and what it was told."""

    def __init__(self, folder: Path, own: str, port: int, interval: int, files: int) -> None:
        self._files = files
        self._configuration = folder / f"aria2-{port}.conf"
        self._own = own
        self._port = port
        self._interval = interval
        self._secret = secrets.token_hex(16)
        self._rpc_port = 0
        self._deaths = 0
        self.child: Child | None = None

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive

    def start(self) -> None:
        """Start the process, again if it died; raises ChildError."""
        if self._deaths > DEATHS:
            raise ChildError(f"aria2c on port {self._port} died {DEATHS} times -> see the journal for its last words")
        self._deaths += 1
        self._rpc_port = _free_port()
        self._configuration.touch(mode=0o600)
        self._configuration.write_text(
            CONFIGURATION.format(
                rpc_port=self._rpc_port,
                secret=self._secret,
                port=self._port,
                own=self._own,
                interval=self._interval,
                files=self._files,
                peers=PEERS,
            ),
            encoding="utf-8",
        )
        self.child = Child(["aria2c", f"--conf-path={self._configuration}"], self._port)
        self.child.until(self._answers, "does not answer")

    def call(self, method: str, *parameters: t.Any) -> t.Any:
        """What aria2 answers; raises OSError where it does not, ChildError where it refuses."""
        request = {
            "jsonrpc": "2.0",
            "id": "",
            "method": f"aria2.{method}",
            "params": [f"token:{self._secret}", *parameters],
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._rpc_port, timeout=PATIENCE)
        try:
            connection.request("POST", "/jsonrpc", json.dumps(request))
            answer = json.loads(connection.getresponse().read())
        except (http.client.HTTPException, ValueError) as error:
            raise ConnectionError(f"no answer that could be read: {error}") from error
        finally:
            connection.close()
        if "error" in answer:
            raise ChildError(f"aria2c refuses {method}: {answer['error'].get('message')}")
        return answer["result"]

    def _answers(self) -> bool:
        try:
            self.call("getVersion")
        except OSError:
            return False
        return self.alive


class Swarm:
    """All processes of this host. The caller's one thread adds files and asks how far they are."""

    def __init__(self, job: Job, manifest: Manifest, folder: Path) -> None:
        self._site = job.shared_site
        self._tree = folder / "tree"
        largest_first = sorted(manifest.files, key=lambda file: (-file.size, file.path))
        processes = min(self._site.processes, len(largest_first))
        self._number = {file: index % processes for index, file in enumerate(largest_first)}
        interval = max(INTERVAL, len(self._site.hosts) * len(largest_first) // ANNOUNCEMENTS)
        own = addresses.own(self._site, job.host)
        self._peers = [
            Peer(folder, own, self._site.peer_port(number), interval, len(largest_first)) for number in range(processes)
        ]
        self._gids: dict[File, str] = {}
        self._receiving: set[File] = set()
        self._upload = -1
        self.received: dict[File, int] = {}

    def start(self, tree: Path) -> None:
        self.move(tree)
        for peer in self._peers:
            peer.start()

    def move(self, tree: Path) -> None:
        """The files lie below `tree` from now on."""
        children.point(self._tree, tree)

    def describe(self, file: File) -> bytes:
        """The torrent of a file that lies below the tree."""
        return torrent.make(self._tree / file.path, file, self._tree.parent)

    def port(self, file: File) -> int:
        """Where this host serves the file."""
        return self._site.peer_port(self._number[file])

    def __contains__(self, file: File) -> bool:
        return file in self._gids

    def serve(self, file: File, description: bytes, tracker: str) -> None:
        """Give others a file that lies proved below the tree; without a tracker, only who hears of it elsewhere will come."""
        self._add(file, description, tracker, {"bt-seed-unverified": "true", "check-integrity": "false"})

    def serves(self, file: File) -> bool:
        """Whether the file's peer is at work, and may be called by others."""
        gid = self._gids.get(file)
        return gid is not None and self._status(file, gid) == "active"

    def room(self, file: File) -> bool:
        """Whether the file's process receives few enough others to begin with it."""
        number = self._number[file]
        return sum(self._number[other] == number for other in self._receiving) < DOWNLOADS

    def receive(self, file: File, description: bytes, tracker: str) -> None:
        """Get a file from others, without what of it is right already, and serve it from the first piece on."""
        self._add(file, description, tracker, {})
        self._receiving.add(file)

    def drop(self, file: File) -> None:
        """Have nothing more to do with the file, until it is added again."""
        peer, gid = self._peers[self._number[file]], self._gids[file]
        self._forget(file)
        peer.call("forceRemove", gid)
        deadline = time.monotonic() + PATIENCE
        while self._status(file, gid) == "active":
            if time.monotonic() > deadline:
                raise ChildError(f"aria2c does not let go of {file.path}")
            time.sleep(0.05)
        peer.call("removeDownloadResult", gid)

    def poll(self) -> list[File]:
        """The files that have arrived since the last time. What a process that died was told is forgotten, for the caller to add again."""
        arrived = []
        for number, peer in enumerate(self._peers):
            if not peer.alive:
                self._restart(number)
                continue
            files = {gid: file for file, gid in self._gids.items() if self._number[file] == number}
            keys = ["gid", "status", "completedLength", "seeder", "errorCode", "errorMessage"]
            for entry in [*peer.call("tellActive", keys), *peer.call("tellStopped", 0, len(files), keys)]:
                file = files.get(entry["gid"])
                if file not in self._receiving:
                    continue
                if entry["status"] == "error":
                    raise ChildError(f"{file.path}: {entry['errorMessage']} (aria2 {entry['errorCode']})")
                self.received[file] = int(entry["completedLength"])
                if entry.get("seeder") == "true":
                    self._receiving.discard(file)
                    del self.received[file]
                    arrived.append(file)
        return arrived

    def limit_upload(self, rate: int) -> None:
        """Send no more bytes a second, all processes together; 0 for no limit."""
        if rate != self._upload:
            self._upload = rate
            share = str(max(rate // len(self._peers), 1)) if rate else "0"
            for peer in self._peers:
                peer.call("changeGlobalOption", {"max-overall-upload-limit": share})

    def close(self) -> None:
        children.end(peer.child for peer in self._peers)

    def _add(self, file: File, description: bytes, tracker: str, options: dict[str, str]) -> None:
        gid = secrets.token_hex(8)
        every = {"gid": gid, "dir": str(self._tree / PurePosixPath(file.path).parent)}
        if tracker:
            every["bt-tracker"] = f"http://{tracker}:{self._site.tracker_port}/announce"
        content = base64.b64encode(description).decode()
        self._peers[self._number[file]].call("addTorrent", content, [], every | options)
        self._gids[file] = gid

    def _status(self, file: File, gid: str) -> str:
        return str(self._peers[self._number[file]].call("tellStatus", gid, ["status"])["status"])

    def _restart(self, number: int) -> None:
        self._peers[number].start()
        self._upload = -1
        for file in [file for file in self._gids if self._number[file] == number]:
            self._forget(file)

    def _forget(self, file: File) -> None:
        del self._gids[file]
        self._receiving.discard(file)
        self.received.pop(file, None)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
