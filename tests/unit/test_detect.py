"""Which adapter takes which real file: each its own, and none another's."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from engine.errors import SourceError
from engine.sources import MODULES, detect
from engine.sources.files import HEAD_BYTES
from tests.data import SHARED, shared

# The format of the files below a folder, the longest match first; None: no adapter there is recognises them.
EXPECTED: dict[str, str | None] = {
    "argus_binetflow": "binetflow",
    "cicflowmeter_java_flows": "cicflow",
    "cicflowmeter_official": "cicflow",
    "cicflowmeter_official/test.pcap.gz": "pcap",
    "cicids2017_improved": "cicflow",
    "cse_cic_ids2018": "cicflow",
    "eve_generated": "eve",
    "ground_truth_flows/argus_3.0.8": "binetflow",
    "ground_truth_flows/cicflowmeter_": "cicflow",
    "ground_truth_flows/netflower_1.1.0": "cicflow",
    "ground_truth_flows/nfstream_6.6.0": None,
    "iot23": "zeek",
    "nf_bot_iot_v2": "netflow",
    "nfdump": "netflow",
    "nfdump/test1-malicious.nfdump": None,  # nfcapd's binary files
    "nfdump/test1-malicious.nfdump1": "netflow",
    "nsl_kdd": None,
    "pcap_": "pcap",
    "suricata_eve": "eve",
    "unsw_nb15": "unsw",
    "zeek_": "zeek",
}
PARTS = {"expected_ndpi": None, "expected_nfstream": None, "expected_zeek": "zeek"}  # what came with the captures


def expected(path: str) -> str | None:
    for part, format in PARTS.items():
        if f"/{part}/" in path:
            return format
    return EXPECTED[max((key for key in EXPECTED if path.startswith(key)), key=len)]


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(4 * HEAD_BYTES)
    if data.startswith(b"\x1f\x8b"):
        with gzip.open(io.BytesIO(path.read_bytes())) as file:
            data = file.read(HEAD_BYTES)
    return data[:HEAD_BYTES]


@pytest.mark.parametrize("folder", sorted({key.split("/")[0] for key in EXPECTED}))
def test_every_real_file_goes_to_its_own_adapter(folder: str) -> None:
    shared("SOURCES.md")
    files = [path for root in SHARED.glob(f"{folder}*") for path in sorted(root.rglob("*")) if path.is_file()]
    assert files
    for path in files:
        name = path.relative_to(SHARED).as_posix()
        if (
            path.name == "COLUMNS.txt"
            or path.suffix in (".md", ".yaml", ".tsv", ".rules", ".lua")
            or not path.stat().st_size
        ):
            continue
        try:
            found: str | None = detect(head(path), path.name)
        except SourceError:
            found = None
        assert found == expected(name), name
    assert set(EXPECTED.values()) - {None} <= set(MODULES)
