# SPDX-License-Identifier: Apache-2.0
"""The site without peers: nginx on the origins, from where the others fetch by the same ranged requests as from a source outside."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import queue
import threading
from pathlib import Path

from . import addresses, children
from .children import Child, ChildError
from .job import Job, Source
from .manifest import File, Manifest
from .transfer import Transfer, TransferError

CONFIGURATION = """\
daemon off;
pid "{folder}/nginx.pid";
error_log stderr error;
worker_processes auto;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path "{folder}/nginx";
    proxy_temp_path "{folder}/nginx";
    fastcgi_temp_path "{folder}/nginx";
    uwsgi_temp_path "{folder}/nginx";
    scgi_temp_path "{folder}/nginx";
    default_type application/octet-stream;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    limit_rate {rate};
    server {{
        listen {listen};
        allow 127.0.0.0/8;
        {allowed}
        deny all;
        location "/{repo}/{revision}/" {{ alias "{folder}/tree/"; }}
        location / {{ return 404; }}
    }}
}}
"""


class Web:
    """nginx where this host is an origin, and what comes from other origins."""

    def __init__(self, job: Job, manifest: Manifest, folder: Path) -> None:
        self._site = job.shared_site
        self._manifest = manifest
        self._folder = folder
        self._tree = folder
        self._limits = dataclasses.replace(job.limits, download=0, connections=1)
        self._own = addresses.own(self._site, job.host)
        self._connections = job.limits.connections
        self._serves = job.host in self._site.origins
        self._rate = 0
        self._child: Child | None = None
        self._stop = threading.Event()
        self._threads = concurrent.futures.ThreadPoolExecutor(self._connections)
        self._known: set[File] = set()
        self._outcomes: queue.SimpleQueue[File | TransferError] = queue.SimpleQueue()

    def __contains__(self, file: File) -> bool:
        return file in self._known

    def start(self, tree: Path) -> None:
        """Serve what lies below `tree`; raises ChildError."""
        self.move(tree)
        # The hosts of the site are reached directly, whatever proxy leads out of it.
        direct = [member.address for member in self._site.hosts.values()]
        os.environ["no_proxy"] = ",".join([*filter(None, [os.environ.get("no_proxy")]), *direct])
        if self._serves:
            (self._folder / "nginx").mkdir(exist_ok=True)
            self._child = Child(["nginx", "-e", "stderr", "-c", str(self._configure())], self._site.files_port)
            self._child.until_listening(self._own)

    def move(self, tree: Path) -> None:
        """The files lie below `tree` from now on."""
        self._tree = tree
        children.point(self._folder / "tree", tree)

    def describe(self, _file: File) -> bytes:
        """Nothing: the manifest says all."""
        return b""

    def serve(self, file: File, _description: bytes, _origin: str) -> None:
        """Nothing more: nginx serves what lies below the tree, and who asks knows what is proved."""
        self._known.add(file)

    def serves(self, file: File) -> bool:
        """Whether others may ask for it."""
        return file in self._known

    def room(self, _file: File) -> bool:
        """Always: it waits for its turn here."""
        return True

    def receive(self, file: File, _description: bytes, origin: str) -> None:
        """Fetch the file from the origin at this address, when its turn comes."""
        self._known.add(file)
        self._threads.submit(self._fetch, file, Source("http", f"http://{origin}:{self._site.files_port}"))

    def drop(self, file: File) -> None:
        """Have the file fetched anew when it is asked for again."""
        self._known.discard(file)
        (self._tree / file.path).unlink(missing_ok=True)

    def poll(self) -> list[File]:
        """The files that have arrived since the last time; raises ChildError."""
        if self._child:
            self._child.check()
        arrived = []
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            if isinstance(outcome, TransferError):
                # What follows the arrow is about sources outside the site.
                raise ChildError(str(outcome).partition(" -> ")[0]) from outcome
            arrived.append(outcome)
        return arrived

    def limit_upload(self, rate: int) -> None:
        """Send no more bytes a second, to all receivers together; 0 for no limit. Files that are on their way keep the rate that they began with."""
        if self._child and rate != self._rate:
            self._rate = rate
            self._configure()
            self._child.reread()

    def close(self) -> None:
        self._stop.set()
        self._threads.shutdown(cancel_futures=True)
        children.end([self._child])

    def _fetch(self, file: File, source: Source) -> None:
        transfer = Transfer(self._manifest, [source], self._limits, self._tree, _unproved, self._stop)
        try:
            transfer.run([file], self._outcomes.put)
        except TransferError as error:
            self._outcomes.put(error)

    def _configure(self) -> Path:
        """Write nginx's configuration. It limits connections, not the whole, so each may have its share of the rate."""
        path = self._folder / "nginx.conf"
        receivers = max(len(self._site.hosts) - len(self._site.origins), 1)
        path.write_text(
            CONFIGURATION.format(
                folder=self._folder,
                rate=max(self._rate // (receivers * self._connections), 1) if self._rate else 0,
                listen=":".join(filter(None, (self._own, str(self._site.files_port)))),
                allowed="\n        ".join(f"allow {address};" for address in sorted(addresses.all_of(self._site))),
                repo=self._manifest.repo,
                revision=self._manifest.revision,
            ),
            encoding="utf-8",
        )
        return path


def _unproved(_path: Path, _file: File) -> None:
    """Who asked for the file proves it."""
