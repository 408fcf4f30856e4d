"""The words of Argus's client ra: protocols, states and ports, as binetflow and UNSW-NB15 have them.

Always true
  - What ra prints for several protocols ("any"), for none (ARP, LLC) or for an unassigned one is no protocol number.
  - A state says how a TCP flow went only where that is certain: FIN and RST are printed whatever came before.
"""

from __future__ import annotations

from functools import lru_cache

from engine.normalize import ICMP, ICMP6, SCTP, TCP, UDP
from engine.sources.table import MISSING, whole

# ra's names of the IP protocols in order of their number, from 0.
_NAMES = """
ip icmp igmp ggp ipnip st2 tcp cbt egp igp bbn-rcc nvp pup argus emcon xnet chaos udp mux dcn hmp prm xns-idp
trunk-1 trunk-2 leaf-1 leaf-2 rdp irtp iso-tp4 netblt mfe-nsp merit-inp sep 3pc idpr xtp ddp idpr-cmtp tp++ il ipv6 sdrp
ipv6-route ipv6-frag idrp rsvp gre mhrp bna esp ah i-nlsp swipe narp mobile tlsp skip ipv6-icmp ipv6-no ipv6-opts any
cftp any sat-expak kryptolan rvd ippc any sat-mon visa ipcv cpnx cphb wsn pvp br-sat-mon sun-nd wb-mon wb-expak iso-ip
vmtp secure-vmtp vines ttp nsfnet-igp dgp tcf eigrp ospf sprite-rpc larp mtp ax.25 ipip micp aes-sp3-d etherip encap
pri-enc gmtp ifmp pnni pim aris scps qnx a/n ipcomp snp compaq-peer ipx-n-ip vrrp pgm zero l2tp ddx iatp stp srp uti smp
sm ptp isis fire crtp crudp sccopmce iplt sps pipe sctp fc
"""
PROTOCOLS = {name: number for number, name in enumerate(_NAMES.split()) if name != "any"} | {"icmp6": ICMP6, "igrp": 88}
PORTED = (TCP, UDP, SCTP)

# flow_completion_rate of TCP: asked for or accepted, but no more; connected.
STATES = {"REQ": 0.0, "ACC": 0.0, "CON": 0.5, "EST": 0.5}


@lru_cache(maxsize=1024)
def protocol(word: str) -> int | None:
    word = word.strip().lower()
    if word.isascii() and word.isdigit():
        return whole("protocol", word, 255)
    return PROTOCOLS.get(word)


def ports(proto: int | None, src: str, dst: str) -> tuple[int | None, int | None]:
    """The ports of a flow; of ICMP type and code. Raises BadRecordError.

    ra prints ICMP as one number, code and type (0x0303, 0x0008), and its identifier in place of the other port; as two
    short ones (0x03, 0x03); or both in decimal.
    """
    src, dst = src.strip().lower(), dst.strip().lower()
    if proto in PORTED:
        return _number("source port", src, 65_535), _number("destination port", dst, 65_535)
    if proto not in (ICMP, ICMP6):
        return None, None
    if src.startswith("0x") and len(src) > 4:
        both = _number("ICMP type and code", src, 65_535) or 0
        return both & 0xFF, both >> 8
    return _number("ICMP type", src, 255), _number("ICMP code", dst, 255)


def _number(name: str, cell: str, largest: int) -> int | None:
    if cell.startswith("0x") and 2 < len(cell) <= 10 and not set(cell[2:]) - set("0123456789abcdef"):
        cell = str(int(cell, 16))
    return None if cell in MISSING else whole(name, cell, largest)
