"""Configuration: one frozen tree, checked once.

Always true
  - Flags beat the environment, the environment beats the file, the file beats the defaults.
  - An error names the key and, where it can, the source. Nothing reads the environment after load().
  - docs/SETTINGS.md is generated from this file; a test fails when it is stale.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from engine.errors import ConfigError, SourceError
from engine.limits import COMMIT_EVENTS_MAX, ROW_FILE_ROWS, ROW_FILE_ROWS_MIN
from engine.upgrade import RULES, Rule

ENV_PREFIX = "FLOWKIN_"
CIDRS_INTERNAL = (
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10",
)  # fmt: skip

Ms = Annotated[int, Meta(ge=1, le=600_000)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, and a misspelt key is an error."""


class Sockets(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    query: Annotated[str, Meta(description="Path of the query socket; empty: DATA_DIR/run/query.sock.")] = ""
    write: Annotated[str, Meta(description="Path of the write socket; empty: DATA_DIR/run/write.sock.")] = ""
    query_mode: Annotated[str, Meta(pattern="^0[0-7]{3}$", description="Mode of the query socket.")] = "0660"
    write_mode: Annotated[str, Meta(pattern="^0[0-7]{3}$", description="Mode of the write socket.")] = "0660"
    write_group: Annotated[str, Meta(description="Group that owns the write socket; empty: the engine's own.")] = ""
    writers: Annotated[
        list[str],
        Meta(
            description="Users (names or uids) who may write, beside the engine's own, root and members of write_group."
        ),
    ] = []
    connections_max: Annotated[int, Meta(ge=1, le=100_000, description="Open connections of one worker.")] = 12_000
    patience_ms: Annotated[
        Ms,
        Meta(description="A peer that takes longer for its Hello, the rest of a frame, or to read replies is closed."),
    ] = 10_000


class Access(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Roles, by user (name or uid) and group (@name or @gid), as the kernel and the user database know a peer. The
    engine's own user and root have all of them."""

    read: Annotated[list[str], Meta(description="Who may ask; empty: whoever may open the query socket.")] = []
    ingest: Annotated[
        list[str],
        Meta(description="Who may store events; empty, here and below: sockets.writers and sockets.write_group."),
    ] = []
    label: Annotated[list[str], Meta(description="Who may label.")] = []
    admin: Annotated[
        list[str],
        Meta(description="Who may add, switch, remove models, measure, scrub, purge, compact, store old events."),
    ] = []


class Readers(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    count: Annotated[int, Meta(ge=1, le=64, description="Reader processes.")] = 2
    deadline_ms: Annotated[Ms, Meta(description="The longest a request may wait, whatever it asks for.")] = 30_000
    confine: Annotated[
        Literal["auto", "require", "off"],
        Meta(description="Landlock and seccomp for readers: what the machine has, all of it or no start, or none."),
    ] = "auto"


class Ingest(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    save_events: Annotated[int, Meta(ge=1, le=COMMIT_EVENTS_MAX, description="Save when this many events wait.")] = 100
    save_after_ms: Annotated[
        Ms, Meta(description="Save when the oldest waiting event is this old; when idle, at once.")
    ] = 5
    commit_events: Annotated[
        int, Meta(ge=1, le=COMMIT_EVENTS_MAX, description="The most events in one commit; the rest waits for the next.")
    ] = 1_024
    queue_events: Annotated[
        int, Meta(ge=1_024, le=1_000_000, description="Waiting events before writers are told to wait.")
    ] = 16_384
    durability: Annotated[
        Literal["full", "meta"],
        Meta(
            description="full: acknowledged events survive power loss. meta: the last commits may be lost, none torn."
        ),
    ] = "full"


class Store(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    map_size_gib: Annotated[int, Meta(ge=1, le=4096, description="Size of the LMDB map (sparse).")] = 64
    row_file_rows: Annotated[
        int,
        Meta(
            ge=ROW_FILE_ROWS_MIN, le=1 << 20, description="Events in a row file; fixed when the data directory is born."
        ),
    ] = ROW_FILE_ROWS
    key_file: Annotated[
        str,
        Meta(
            description="File of mode 0600, or systemd credential: 64 hex characters, which encrypt records and dead "
            "letters; empty: they are not. A new data directory is born so; one that is there has to be migrated."
        ),
    ] = ""
    scrub_hours: Annotated[
        int,
        Meta(ge=1, le=8_760, description="So long after a scrub (everything against its checksums) the next."),
    ] = 24


class Retention(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When stored events leave by themselves: whole row files, the oldest first; never the one that is written to."""

    days: Annotated[
        float,
        Meta(ge=0, le=36_500, description="Row files that have been full for longer than so many days leave; 0: none."),
    ] = 0.0
    bytes_max: Annotated[
        int,
        Meta(
            ge=0, le=1 << 60,
            description="The oldest leave while row files and indexes of the model in use and used catalog pages take "
            "more; 0: no limit.",
        ),
    ] = 0  # fmt: skip


class Network(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    internal: Annotated[list[str], Meta(description="Networks that count as internal, CIDR.")] = msgspec.field(
        default_factory=lambda: list(CIDRS_INTERNAL)
    )


class Flows(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How packets become flows, in captures that the engine itself follows; `flowkin ingest` has options."""

    idle_s: Annotated[int, Meta(ge=1, le=86_400, description="A flow that was silent for so long is over.")] = 120
    active_s: Annotated[int, Meta(ge=1, le=604_800, description="A flow that lasts longer is cut.")] = 3_600
    flows_max: Annotated[
        int, Meta(ge=1_000, le=4_000_000, description="Open flows; beyond that the longest unseen are exported.")
    ] = 160_000
    tunnels: Annotated[
        Literal["inner", "outer"],
        Meta(description="GRE, IP in IP and VXLAN count as the flow inside, or as the tunnel's own."),
    ] = "inner"


class Join(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records of one flow that lie apart (Zeek's logs, EVE's dns, http, tls and fileinfo) and wait for each other."""

    pending_max: Annotated[int, Meta(ge=1, le=1_000_000, description="Flows that wait for text, or text for them.")] = (
        65_536
    )
    wait_s: Annotated[int, Meta(ge=1, le=3_600, description="The longest a flow waits for its text.")] = 60


class Source(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine itself takes in, [sources.NAME]: a file or directory that it follows, or a socket."""

    path: Annotated[str, Meta(description="File or directory to follow. The engine opens nothing beyond it.")] = ""
    listen: Annotated[
        str,
        Meta(
            description="Instead of path: a Unix stream socket that a detector connects to and writes lines. Mode and "
            "group are those of the write socket; a relative path is beneath DATA_DIR/run."
        ),
    ] = ""
    hmac_key_file: Annotated[
        str, Meta(description="File with the 64 hex characters that sign each row (aRGus CSV); others are refused.")
    ] = ""
    format: Annotated[str, Meta(description="Format; auto: found by looking.")] = "auto"
    pattern: Annotated[str, Meta(description="File names to follow in a directory.")] = "*"
    sensor: Annotated[str, Meta(max_length=128, description="Name of the sensor, part of an event's identity.")] = ""
    timezone: Annotated[str, Meta(description="IANA timezone for times without one.")] = "UTC"
    poll_ms: Annotated[Ms, Meta(description="How often to look for new bytes.")] = 200
    past_s: Annotated[
        int,
        Meta(
            ge=0,
            le=315_360_000,
            description="Events older than this are refused, unless access.admin imports them; 0: of any age.",
        ),
    ] = 0
    rate_max: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Events a second; more of them wait. 0: as many as can be stored.")
    ] = 0


class Quality(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the figures of quality are measured, in a niced child."""

    every_s: Annotated[
        int, Meta(ge=0, le=2_592_000, description="How often, where something was stored since; 0: only when asked.")
    ] = 3_600
    window_events: Annotated[
        int, Meta(ge=1_000, le=1_000_000, description="The last so many events are compared with the training data.")
    ] = 10_000
    sample: Annotated[
        int, Meta(ge=50, le=10_000, description="So many of them are looked up, each compared with every stored event.")
    ] = 500


class Log(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level that is logged, to stderr.")
    ] = "info"


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    data_dir: Annotated[str, Meta(description="The data directory.")] = ""
    hang_after_ms: Annotated[
        Ms, Meta(description="A worker that gave no sign of life for so long is killed and restarted.")
    ] = 15_000
    drain_ms: Annotated[Ms, Meta(description="How long a stop waits for requests under way.")] = 5_000
    sockets: Sockets = Sockets()
    access: Access = Access()
    readers: Readers = Readers()
    ingest: Ingest = Ingest()
    store: Store = Store()
    retention: Retention = Retention()
    network: Network = Network()
    flows: Flows = Flows()
    join: Join = Join()
    sources: Annotated[dict[str, Source], Meta(max_length=256)] = {}
    quality: Quality = Quality()
    upgrade: Annotated[dict[str, Rule], Meta(max_length=64)] = msgspec.field(default_factory=lambda: dict(RULES))
    log: Log = Log()

    def __post_init__(self) -> None:
        import ipaddress

        for cidr in self.network.internal:
            try:
                ipaddress.ip_network(cidr)
            except ValueError as e:
                raise ValueError(f"network.internal: {e}") from e
        if self.ingest.save_events > self.ingest.commit_events:
            raise ValueError("ingest.save_events must not be above ingest.commit_events")
        if self.store.key_file and not Path(self.store.key_file).is_absolute():
            raise ValueError("store.key_file must be an absolute path")
        if self.sources:
            from engine.sources import MODULES
            from engine.sources.times import zone
        for name, source in self.sources.items():
            if "/" in name or not 0 < len(name) <= 128:
                raise ValueError(f"sources.{name}: a source's name has 1 to 128 characters and no '/'")
            if bool(source.path) == bool(source.listen):
                raise ValueError(f"sources.{name}: needs either path or listen")
            if source.listen and source.format == "auto":
                raise ValueError(f"sources.{name}: listen needs a format, such as eve")
            if source.format not in ("auto", *MODULES):
                raise ValueError(f"sources.{name}: no format {source.format!r}; there are auto, {', '.join(MODULES)}")
            try:
                zone(source.timezone)
            except SourceError as e:
                raise ValueError(f"sources.{name}: {e}") from e
            if ".." in Path(source.listen).parts:
                raise ValueError(f"sources.{name}: listen has no '..'; it is absolute, or beneath DATA_DIR/run")


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{'.'.join(path)}: {part} is not a section")
    tree[path[-1]] = value


def _value(text: str) -> Any:
    """A flag's or variable's text as TOML would read it, else as a plain string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _rules(given: Any) -> Any:
    """The upgrade triggers: those that ship, changed field by field by what is given, and those that are new."""
    if not isinstance(given, dict):
        return given
    rules: dict[str, Any] = msgspec.to_builtins(RULES)
    for name, rule in given.items():
        shipped = rules.get(name, {})
        if isinstance(rule, dict):
            sides = {"above", "below"} & rule.keys()
            rule = {key: value for key, value in shipped.items() if not sides or key not in ("above", "below")} | rule
        rules[name] = rule
    return rules


def load(
    file: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration from file, environment (FLOWKIN_READERS__COUNT=4) and flags ({"readers.count": 4}).

    Raises ConfigError naming the key and where it came from.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        try:
            tree = tomllib.loads(file.read_text("utf-8"))
        except OSError as e:
            raise ConfigError(f"configuration {file} cannot be read: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"configuration {file} is not TOML: {e}") from e
        except RecursionError:
            raise ConfigError(f"configuration {file} is nested too deeply") from None
    known = {f.name for f in msgspec.structs.fields(Config)}
    for name, text in sorted((os.environ if env is None else env).items()):
        path = name.removeprefix(ENV_PREFIX).lower().split("__")
        if name.startswith(ENV_PREFIX) and path[0] in known:
            _put(tree, path, text if path == ["data_dir"] else _value(text))
    for name, value in (flags or {}).items():
        if value is not None:
            _put(tree, name.split("."), value)
    tree["upgrade"] = _rules(tree.get("upgrade", {}))
    try:
        return msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as e:
        text = str(e).replace("`$.", "`")
        raise ConfigError(f"configuration: {text} ({file or 'environment and flags'})") from e
