"""Options that several commands share, and how their text becomes values. No printing, nothing of the engine.

Always true
  - A decorator here turns its options into one argument: `session`, `out`, `filter`, `options`.
  - Values that cannot be right are refused here, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.session import Session
from cli.text import PROTOCOLS, instant

if TYPE_CHECKING:
    from cli.render import Out
    from ipc.messages import Filter, Options

F = TypeVar("F", bound=Callable[..., Any])
SPACES = ("fused", "attack", "chronos", "sbert")
CLASSIFICATIONS = ("BENIGN", "SUSPICIOUS", "MALICIOUS", "UNKNOWN")
KINDS = ("flow", "alert", "notice")
DECISIONS = ("ALLOW", "DROP", "ALERT")
TOP_K_MAX = 1_000  # of ipc.messages, which --help does not import; a test compares


class Instant(click.ParamType):  # type: ignore[type-arg]
    """A time as ns."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else instant(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)


class PortRange(click.ParamType):  # type: ignore[type-arg]
    """80, 80,443 or 1000-2000 -> inclusive ranges."""

    name = "PORTS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[tuple[int, int]]:
        if isinstance(value, list):
            return value
        ranges = []
        for part in value.split(","):
            low, dash, high = part.strip().partition("-")
            try:
                pair = int(low), int(high if dash else low)
            except ValueError:
                self.fail(f"{part!r} is neither a port nor a range such as 1000-2000", param, ctx)
            if not 0 <= pair[0] <= pair[1] <= 65_535:
                self.fail(f"{part!r} is not within 0-65535, the lower port first", param, ctx)
            ranges.append(pair)
        return ranges


class Protocol(click.ParamType):  # type: ignore[type-arg]
    """tcp, 6 or tcp,udp -> IANA numbers."""

    name = "PROTO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        numbers = []
        for part in value.lower().split(","):
            word = part.strip()
            number = PROTOCOLS.get(word, int(word) if word.isascii() and word.isdigit() else -1)
            if not 0 <= number <= 255:
                self.fail(f"{part!r} is no protocol: {', '.join(PROTOCOLS)} or a number from 0 to 255", param, ctx)
            numbers.append(number)
        return numbers


class Network(click.ParamType):  # type: ignore[type-arg]
    """An address or a CIDR, as text."""

    name = "ADDRESS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        import ipaddress

        try:
            network = ipaddress.ip_network(value.strip(), strict=False)
        except ValueError:
            self.fail(f"{value!r} is neither an address nor a network such as 10.0.0.0/8", param, ctx)
        return str(network.network_address if network.num_addresses == 1 else network)


class Weights(click.ParamType):  # type: ignore[type-arg]
    """chronos=1,attack=2 -> {space: weight}."""

    name = "SPACE=W,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        weights = {}
        for part in value.split(","):
            space, _, text = part.partition("=")
            space = space.strip()
            try:
                weight = float(text)
            except ValueError:
                weight = -1.0
            if space not in SPACES[1:] or not 0.0 <= weight <= 1e6:
                self.fail(f"{part!r}: write it as chronos=1,attack=2,sbert=0.5, no weight below 0", param, ctx)
            weights[space] = weight
        if not any(weights.values()):
            self.fail("at least one weight must be above 0", param, ctx)
        return weights


class Words(click.ParamType):  # type: ignore[type-arg]
    """One word or several, separated by commas."""

    def __init__(self, name: str, choices: tuple[str, ...] = ()) -> None:
        self.name, self.choices = name, choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        words = [word.strip() for word in value.split(",") if word.strip()]
        if not words:
            self.fail("an empty word", param, ctx)
        known = {choice.lower(): choice for choice in self.choices}
        for word in words:
            if known and word.lower() not in known:
                self.fail(f"{word!r} is not one of {', '.join(self.choices)}", param, ctx)
        return [known.get(word.lower(), word) for word in words]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(choice) for choice in self.choices if choice.lower().startswith(incomplete.lower())]


# Not checked here: what opens a path says better what is wrong with it, with the status for that.
PATH = click.Path(path_type=Path, readable=False)
PATH_OR_DASH = click.Path(path_type=Path, readable=False, allow_dash=True)


class Share(click.FloatRange):
    """0 to 1; the metavar says so already."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def _describe_range(self) -> str:
        return ""


SHARE = Share()


def _stack(function: F, options: list[Callable[[Any], Any]]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


# ---- where the engine is ------------------------------------------------------------------------------------------
def _point(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        given = ctx.meta.setdefault(__name__, {})  # of the whole line: before and after the name of the command
        given[str(param.name)] = value
        ctx.ensure_object(Session).point(**given)


def located(*, socket: bool = True) -> Callable[[F], F]:
    """--data-dir and --socket, also taken before the command; gives `session`."""

    def decorate(function: F) -> F:
        options = [
            click.option(
                "--data-dir",
                metavar="DIR",
                type=PATH,
                expose_value=False,
                callback=_point,
                help="Data directory of the engine.  [env: FLOWKIN_DATA_DIR]",
            )
        ]
        if socket:
            options.append(
                click.option(
                    "--socket",
                    metavar="PATH",
                    type=PATH,
                    expose_value=False,
                    callback=_point,
                    help="Query socket of the engine; the write socket is write.sock beside it.",
                )
            )

        @wraps(function)
        def inner(*args: Any, **kw: Any) -> Any:
            return function(click.get_current_context().ensure_object(Session), *args, **kw)

        return _stack(inner, options)  # type: ignore[return-value]

    return decorate


# ---- how to print -------------------------------------------------------------------------------------------------
def printed(function: F, *, json_help: str = "Print one JSON document.") -> F:
    """--json and --ndjson; gives `out`."""

    @wraps(function)
    def inner(*args: Any, json: bool, ndjson: bool, **kw: Any) -> Any:
        from cli.render import Out

        if json and ndjson:
            raise click.UsageError("--json and --ndjson exclude each other")
        out: Out = Out("json" if json else "ndjson" if ndjson else "text")
        return function(*args, out=out, **kw)

    return _stack(
        inner,
        [
            click.option("--json", is_flag=True, help=json_help),
            click.option("--ndjson", is_flag=True, help="Print JSON, one line for each."),
        ],
    )  # type: ignore[return-value]


def timed(function: F) -> F:
    """--timeout in seconds; gives `timeout_ms`, None where the default holds."""

    @wraps(function)
    def inner(*args: Any, timeout: float | None, **kw: Any) -> Any:
        return function(*args, timeout_ms=None if timeout is None else max(1, round(timeout * 1000)), **kw)

    option = click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(0.001, 600.0),
        help="Give up after so long.  [default: 10]",
    )
    return _stack(inner, [option])  # type: ignore[return-value]


# ---- which events -------------------------------------------------------------------------------------------------
def _many(*names: str, type: Any, help: str, metavar: str | None = None) -> Callable[[Any], Any]:
    return click.option(*names, type=type, multiple=True, help=help, metavar=metavar)


_FILTERS = [
    _many("--class", "classifications", type=Words("CLASS", CLASSIFICATIONS), help="Verdict: " + ", ".join(CLASSIFICATIONS) + "."),  # noqa: E501
    _many("--family", "families", type=Words("FAMILY"), help="Kind of attack: DDoS, PortScan, C2, Normal, ..."),
    _many("--source", "sources", type=Words("NAME"), help="Name of the source."),
    _many("--kind", "kinds", type=Words("KIND", KINDS), help="flow, alert or notice."),
    _many("--decision", "decisions", type=Words("DECISION", DECISIONS), help="What was decided: ALLOW, DROP or ALERT."),
    _many("--label", "labels", type=click.STRING, metavar="LABEL", help="An analyst's label; '' for none yet."),
    _many("--firewall-action", "firewall_actions", type=click.STRING, metavar="ACTION", help="What a firewall did about it: BLOCK, ...; '' for nothing."),  # noqa: E501
    click.option("--since", type=Instant(), help="Not before: an ISO time (UTC) or an age: 24h, 7d."),
    click.option("--until", type=Instant(), help="Before: an ISO time (UTC) or an age."),
    _many("--src", type=Network(), help="Address or network of the initiator."),
    _many("--dst", type=Network(), help="Address or network of the responder."),
    _many("--addr", type=Network(), help="Address or network of either end."),
    _many("--src-port", "src_ports", type=PortRange(), help="Ports of the initiator: 22, 80,443 or 1000-2000."),
    _many("--dst-port", "dst_ports", type=PortRange(), help="Ports of the responder."),
    _many("--proto", "protos", type=Protocol(), help="Protocols: tcp, udp, icmp or numbers."),
    click.option("--score-min", type=SHARE, metavar="0..1", help="Final score at least."),
    click.option("--score-max", type=SHARE, metavar="0..1", help="Final score at most."),
    click.option("--discrepancy-min", type=SHARE, metavar="0..1", help="The detectors disagree at least so much."),
    click.option("--discrepancy-max", type=SHARE, metavar="0..1", help="The detectors disagree at most so much."),
]  # fmt: skip
_FILTER_NAMES = (
    "classifications", "families", "sources", "kinds", "decisions", "labels", "firewall_actions", "since", "until",
    "src", "dst", "addr", "src_ports", "dst_ports", "protos", "score_min", "score_max", "discrepancy_min",
    "discrepancy_max",
)  # fmt: skip


def _is_utf8(text: str) -> bool:
    """Not where an argument's bytes were none."""
    return text == text.encode("utf-8", "replace").decode()


def _family(word: str) -> str:
    """As it is stored, whatever a source calls it. Raises UsageError for a word that says of no family."""
    from engine.families import UNKNOWN, canonical

    family = canonical(word)
    if family == UNKNOWN and word.lower() != UNKNOWN.lower():
        raise click.UsageError(f"--family {word}: no family is called so; --class filters by what it is held to be")
    return family


def filter_of(given: dict[str, Any]) -> Filter | None:
    """None where nothing is given, so that an engine sees at once that nothing is filtered."""
    from ipc.messages import Filter

    for low, high, what in (
        ("since", "until", "--since must be before --until"),
        ("score_min", "score_max", "--score-min must not be above --score-max"),
        ("discrepancy_min", "discrepancy_max", "--discrepancy-min must not be above --discrepancy-max"),
    ):
        a, b = given.get(low), given.get(high)
        if a is not None and b is not None and (a >= b if low == "since" else a > b):
            raise click.UsageError(what)
    values = {}
    for name, value in given.items():
        if isinstance(value, tuple):
            flat: list[Any] = []
            for item in value:
                flat.extend(item if isinstance(item, list) else [item])
            if len(flat) > 64:
                raise click.UsageError(f"{name}: at most 64 values")
            if any(isinstance(item, str) and not item.isascii() and not _is_utf8(item) for item in flat):
                raise click.UsageError(f"{name}: not UTF-8")
            if name == "families":
                flat = [_family(word) for word in flat]
            value = flat or None
        if value is not None:
            values[name] = value
    return Filter(**values) if values else None


def filtered(function: F) -> F:
    """The filter flags; gives `filter`."""

    @wraps(function)
    def inner(*args: Any, **kw: Any) -> Any:
        return function(*args, filter=filter_of({name: kw.pop(name) for name in _FILTER_NAMES}), **kw)

    return _stack(inner, list(_FILTERS))  # type: ignore[return-value]


# ---- how to search ------------------------------------------------------------------------------------------------
def searching(space: str = "fused") -> Callable[[F], F]:
    """The query and filter flags; gives `options`, `timeout_ms` and `plan` (print the plan)."""

    def decorate(function: F) -> F:
        @timed
        @filtered
        @wraps(function)
        def inner(
            *args: Any,
            top_k: int,
            space: str,
            before: bool,
            other_episodes: bool,
            collapse: bool,
            explain: bool,
            weights: dict[str, float] | None,
            min_generation: int,
            explain_plan: bool,
            filter: Filter | None,
            **kw: Any,
        ) -> Any:
            from ipc.messages import Options

            if weights and space != "fused":
                raise click.UsageError("--weights needs --space fused")
            options: Options = Options(
                space=space,
                top_k=top_k,
                filter=filter,
                before=before,
                other_episodes=other_episodes,
                collapse=collapse,
                explain=explain,
                weights=weights or {},
                min_generation=min_generation,
            )
            return function(*args, options=options, plan=explain_plan, **kw)

        return _stack(
            inner,
            [
                click.option(
                    "-k",
                    "--top-k",
                    metavar="K",
                    type=click.IntRange(1, TOP_K_MAX),
                    default=10,
                    show_default=True,
                    help=f"How many hits, at most {TOP_K_MAX}.",
                ),
                click.option(
                    "--space",
                    type=click.Choice(SPACES, case_sensitive=False),
                    default=space,
                    show_default=True,
                    help="Like in what: attack (which attack), chronos (timing, sizes, recent past), "
                    "sbert (what it says), fused (all three).",
                ),
                click.option("--before", is_flag=True, help="Only events earlier than the query's own time."),
                click.option("--other-episodes", is_flag=True, help="Not the same pair and family within 10 minutes."),
                click.option("--collapse/--no-collapse", default=True, help="Near-duplicates: one hit, a count."),
                click.option("--explain", is_flag=True, help="Why each hit is near, feature by feature."),
                click.option("--weights", type=Weights(), help="Weights of the spaces, with --space fused."),
                click.option(
                    "--min-generation",
                    type=click.IntRange(0),
                    default=0,
                    metavar="G",
                    help="Wait for this generation: read your own writes.",
                ),
                click.option("--explain-plan", is_flag=True, help="Print how the engine searched."),
            ],
        )  # type: ignore[return-value]

    return decorate


def voting() -> Callable[[F], F]:
    """The flags of classify and the filter flags; gives `options` and `timeout_ms`."""

    def decorate(function: F) -> F:
        @timed
        @filtered
        @wraps(function)
        def inner(*args: Any, min_generation: int, **kw: Any) -> Any:
            from ipc.messages import Voting

            given = {name: kw.pop(name) for name in ("space", "k", "filter", "before", "other_episodes", "collapse")}
            options = Voting(min_generation=min_generation, **given)
            return function(*args, options=options, **kw)

        return _stack(
            inner,
            [
                click.option("-k", metavar="K", type=click.IntRange(1, TOP_K_MAX), default=5, show_default=True,
                             help="How many precedents vote; probabilities were measured with 5."),
                click.option("--space", type=click.Choice(SPACES[1:], case_sensitive=False), default="attack",
                             show_default=True, help="Near in what; see query_similar."),
                click.option("--before/--no-before", default=True,
                             help="Only events earlier than the query's own time vote, or those of any time."),
                click.option("--other-episodes", is_flag=True, help="Not the same pair within 10 minutes."),
                click.option("--collapse/--no-collapse", default=True,
                             help="Near-duplicates have one vote together, or each its own."),
                click.option("--min-generation", type=click.IntRange(0), default=0, metavar="G",
                             help="Wait for this generation: read your own writes."),
            ],
        )  # type: ignore[return-value]  # fmt: skip

    return decorate


# ---- how to read files --------------------------------------------------------------------------------------------
def reading(source: str = "--source") -> Callable[[F], F]:
    """What the adapters need to know; gives `how` (cli.feed.How). source: how that option is called (a query's
    --source filters hits)."""

    def decorate(function: F) -> F:
        @wraps(function)
        def inner(
            *args: Any, format: str, source_name: str, sensor: str, timezone: str, rules: Path | None,
            hmac_key_file: Path | None, idle_s: int, active_s: int, tunnels: str, **kw: Any,
        ) -> Any:  # fmt: skip
            from cli.feed import How

            how = How(format, source_name, sensor, timezone, rules, hmac_key_file, idle_s, active_s, tunnels)
            return function(*args, how=how, **kw)

        return _stack(
            inner,
            [
                click.option(
                    "--format", metavar="NAME", default="auto", show_default=True, help="Format; auto: by looking."
                ),
                click.option(
                    source,
                    "source_name",
                    metavar="NAME",
                    default="",
                    help="Source of the events.  [default: the format]",
                ),
                click.option("--sensor", metavar="S", default="", help="Sensor, part of an event's identity."),
                click.option(
                    "--timezone", metavar="TZ", default="UTC", show_default=True, help="IANA zone of times without one."
                ),
                click.option("--labels", "rules", metavar="FILE", type=PATH, help="Label rules for captures."),
                click.option(
                    "--hmac-key",
                    "hmac_key_file",
                    metavar="FILE",
                    type=PATH,
                    help="64 hex characters that sign each row (aRGus CSV); rows that disagree are refused.",
                ),
                click.option(
                    "--idle-timeout",
                    "idle_s",
                    metavar="SECONDS",
                    type=click.IntRange(1, 86_400),
                    default=120,
                    show_default=True,
                    help="Captures: a flow silent for so long is over.",
                ),
                click.option(
                    "--active-timeout",
                    "active_s",
                    metavar="SECONDS",
                    type=click.IntRange(1, 604_800),
                    default=3_600,
                    show_default=True,
                    help="Captures: a flow that lasts longer is cut.",
                ),
                click.option(
                    "--tunnels",
                    type=click.Choice(["inner", "outer"]),
                    default="inner",
                    show_default=True,
                    help="Captures: GRE, IP in IP and VXLAN count as the flow inside, or as the tunnel's own.",
                ),
            ],
        )  # type: ignore[return-value]

    return decorate
