"""The formats there are, by name; each adapter is imported when it is first asked for.

Always true
  - MODULES is the one list: a new format is a line here and a file beside it.
  - `detect` asks the adapters in this order; the first that recognises the head reads the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import PurePath

from engine.errors import SourceError
from engine.sources.base import Adapter

# format: module and class, the most specific first.
MODULES: dict[str, tuple[str, str]] = {
    "pcap": ("engine.sources.pcap", "PcapAdapter"),
    "eve": ("engine.sources.eve", "EveAdapter"),
    "argus-rag": ("engine.sources.argus_rag", "ArgusRagAdapter"),
    "argus": ("engine.sources.argus", "ArgusAdapter"),
    "argus-firewall": ("engine.sources.argus_firewall", "ArgusFirewallAdapter"),
    "ndjson": ("engine.sources.ndjson", "NdjsonAdapter"),
    "zeek": ("engine.sources.zeek", "ZeekAdapter"),
    "cicflow": ("engine.sources.cicflow", "CicFlowAdapter"),
    "netflow": ("engine.sources.netflow", "NetflowAdapter"),
    "unsw": ("engine.sources.unsw", "UnswAdapter"),
    "binetflow": ("engine.sources.binetflow", "BinetflowAdapter"),
}


class _Formats(Mapping[str, type[Adapter]]):
    """MODULES as classes, imported at first use."""

    def __getitem__(self, name: str) -> type[Adapter]:
        module, cls = MODULES[name]
        found: type[Adapter] = getattr(import_module(module), cls)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


FORMATS: Mapping[str, type[Adapter]] = _Formats()


def adapter_for(name: str) -> type[Adapter]:
    """The adapter of a format. Raises SourceError with the list of formats."""
    try:
        return FORMATS[name]
    except KeyError:
        raise SourceError(f"no format {name!r}; there are {', '.join(FORMATS)}") from None
    except ModuleNotFoundError as e:
        raise SourceError(f"format {name!r} is not installed: {e}") from e


def detect(head: bytes, file_name: str) -> str:
    """The format of a file by its decompressed beginning (up to 64 KiB). SourceError: with the list of formats."""
    for name in FORMATS:
        try:
            adapter = FORMATS[name]
        except ModuleNotFoundError:
            continue
        if adapter.sniff(head, PurePath(file_name).name):
            return name
    raise SourceError(f"{file_name}: no adapter recognises it; say which with --format: {', '.join(FORMATS)}")
