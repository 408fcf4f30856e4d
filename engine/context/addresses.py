"""What an address is: internal or not, and the network it is counted under."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import ip_network

from engine.limits import CONTEXT_HOSTS_MAX


def classifier(internal: Sequence[str]) -> Callable[[str], tuple[bool, int]]:
    """address -> (is it internal, its /16 or, for IPv6, /32 prefix); remembers the latest ones."""
    nets = [ip_network(cidr, strict=False) for cidr in internal]
    rules = {
        bits: [
            (bits - n.prefixlen, int(n.network_address) >> (bits - n.prefixlen))
            for n in nets
            if n.max_prefixlen == bits
        ]
        for bits in (32, 128)
    }

    @lru_cache(maxsize=CONTEXT_HOSTS_MAX)
    def classify(address: str) -> tuple[bool, int]:
        v6 = ":" in address
        try:
            packed = socket.inet_pton(socket.AF_INET6 if v6 else socket.AF_INET, address)
        except (OSError, ValueError):
            return False, -1
        number, inside = int.from_bytes(packed), False
        for shift, net in rules[128 if v6 else 32]:
            if number >> shift == net:
                inside = True
                break
        return inside, (1 << 32) + (number >> 96) if v6 else number >> 16

    return classify
