"""What a flow says in clear: the first DNS name, HTTP request or TLS server name in its first payload bytes.

Always true
  - Any bytes are taken; what is not exactly understood gives "". Nothing is decompressed, joined or followed.
  - The result is printable ASCII of bounded length; parts are joined by " | ".
"""

from __future__ import annotations

import re

TCP, UDP = 6, 17
DNS_PORTS = frozenset({53, 5353, 5355})
NAME_MAX, URI_MAX, AGENT_MAX = 255, 512, 256

_REQUEST = re.compile(
    rb"(?:GET|POST|HEAD|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE|PROPFIND) (\S{1,4096}) HTTP/1\.[01]\r?\n"
)
_HOST = re.compile(rb"\nhost:[ \t]*([^\r\n]{1,4096})", re.IGNORECASE)
_AGENT = re.compile(rb"\nuser-agent:[ \t]*([^\r\n]{1,4096})", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def flow_text(proto: int, port: int, forward: bytes, backward: bytes) -> str:
    """proto, port: of the flow (the responder's port). forward, backward: the first payload bytes of each direction."""
    for data in (forward, backward):  # the backward ones too: a capture may have begun in the middle of a flow
        if not data:
            continue
        if port in DNS_PORTS:
            text = dns_name(data if proto == UDP else data[2:])
        elif proto != TCP:
            return ""
        elif data[0] == 0x16:
            text = server_name(data)
        else:
            text = http_request(data)
        if text:
            return text
    return ""


def http_request(data: bytes) -> str:
    """Host and URI, then the user agent."""
    request = _REQUEST.match(data)
    if request is None:
        return ""
    head = data[: data.find(b"\r\n\r\n") % (len(data) + 1)]
    host, agent = _HOST.search(head), _AGENT.search(head)
    uri = _clean(request[1], URI_MAX)
    name = _clean(host[1], NAME_MAX) if host else ""
    where = name + uri if uri.startswith("/") else uri
    return f"{where} | {_clean(agent[1], AGENT_MAX)}" if agent else where


def dns_name(data: bytes) -> str:
    """The first question's name, of a query or an answer."""
    if len(data) < 17 or data[2] & 0x78 or data[4:6] != b"\0\1":  # opcode 0, one question
        return ""
    labels, pos, size = [], 12, 0
    while pos < len(data) and (n := data[pos]):
        size += n + 1
        if n > 63 or size > NAME_MAX or pos + 1 + n >= len(data):
            return ""
        labels.append(data[pos + 1 : pos + 1 + n])
        pos += n + 1
    return _clean(b".".join(labels), NAME_MAX)


def server_name(data: bytes) -> str:
    """SNI of a ClientHello that lies in the given bytes as far as the name."""
    if len(data) < 44 or data[1] != 3 or data[5] != 1:
        return ""
    pos = 43 + 1 + data[43]  # record 5, handshake 4, version 2, random 32, then the session id
    pos += 2 + _number(data, pos, 2)  # cipher suites
    pos += 1 + _number(data, pos, 1)  # compression methods
    pos += 2
    while pos + 4 <= len(data):
        kind, size = _number(data, pos, 2), _number(data, pos + 2, 2)
        if kind == 0:
            length = _number(data, pos + 7, 2)
            name = data[pos + 9 : pos + 9 + length]
            return _clean(name, NAME_MAX) if len(name) == length and _number(data, pos + 6, 1) == 0 else ""
        pos += 4 + size
    return ""


def _number(data: bytes, pos: int, size: int) -> int:
    """Big-endian; past the end 0."""
    return int.from_bytes(data[pos : pos + size], "big")


def _clean(data: bytes, length_max: int) -> str:
    return _UNPRINTABLE.sub("?", data[:length_max].decode("latin-1").strip())
