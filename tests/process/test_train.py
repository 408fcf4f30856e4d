"""`flowkin train`, as processes: the same command, the same bytes; what it refuses, it refuses before any work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tests.engine_fixture import Starter, cli
from tests.events import ndjson, several
from tests.one_thread import ONE_THREAD

BRIEFLY = ("-c", "from engine.embed import contrast; contrast.STEPS_MIN //= 10; import cli.__main__")


def write(path: Path, count: int, first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ndjson(several(count, first)))
    return path


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    """In two processes, and whatever order of hashes Python has, after a tenth of the steps. The card tells the files
    apart."""
    data = tmp_path / "data"
    write(data / "monday" / "flows.ndjson", 80)
    write(data / "tuesday" / "flows.ndjson", 70, 80)

    def trained(seed: str) -> dict[str, str]:
        out = tmp_path / seed
        command = ("train", "--data", data, "--out", out, "--name", "twice", "--seed", "5", "--json")
        done = cli(*command, env={"PYTHONHASHSEED": seed}, timeout_s=600.0, run=BRIEFLY)
        assert done.returncode == 0, done.stderr
        digests = {f.name: sha256(f.read_bytes()).hexdigest() for f in (out / "twice").iterdir()}
        assert json.loads(done.stdout)["sha256"] == digests
        return digests

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(trained, ("1", "2"))
    assert one == other
    assert {"card.json", "attack.safetensors", "attack.onnx", "attack.gradient.onnx"} <= one.keys()
    card = json.loads((tmp_path / "1" / "twice" / "card.json").read_bytes())
    files = {file["path"]: (file["sha256"], file["bytes"]) for file in card["data"]["files"]}
    given = {f"data/{day}/flows.ndjson": (data / day / "flows.ndjson").read_bytes() for day in ("monday", "tuesday")}
    assert files == {path: (sha256(blob).hexdigest(), len(blob)) for path, blob in given.items()}


def taken(out: Path) -> None:
    (out / "name").mkdir(parents=True)


def dangling(out: Path) -> None:
    out.mkdir()
    (out / "name").symlink_to("/nowhere")


@pytest.mark.parametrize("harm", [taken, dangling])
def test_a_name_that_is_taken_is_refused_before_any_work(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """The data is a pipe that nobody writes to: whoever looked at it would wait."""
    out = tmp_path / "out"
    harm(out)
    os.mkfifo(tmp_path / "data.ndjson")
    done = cli("train", "--data", tmp_path / "data.ndjson", "--out", out, "--name", "name", timeout_s=60.0)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"{out / 'name'} exists; it was not changed; give another --name or --out")


def test_fit_refuses_a_name_that_the_engine_has_before_any_work(start: Starter, tmp_path: Path) -> None:
    engine = start(readers=1, env=ONE_THREAD)
    file = write(tmp_path / "e.ndjson", 120)
    assert engine.json("fit", file, "--name", "one", timeout_s=180.0)["used"]
    os.mkfifo(tmp_path / "pipe.ndjson")
    done = engine.cli("fit", tmp_path / "pipe.ndjson", "--name", "one", timeout_s=60.0)
    assert done.returncode == 2 and "has a model one already" in done.stderr
