"""A real engine over an encrypted directory: everything works as always, and no byte on disk tells an event's text."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from engine.embed import models
from engine.layout import Layout
from engine.maintain.backup import verify
from engine.store.catalog import Catalog, seq_key
from ipc.event import FeaturedEvent
from ipc.messages import Filter, Options
from tests.engine_fixture import Engine, Starter, all_events, ask, cli, processes, shape, stored_ids
from tests.events import make
from tests.store_fixture import OTHER as OTHER_MODEL
from tests.store_fixture import flip, other_model
from tests.wait import eventually

READERS = 1

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
TEXT, RAW, LETTER = b"zebrawords", b"RAWMARK7f3a", b"LETTERMARK9c"
EVENTS = 150  # two full row files and some
REFUSED = 74


def needles() -> dict[str, re.Pattern[bytes]]:
    """What tells a marker, as it is or within base64, wherever it begins there."""
    out = {}
    for marker in (TEXT, RAW, LETTER):
        coded = [base64.b64encode(b"\0" * n + marker)[-(-8 * n // 6) :][:-4] for n in range(3)]
        out[marker.decode()] = re.compile(b"|".join(map(re.escape, [marker, *coded])), re.I)
    return out


def told(*folders: Path) -> dict[str, list[str]]:
    """Files that tell a marker, by marker. Every byte of every file is looked at."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files
    out: dict[str, list[str]] = {name: [] for name in needles()}
    for path in files:
        try:
            blob = path.read_bytes()
        except FileNotFoundError:  # an engine runs: it was renamed or merged away meanwhile
            continue
        for name, needle in needles().items():
            if needle.search(blob):
                out[name].append(path.name)
    return out


NOTHING: dict[str, list[str]] = {name: [] for name in needles()}


def marked(count: int, first: int = 0) -> list[FeaturedEvent]:
    """Events whose text and source record bear the markers."""
    items = [make(number, text=f"{TEXT.decode()} of {number}") for number in range(first, first + count)]
    return [msgspec.structs.replace(item, raw=b"%s %d" % (RAW, n)) for n, item in enumerate(items, first)]


def write_key(path: Path, key: bytes = KEY, mode: int = 0o600) -> dict[str, str]:
    """The setting that names the file."""
    path.write_text(key.hex() + "\n")
    path.chmod(mode)
    return {"FLOWKIN_STORE__KEY_FILE": str(path)}


def fill(engine: Engine, tmp_path: Path) -> None:
    """Events, and dead letters whose reason and record bear a marker."""
    for first in range(0, EVENTS, 50):
        assert engine.ingest(marked(50, first)).accepted == 50
    bad = tmp_path / "bad.ndjson"
    bad.write_bytes(b'{"event_id": "x", "ts": "%s"}\nno JSON %s\n' % (LETTER, LETTER))
    done = engine.cli("ingest", bad, "--format", "ndjson")
    assert "2 rejected" in done.stdout + done.stderr, done


def content(engine: Engine) -> list[object]:
    """Every event with its raw record, and answers."""
    client = engine.client()
    events = [
        (s.seq, msgspec.to_builtins(s.event), s.raw, s.features) for s in all_events(client, features=True, raw=True)
    ]
    answers = [shape(ask(client, f"e{n:06d}", space=space)) for n in (30, 140) for space in ("sbert", "fused")]
    return [events, answers]


@pytest.fixture
def encrypted(start: Starter, tmp_path: Path) -> Iterator[Engine]:
    engine = start(env=write_key(tmp_path / "key"))
    fill(engine, tmp_path)
    yield engine


def test_everything_works_and_nothing_is_told(encrypted: Engine, tmp_path: Path) -> None:
    engine = encrypted
    client, before = engine.client(), content(engine)
    assert told(engine.data_dir) == NOTHING
    texts = client.search_text(f"{TEXT.decode()} of 7", options=Options(space="sbert", top_k=3)).answers[0]
    assert texts.hits and all(TEXT.decode() in hit.event.text for hit in texts.hits)  # type: ignore[union-attr]
    assert client.explain("e000003", "e000007").explanation is not None
    assert TEXT.decode() in engine.cli("show", "e000007").stdout
    assert engine.cli("show", "e000007", "--raw").stdout == f"{RAW.decode()} 7\n"
    letters = engine.json("dead_letters")
    assert len(letters) == 2 and all(LETTER in base64.b64decode(x["record_base64"]) for x in letters)

    manifest = engine.manifest()
    assert manifest.format_version == 3 and manifest.key_id
    lines = processes(engine.sessions[-1])
    assert len(lines) >= 3
    told_of_key = [*lines.values(), engine.log, repr(engine.facts()), engine.cli("info", "--json").stdout]
    for pid in lines:
        with suppress(FileNotFoundError, ProcessLookupError):  # a child that was building an index
            told_of_key.append(Path(f"/proc/{pid}/environ").read_bytes().decode())
    assert not any(KEY.hex() in text.lower() for text in told_of_key)

    assert engine.stop() == 0
    engine.start()
    assert content(engine) == before
    engine.ingest(marked(7, EVENTS))
    engine.kill()
    engine.start()
    now = content(engine)
    assert len(now[0]) == EVENTS + 7 and now[0][:EVENTS] == before[0]  # type: ignore[arg-type, index]
    assert told(engine.data_dir) == NOTHING

    client = engine.client()
    gone = client.purge(filter=Filter(until=make(20).event.ts)).facts
    assert gone["events"] == 20
    client.compact()
    assert stored_ids(client) == [f"e{n:06d}" for n in range(20, EVENTS + 7)]
    assert client.scrub().facts["damaged"] == 0
    assert told(engine.data_dir) == NOTHING

    home, other = tmp_path / "backups", tmp_path / "restored"
    assert engine.cli("backup", "create", home, "--name", "one").returncode == 0
    assert not [f for f in verify(home / "one") if f.severity == "problem"]  # without the key
    assert told(home) == NOTHING
    left = content(engine)
    assert engine.stop() == 0
    done = engine.cli("doctor", "--deep", "--json")
    findings = {f["object"]: f for f in msgspec.json.decode(done.stdout)["findings"]}
    assert done.returncode == 0 and "opens every one" in findings["encryption"]["detail"], done.stdout
    assert cli("backup", "restore", home / "one", other).returncode == 0
    assert told(other) == NOTHING
    engine.data_dir, engine.layout = other, Layout(other)
    engine.start()
    assert content(engine) == left


def test_row_files_are_built_again_from_records_and_for_another_model(encrypted: Engine, tmp_path: Path) -> None:
    """By the niced child, which reads the key itself."""
    engine = encrypted
    engine.indexed(2)
    client, before = engine.client(), content(engine)
    flip(engine.layout.row_file(*engine.manifest().row_file(0)), 5_000)
    assert client.scrub().facts["mended"] == 1
    assert engine.manifest().revisions == {0: 1} and content(engine) == before
    elsewhere = Layout(tmp_path / "elsewhere")
    elsewhere.make()
    other = models.read(other_model(elsewhere))
    client.add_model(OTHER_MODEL, other)
    client.use_model(OTHER_MODEL, timeout_ms=60_000)
    assert engine.manifest().model == OTHER_MODEL
    found = engine.json("models", "compare", OTHER_MODEL, models.shipped().name, "-n", "100")
    assert found["data"]["sampled"] == 100
    assert told(engine.data_dir) == NOTHING


def test_the_same_without_a_key_tells_every_marker(start: Starter, tmp_path: Path) -> None:
    """That the search for markers can fail, and that the answers do not depend on the key."""
    engine = start()
    fill(engine, tmp_path)
    found = told(engine.data_dir)
    assert found["zebrawords"] and found["RAWMARK7f3a"] and "dead_letters.ndjson" in found["LETTERMARK9c"], found
    plain, manifest = content(engine), engine.manifest()
    assert (manifest.format_version, manifest.key_id) == (1, "")
    assert engine.stop() == 0
    other = start(data_dir=tmp_path / "other", env=write_key(tmp_path / "key"))
    fill(other, tmp_path)
    assert content(other) == plain
    assert other.stop() == 0


def refusal(engine: Engine) -> str:
    """What is said when it does not start, with the status of a key."""
    before = {p: p.read_bytes() for p in engine.data_dir.rglob("*") if p.is_file() and p.parent.name != "run"}
    engine.start(ready=False)
    assert engine.process is not None
    eventually(lambda: engine.process is None or engine.process.poll() is not None, within_s=60)
    assert engine.process.returncode == REFUSED, engine.log
    engine.process = None
    after = {p: p.read_bytes() for p in engine.data_dir.rglob("*") if p.is_file() and p.parent.name != "run"}
    assert {p for p in before if after.get(p) != before[p] and "-lock" not in p.name} == set()
    return engine.log


def test_a_key_that_does_not_fit_is_refused_by_name(encrypted: Engine, tmp_path: Path) -> None:
    engine, right = encrypted, dict(encrypted.env)
    key_id = engine.manifest().key_id
    assert engine.stop() == 0
    engine.env = {k: v for k, v in right.items() if "KEY_FILE" not in k}
    said = f"is encrypted with key {key_id} and no key is given; nothing was changed; set store.key_file"
    assert said in refusal(engine)
    engine.env = right | write_key(tmp_path / "other", OTHER)
    assert f"is encrypted with key {key_id}, store.key_file holds key" in refusal(engine)
    engine.env = right | write_key(tmp_path / "open", mode=0o644)
    assert "mode 0644): chmod 600" in refusal(engine)
    assert KEY.hex() not in engine.log
    engine.env = right | {"FLOWKIN_STORE__KEY_FILE": str(tmp_path / "none")}
    assert "cannot be read: No such file" in refusal(engine)

    engine.env = {k: v for k, v in right.items() if "KEY_FILE" not in k}
    letters = engine.cli("dead_letters")
    assert letters.returncode == 1 and "no key is given" in letters.stderr
    legacy = engine.cli("export", "--legacy", tmp_path / "legacy")
    assert legacy.returncode == 1 and "no key is given" in legacy.stderr
    done = engine.cli("doctor", "--deep")
    assert done.returncode == 0 and "store.key_file is not set, so none was opened" in done.stdout
    assert engine.cli("backup", "create", tmp_path / "backups").returncode == 0
    engine.env = right
    engine.start()
    assert len(stored_ids(engine.client())) == EVENTS


def test_a_key_for_a_directory_that_is_not_encrypted_is_refused(start: Starter, tmp_path: Path) -> None:
    engine = start()
    engine.ingest(marked(10))
    assert engine.stop() == 0
    engine.env = engine.env | write_key(tmp_path / "key")
    log = refusal(engine)
    assert "is not encrypted, but store.key_file is set; nothing was changed; `flowkin migrate`" in log
    done = engine.cli("doctor")
    assert done.returncode == 7 and "is not encrypted, but store.key_file is set" in done.stdout


def test_a_record_in_the_place_of_another_is_refused_by_the_engine(encrypted: Engine) -> None:
    engine = encrypted
    assert engine.stop() == 0
    catalog = Catalog(engine.layout.catalog, write=True, map_size=1 << 30)  # no key: an attacker with the disk
    with catalog.write() as batch:
        catalog.cipher, table = None, catalog.tables["records"]
        sealed = bytes(catalog.unseal("records", seq_key(7), batch.txn.get(seq_key(7), None, table)))
        batch.put("records", seq_key(8), sealed)  # with a checksum that is right
    catalog.close()
    done = engine.cli("doctor", "--deep")
    assert done.returncode == 7 and "1 records do not open with it: 8;" in done.stdout
    engine.start()
    assert engine.cli("show", "e000007").returncode == 0
    shown = engine.cli("show", "e000008")
    assert shown.returncode and "was not sealed for this place" in shown.stderr
