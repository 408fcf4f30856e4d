"""Write the generated pages: `python -m cli.pages` (make docs). A test fails when one is stale.

Each page is a pure function of the code: page name -> text.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from cli.reference import reference
from cli.settings import example, page
from engine import features
from engine.flows.reference import DIFFERENCES
from ipc import event, messages

ROOT = Path(__file__).resolve().parent.parent


def _type(kind: Any) -> str:
    """A field's type in words."""
    if get_origin(kind) is Annotated:
        return _type(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " | ".join(repr(v) for v in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("nil" if k is type(None) else _type(k) for k in get_args(kind) if k is not msgspec.Raw)
    if get_origin(kind) in (list, tuple):
        return f"array of ({', '.join(_type(k) for k in get_args(kind) if k is not ...)})"
    if get_origin(kind) is dict:
        return f"map of {_type(get_args(kind)[0])} to {_type(get_args(kind)[1])}"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind.__name__
    return {"int": "int", "str": "str", "bytes": "bin", "float": "float", "bool": "bool"}.get(
        getattr(kind, "__name__", ""), str(getattr(kind, "__name__", kind))
    )


def _fields(kind: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    out = []
    for field in msgspec.structs.fields(kind):
        if field.default is not msgspec.NODEFAULT:
            default = repr(field.default) if not isinstance(field.default, msgspec.Struct) else "all defaults"
        elif field.default_factory is not msgspec.NODEFAULT:
            default = repr(field.default_factory())
        else:
            default = "required"
        out.append((field.encode_name, _type(field.type), default))
    return out


def _struct(kind: type[msgspec.Struct]) -> str:
    shape = "array" if kind.__struct_config__.array_like else "map by name"
    lines = [f"### {kind.__name__} ({shape})", "", (kind.__doc__ or "").strip(), ""]
    lines += ["| field | type | default |", "|---|---|---|"]
    lines += [f"| {name} | {what} | {default} |".replace("''", '""') for name, what, default in _fields(kind)]
    return "\n".join(lines) + "\n"


def protocol() -> str:
    """docs/PROTOCOL.md"""
    reads, writes, replies = (get_args(u) for u in (messages.Read, messages.Write, messages.Reply))

    def table(kinds: tuple[type[msgspec.Struct], ...]) -> str:
        lines = ["| tag | message | body: [tag, fields...] |", "|---:|---|---|"]
        for kind in sorted(kinds, key=lambda k: int(k.__struct_config__.tag)):  # type: ignore[arg-type]
            fields = ", ".join(n if d == "required" else f"{n}={d}" for n, _, d in _fields(kind))
            lines.append(f"| {kind.__struct_config__.tag} | {kind.__name__} | {fields} |")
        return "\n".join(lines)

    codes = "\n".join(f"| {c.value} | {c.name} |" for c in messages.ErrorCode)
    parts = (event.Event, event.Verdict, event.FeaturedEvent, event.FirewallAction, event.Annotation, event.Hit,
             messages.Filter, messages.Options, messages.Answer, messages.Explanation, messages.Contribution,
             messages.CounterExample, messages.Alert, messages.Flow, messages.Voting, messages.Judgement,
             messages.Precedent, messages.Stored, messages.Reject)  # fmt: skip
    return f"""# The protocol

Generated from ipc/messages.py and ipc/event.py by `make docs`; do not edit.

Version {messages.PROTOCOL_VERSION} (this engine speaks {messages.PROTOCOL_VERSION_MIN} to {messages.PROTOCOL_VERSION}).
Two Unix stream sockets in DATA_DIR/run: `query.sock` for reads, `write.sock` for writes. A frame is a u32
little-endian length, then that many bytes: one msgpack array, its first element the tag. The first frame of a
connection is Hello, answered by Welcome. A frame has at most {messages.FRAME_BYTES_MAX} bytes (a Hello
{messages.FRAME_BYTES_HELLO}). Requests may be pipelined; replies bear the request's `request_id` and come in any order.
Trailing fields at their default may be left out of a request. Watch is answered again and again, until Cancel.
The last 256 ids whose requests were cancelled are not taken again on that connection.
Vectors are little-endian float32. Times are i64 nanoseconds since 1970 UTC. Who may write is decided by the peer's uid
(SO_PEERCRED).

A client of 32 lines in another language: examples/client.mjs (Node.js with @msgpack/msgpack, run by a test).

## Requests on the query socket

{table(reads)}

## Requests on the write socket

Hello, Ping, Info, Stats and Cancel are answered here, too. A write with more fields than these, by a client newer than
the engine, is refused (BAD_REQUEST): what they ask for would be lost. Reads and replies may have more.

{table(writes)}

## Replies

{table(replies)}

## Error codes (Failure.code)

| code | name |
|---:|---|
{codes}

OVERLOADED and NO_SPACE come with retry_after_ms, and so does NOT_READY where the engine stops before a write other than
Ingest is done. A write that was answered by neither Ingested nor Failure (the connection broke) may be sent again:
identity makes it exactly once. Rejects and not_ip have no identity: sent again, they are counted again.

## Parts

{chr(10).join(_struct(p) for p in parts)}"""


def features_page() -> str:
    """docs/FEATURES.md"""
    bar = "\\|"  # within a cell
    rows = "\n".join(
        f"| {f.column} | {f.name} | {f.group} | {f.scope} | {f.unit} | {'log1p' if f.heavy else ''} | "
        f"{f.fact if f.fact != f.name else ''} | {f.definition.replace('|', bar)} |"
        for f in features.FEATURES
    )
    others = "\n".join(
        f"| {', '.join(d.tools)} | {', '.join(d.columns)} | {d.theirs} | {d.ours} | {d.why} |" for d in DIFFERENCES
    )
    return f"""# The {len(features.FEATURES)} features

Generated from engine/features.py by `make docs`; do not edit. float32, NaN = missing, never a sentinel. `scale`: what a
fitted scaler takes first. `same fact as`: counted once in a distance and shown once in an explanation.
In definitions S is the source of the flow, D its destination, port that of D; the window is the last 30 s.

| # | name | group | scope | unit | scale | same fact as | definition |
|---:|---|---|---|---|---|---|---|
{rows}

## Where other tools compute otherwise

Generated from engine/flows/reference.py. What is not listed here is the same, on flows of equal boundaries: features 0
to 64 of CICFlowMeter (its tables of 2018, its last commit) and what NFStream has of them, with payload bytes. Tests
hold every column to that, and every one that is listed to the tool's own formula, computed from our packets.

| tool | columns | its formula | ours | why it differs |
|---|---|---|---|---|
{others}
"""


PAGES: dict[str, Callable[[], str]] = {
    "docs/PROTOCOL.md": protocol,
    "docs/FEATURES.md": features_page,
    "docs/CLI.md": reference,
    "docs/SETTINGS.md": page,
    "examples/flowkin.toml": example,
}


def main() -> int:
    for name, text in PAGES.items():
        (ROOT / name).write_text(text())
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
