"""flowkin NDJSON: the event as JSON, one a line; how events are exported, imported and piped in.

Always true
  - `dump` and reading back give the same event, the same 105 float32 and the same source record.
  - Keys are the fields of ipc.event.Event, and features, raw, raw_base64, annotation; another is a Reject naming it.
  - `features` is an object by name; a feature that is missing is left out or null.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import msgspec
import numpy as np

from engine.errors import BadRecordError
from engine.features import F32, INDEX, NAMES, empty, pack
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import Line, LineAdapter, event_id
from engine.sources.times import iso_ns, zone
from ipc.event import Annotation, Event, FeaturedEvent

_FIELDS = frozenset(Event.__struct_fields__)
_KEYS = _FIELDS | {"features", "raw", "raw_base64", "annotation"}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class NdjsonAdapter(LineAdapter):
    format = "ndjson"

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._zone = zone(spec.timezone)

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        first = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
        if first[:1] != b"{" or b'"ts"' not in first:
            return False
        try:
            keys = _decode(first).keys()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return any(key in first for key in (b'"ts_start"', b'"event_id"', b'"features"'))
        return "ts" in keys and (keys <= _KEYS or not keys.isdisjoint(("ts_start", "event_id", "features")))

    def read(self, lines: list[Line], out: Parsed) -> None:
        for line in lines:
            try:
                out.events.append(self._item(line))
            except BadRecordError as e:
                out.rejects.append(self.reject(line.offset, e.reason, line.record))
            except (msgspec.MsgspecError, RecursionError) as e:
                out.rejects.append(self.reject(line.offset, f"not an event: {e}", line.record))

    def _item(self, line: Line) -> FeaturedEvent:
        tree = _decode(line.record)
        features = _features(tree.pop("features", None))
        raw = _raw(tree, line.record)
        tree.pop("annotation", None)  # what was said of it elsewhere is not the event
        for key in tree:
            if key not in _FIELDS:
                raise BadRecordError(f"unknown key {key[:64]!r}")
        if "ts" not in tree:
            raise BadRecordError("no ts")
        tree["ts"] = self._time(tree["ts"])
        tree["ts_start"] = self._time(tree.get("ts_start", tree["ts"]))
        tree.setdefault("source", self.spec.name)
        tree.setdefault("sensor", self.spec.sensor)
        if "event_id" not in tree:
            tree["event_id"] = event_id(str(tree["sensor"]), str(tree.get("kind", "flow")), line.record, line.ordinal)
        return FeaturedEvent(msgspec.convert(tree, Event, strict=True), features, raw)

    def _time(self, value: Any) -> int:
        if isinstance(value, str):
            return iso_ns(value, self._zone)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise BadRecordError("ts and ts_start are whole nanoseconds or ISO 8601 text")


def dump(event: Event, features: F32 | None = None, annotation: Annotation | None = None, raw: bytes = b"") -> bytes:
    """One line, with its end. features: float32 [105] or None; raw: the source record."""
    tree: dict[str, Any] = msgspec.to_builtins(event)
    if features is not None:
        values = zip(NAMES, features.tolist(), strict=True)
        tree["features"] = {name: value for name, value in values if math.isfinite(value)}
    if annotation is not None:
        tree["annotation"] = annotation
    if raw:
        try:
            tree["raw"] = raw.decode()
        except UnicodeDecodeError:
            tree["raw_base64"] = base64.b64encode(raw).decode()
    return _encode(tree) + b"\n"


def _features(tree: Any) -> bytes:
    if tree is None:
        return b""
    if not isinstance(tree, dict):
        raise BadRecordError("features is not an object")
    row = empty(1)[0]
    for name, value in tree.items():
        column = INDEX.get(name)
        if column is None:
            raise BadRecordError(f"unknown feature {str(name)[:64]!r}")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _FLOAT32_MAX:
            raise BadRecordError(f"feature {name} is not a number that float32 holds")
        row[column] = value
    return pack(row)


def _raw(tree: dict[str, Any], record: bytes) -> bytes:
    """The source record that an export carries, or the line itself."""
    text, encoded = tree.pop("raw", None), tree.pop("raw_base64", None)
    if encoded is not None:
        try:
            return base64.b64decode(encoded, validate=True)
        except (TypeError, ValueError, binascii.Error) as e:
            raise BadRecordError("raw_base64 is not base64") from e
    if text is None:
        return record
    if not isinstance(text, str):
        raise BadRecordError("raw is not text")
    return text.encode()
