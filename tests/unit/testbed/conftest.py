# SPDX-License-Identifier: Apache-2.0
"""The hub in a thread, for the tests of its protocols."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed.hub import server
from testbed.hub.repository import write_repository
from unit.testbed.hub_client import FIRST, NAME, PRIVATE, SECOND, TOKEN, Client


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of a server that has the model twice: for anybody, and for who has the token."""
    monkeypatch.setattr(server.Handler, "log_message", lambda *_: None)
    revisions = write_repository(tmp_path, NAME, [FIRST, SECOND])
    write_repository(tmp_path, PRIVATE, [FIRST], token=TOKEN)
    with server.HubServer(("127.0.0.1", 0), tmp_path) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(hub, revisions)
        finally:
            hub.faults.clear()
            hub.shutdown()
            thread.join()
