"""Label rules of a capture: which flows belong to which episode, and what they are.

Always true
  - A flow gets what the first matching rule says; a flow without one stays as its source left it.
  - A rule's text is for people: it never reaches an event, where it would give the answer away to the text space.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Self

import msgspec
from msgspec import Meta, Struct

from engine.errors import SourceError
from ipc.event import Classification, Event, Nanoseconds, Port, Word

RULES_MAX = 65_536
LINE_MAX = 1 << 20

Networks = tuple[IPv4Network | IPv6Network, ...] | None


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of labels.ndjson. Absent or null matches anything; ranges include both ends."""

    episode: Word
    family: Word
    classification: Classification
    start_ns: Nanoseconds
    end_ns: Nanoseconds
    half: int = 0
    proto: Annotated[int, Meta(ge=0, le=255)] | None = None
    src: list[str] | None = None  # CIDRs of the initiator
    dst: list[str] | None = None
    src_ports: list[tuple[Port, Port]] | None = None
    dst_ports: list[tuple[Port, Port]] | None = None
    text: str = ""


class LabelRules:
    """Rules in the order of their file."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self._networks = [(_networks(rule.src), _networks(rule.dst)) for rule in rules]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises SourceError, naming the line."""
        try:
            lines = path.read_bytes().splitlines()
        except OSError as e:
            raise SourceError(f"labels {path} cannot be read: {e.strerror}") from e
        decode = msgspec.json.Decoder(Rule).decode
        rules = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if number > RULES_MAX or len(line) > LINE_MAX:
                raise SourceError(
                    f"labels {path}: more than {RULES_MAX} rules, or a line of more than {LINE_MAX} bytes"
                )
            try:
                rule = decode(line)
                _networks(rule.src), _networks(rule.dst)
            except (msgspec.DecodeError, ValueError) as e:
                raise SourceError(f"labels {path}, line {number}: {e}") from e
            rules.append(rule)
        return cls(rules)

    def match(self, event: Event) -> Rule | None:
        """The first rule that the event fits, by its first packet's time."""
        for rule, (src, dst) in zip(self.rules, self._networks, strict=True):
            if (
                rule.start_ns <= event.ts_start <= rule.end_ns
                and (rule.proto is None or rule.proto == event.proto)
                and _in_ports(event.src_port, rule.src_ports)
                and _in_ports(event.dst_port, rule.dst_ports)
                and _in_networks(event.src_ip, src)
                and _in_networks(event.dst_ip, dst)
            ):
                return rule
        return None

    def apply(self, event: Event) -> Event:
        """The event itself, with the verdict of the rule that it fits."""
        rule = self.match(event)
        if rule is not None:
            event.family_raw, event.classification = rule.family, rule.classification
        return event


def _networks(cidrs: list[str] | None) -> Networks:
    return None if cidrs is None else tuple(ip_network(cidr, strict=False) for cidr in cidrs)


def _in_networks(address: str, networks: Networks) -> bool:
    if networks is None:
        return True
    ip = ip_address(address) if address else None
    return ip is not None and any(ip in network for network in networks)


def _in_ports(port: int | None, ranges: list[tuple[int, int]] | None) -> bool:
    return ranges is None or (port is not None and any(low <= port <= high for low, high in ranges))
