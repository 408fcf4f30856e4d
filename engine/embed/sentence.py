"""An event in words: what the sbert space embeds.

Always true
  - A sentence depends on addresses only by their kind, on numbers only by few buckets: flows that are alike share one,
    and it is embedded once.
  - No verdict is in it: family, classification, scores, verdicts, decision and label are never read.
  - A change of wording is a new WORDING: it is part of the memo's key and of a model's card.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote_plus

from engine.config import CIDRS_INTERNAL
from engine.embed.base import F32
from engine.features import INDEX
from ipc.event import Event

WORDING = 1
TEXT_CHARS_MAX = 220  # about 45 tokens; the structure around it takes about 20

_PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 58: "icmp", 89: "ospf", 132: "sctp"}

_PORTS: dict[str, tuple[int, ...]] = {
    "ftp": (20, 21),
    "ssh": (22, 2222),
    "telnet": (23, 2323),
    "mail": (25, 110, 143, 465, 587, 993, 995),
    "dns": (53,),
    "dhcp": (67, 68, 546, 547),
    "tftp": (69,),
    "http web": (80, 8000, 8080, 8081, 8888, 9000),
    "https web": (443, 8443),
    "kerberos": (88, 464, 543, 544),
    "rpc portmapper": (111,),
    "ntp time": (37, 123),
    "windows rpc": (135, 593),
    "netbios": (137, 138, 139),
    "snmp": (161, 162),
    "bgp": (179,),
    "irc chat": (194, 6660, 6667, 6697),
    "ldap directory": (389, 636, 3268, 3269),
    "smb file sharing": (445,),
    "vpn": (500, 1194, 1701, 1723, 4500, 51820),
    "modbus industrial control": (502, 102, 20000, 44818),
    "syslog": (514,),
    "printer": (515, 631, 9100),
    "rtsp video": (554,),
    "ipmi": (623,),
    "dns over tls": (853,),
    "file copy": (873,),
    "proxy": (1080, 3128),
    "sql database": (1433, 1434, 1521, 3306, 5432),
    "other database": (6379, 9042, 9200, 27017),
    "mqtt": (1883, 8883),
    "device discovery": (1900, 3702, 5353, 5355),
    "nfs file sharing": (2049,),
    "containers": (2375, 2376, 6443, 10250),
    "iscsi storage": (3260,),
    "rdp remote desktop": (3389,),
    "vnc remote desktop": (5900, 5901),
    "voice": (3478, 5004, 5060, 5061),
    "chat": (5222, 5223),
    "backdoor shell": (1337, 4444, 31337),
    "android debug": (5555,),
    "message queue": (5672, 9092, 61616),
    "windows remote management": (5985, 5986),
    "file sharing peers": (6881, 6882),
    "tor": (9001, 9030, 9050),
    "memcached": (11211,),
}
_SERVICES = {port: name for name, ports in _PORTS.items() for port in ports}

_BYTES = ((1, "no data"), (200, "tiny"), (2_000, "small"), (50_000, "medium"), (5_000_000, "large"), (math.inf, "huge"))
_PACKETS = ((2, "one packet"), (12, "few packets"), (200, "many packets"), (math.inf, "very many packets"))
_SECONDS = (
    (0.005, "instant"),
    (1.0, "short"),
    (30.0, "seconds long"),
    (600.0, "minutes long"),
    (math.inf, "very long"),
)


class _Numbers(NamedTuple):
    """The features that a sentence tells of, NaN where missing."""

    total_forward_packets: float
    total_backward_packets: float
    total_forward_bytes: float
    total_backward_bytes: float
    flow_duration: float
    fin_flag_count: float
    rst_flag_count: float
    syn_flag_count: float
    flow_completion_rate: float


_SPOKEN = [INDEX[name] for name in _Numbers._fields]

_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])")
_UUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_HEX = re.compile(r"\b(?=[0-9a-f]*\d)(?=\d*[a-f])(?:0x)?[0-9a-f]{8,}\b")
# a bound, as each "=" begins a word: without one `a=a=a=...` costs the square of its length
_BLOB = re.compile(r"\b(?=[a-z+_=]{0,127}\d)[a-z0-9+_=]{32,}")
_RANDOM = re.compile(r"\b(?=[a-z]*\d[a-z]*\d)(?=\d*[a-z])[a-z0-9]{10,}\b")
_DIGITS = re.compile(r"\d{4,}|(?<=[=?])\d+\b")
_SPACE = re.compile(r"[\s\x00-\x1f\x7f]+")


@lru_cache(65_536)
def place(address: str, internal: tuple[str, ...]) -> str:
    """internal, external, broadcast, or "" where there is no address."""
    try:
        ip = ip_address(address)
    except ValueError:
        return ""
    if ip.is_multicast or address.endswith(".255") or address == "0.0.0.0":
        return "broadcast"
    inside = ip.is_loopback or any(ip in net for net in _networks(internal) if net.version == ip.version)
    return "internal" if inside else "external"


@lru_cache(64)
def _networks(internal: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(cidr, strict=False) for cidr in internal)


@lru_cache(16_384)
def normalised(text: str) -> str:
    """Free text without what makes it unique: addresses, ids, hex, long digits; lower case, repeats left out, cut to
    TEXT_CHARS_MAX at a word."""
    text = unicodedata.normalize("NFKC", unquote_plus(text)).lower()
    for pattern, word in (
        (_ADDRESS, "address"), (_UUID, "id"), (_HEX, "hex"), (_BLOB, "blob"), (_RANDOM, "random"), (_DIGITS, "number"),
    ):  # fmt: skip
        text = pattern.sub(word, text)
    parts = dict.fromkeys(_SPACE.sub(" ", part).strip() for part in text.split("|"))
    text = ", ".join(part for part in parts if part)
    if len(text) <= TEXT_CHARS_MAX:
        return text
    return text[: TEXT_CHARS_MAX + 1].rpartition(" ")[0] or text[:TEXT_CHARS_MAX]


def sentence(event: Event, features: F32, internal: tuple[str, ...] = CIDRS_INTERNAL) -> str:
    """The event in words, of its features float32 [105], NaN = missing: "dns udp internal to external, answered, sent
    tiny, received small, few packets, instant". What is not known is not said. internal: CIDRs that count as that."""
    return sentences([event], features.reshape(1, -1), internal)[0]


def sentences(events: Sequence[Event], features: F32, internal: tuple[str, ...] = CIDRS_INTERNAL) -> list[str]:
    """Of events with their features, float32 [n, 105]."""
    spoken = features[:, _SPOKEN].tolist()
    return [_sentence(event, _Numbers(*numbers), internal) for event, numbers in zip(events, spoken, strict=True)]


def _sentence(event: Event, of: _Numbers, internal: tuple[str, ...]) -> str:
    sent, received = _bucket(_BYTES, of.total_forward_bytes), _bucket(_BYTES, of.total_backward_bytes)
    parts = [
        normalised(event.text) if event.text else "",
        _who(event, internal),
        _state(event, of),
        f"sent {sent}" if sent else "",
        f"received {received}" if received else "",
        _bucket(_PACKETS, of.total_forward_packets + of.total_backward_packets),
        _bucket(_SECONDS, of.flow_duration),
    ]
    return ", ".join([part for part in parts if part]) or event.kind


def _who(event: Event, internal: tuple[str, ...]) -> str:
    protocol = "" if event.proto is None else _PROTOCOLS.get(event.proto, "other protocol")
    service = ""
    if event.dst_port is not None and protocol in ("tcp", "udp", "sctp"):
        service = _SERVICES.get(event.dst_port) or ("low port" if event.dst_port < 1_024 else "high port")
    ends = [p for p in (place(address, internal) for address in (event.src_ip, event.dst_ip)) if p]
    return " ".join(word for word in (service, protocol, " to ".join(ends)) if word)


def _state(event: Event, of: _Numbers) -> str:
    """How the conversation went, from packets and flags; "" where neither is known."""
    if math.isnan(of.total_forward_packets) or math.isnan(of.total_backward_packets):
        return ""
    if of.total_backward_packets == 0:
        return "unanswered"
    if event.proto != 6:
        return "answered"
    if math.isnan(of.fin_flag_count) or math.isnan(of.rst_flag_count):
        return {0.0: "not established", 0.5: "opened", 1.0: "closed"}.get(of.flow_completion_rate, "answered")
    if of.rst_flag_count > 0:
        return "refused" if of.total_forward_bytes + of.total_backward_bytes == 0 else "reset"
    if of.fin_flag_count > 0:
        return "closed"
    return "opened" if of.syn_flag_count > 0 else "ongoing"


def _bucket(buckets: tuple[tuple[float, str], ...], value: float) -> str:
    """The first bucket whose bound is above the value; "" where it is missing."""
    for bound, word in buckets:
        if value < bound:
            return word
    return ""
