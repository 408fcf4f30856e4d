"""A client in another language needs docs/PROTOCOL.md and a msgpack library, nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ipc.messages import Options

CLIENT = Path(__file__).resolve().parents[2] / "examples" / "client.mjs"
PACKAGE = "@msgpack/msgpack@3.1.2"


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed (make deps)")
    folder = tmp_path_factory.mktemp("node")
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm could not install {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    shutil.copy(CLIENT, folder)
    return folder / CLIENT.name


def test_node_client_finds_what_the_python_client_finds(node_client: Path, filled) -> None:
    """30 lines of Node.js get the same hits, in the same order."""
    with filled.client() as client:
        event_id = client.recent(limit=1).events[0].event.event_id
        reply = client.query_similar(event_id, options=Options(space="attack", top_k=5))
    done = subprocess.run(
        ["node", str(node_client), str(filled.layout.query_socket), event_id],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = [line.split()[0] for line in done.stdout.splitlines()]
    assert found == [hit.event.event_id for hit in reply.answers[0].hits]
    assert done.stderr.strip().endswith(f"generation {reply.generation}")
