"""Families of events: one closed table from the words that sources use to the word that flowkin uses.

Always true
  - `canonical` is idempotent; a word that no row names is kept as it is, cleaned, never guessed at.
  - A key is a word in lower case without anything but letters and digits, so "DoS Hulk" and "dos_hulk" are one.
  - The word that the older system used in its trace ids is given for every canonical family, here and nowhere else.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

UNKNOWN = "Unknown"
NORMAL = "Normal"
WORD_MAX = 128


class Family(NamedTuple):
    """trace, window_ms: the older system's word and window in a trace id. aliases: words of sources, with commas."""

    name: str
    trace: str
    window_ms: int
    aliases: str


# fmt: off
FAMILIES: tuple[Family, ...] = (
    Family(NORMAL, "benign", 60_000,
        "benign, legitimate, clean, nothreat, none of these"),
    Family(UNKNOWN, "unknown", 60_000,
        "unk, background, unknown threat, unclassified, unlabelled, unlabeled, n a, other, no label, undefined, "
        "attack, potential attack, malicious, suspicious, suspicious activity, uncategorized, raw capture"),
    Family("DDoS", "ddos", 10_000,
        "distributed denial of service, ddos attack, level2 ddos, ddos loit, ddos loic http, ddos attack loic udp, "
        "ddos attacks loic http, ddos attack hoic, ddos hoic, ddos loic udp, ddos tcp, ddos udp, ddos http, "
        "ddos icmp, ddos syn, ddos flood, amplification, reflection"),
    Family("DoS", "dos", 60_000,
        "denial of service, dos attack, dos hulk, dos goldeneye, dos slowloris, dos slowhttptest, dos attacks hulk, "
        "dos attacks goldeneye, dos attacks slowloris, dos attacks slowhttptest, dos tcp, dos udp, dos http, "
        "syn flood, neptune, smurf, teardrop, pod, land, back, apache2, processtable, mailbomb, udpstorm"),
    Family("PortScan", "scan", 60_000,
        "scan, scanning, port scan, port scanning, port scan attack, infiltration portscan, infiltration port scan, "
        "infiltration nmap portscan, recon, reconnaissance, probe, network scan, host scan, vertical scan, "
        "horizontal scan, part of a horizontal port scan, ipsweep, portsweep, nmap, satan, mscan, saint, "
        "os fingerprint, service scan, fingerprinting, analysis"),
    Family("BruteForce", "ssh_brute", 30_000,
        "brute force, bruteforcing, brute force attack, ssh brute, ssh brute force, ssh bruteforce, ftp bruteforce, "
        "ftp brute force, ssh patator, ftp patator, patator, password guessing, credential stuffing, password, "
        "guess passwd, rdp brute force"),
    Family("Botnet", "botnet", 60_000,
        "bot, botnet ares, botnet activity, mirai, okiru, torii"),
    Family("C2", "c2", 60_000,
        "c and c, cc, c c, cnc, command and control, command control, c2 beacon, beacon, beaconing, c c heartbeat, "
        "c c filedownload, c c torii, c c mirai, c c heartbeat filedownload, cc heartbeat"),
    Family("Infiltration", "infiltration", 60_000,
        "infilteration, infiltration attempt, lateral movement, infiltration cool disk, "
        "infiltration dropbox download, infiltration communication victim attacker"),
    Family("WebAttack", "web_attack", 60_000,
        "web, web attack brute force, web attack xss, web attack sql injection, web attack sqli, brute force web, "
        "brute force xss, sql injection, sqli, injection, xss, cross site scripting, command injection, "
        "uploading attack, phf, web application attack"),
    Family("Exfiltration", "exfiltration", 60_000,
        "theft, data theft, data exfiltration, data exfil, exfil, data leak, keylogging, spy, warezclient, "
        "warezmaster, from malicious to malicious malware data exfiltration remcosrat"),
    Family("Ransomware", "ransomware", 60_000,
        "ransom, crypto ransomware, file encryption, wannacry, level2 ransomware, ransomware attack"),
    Family("DNSTunnel", "dns_tunnel", 60_000,
        "dns tunnelling, dns tunneling, dns exfiltration, dns tunnel"),
    Family("Malware", "malware", 60_000,
        "trojan, virus, malicious software, malware download, file download, adware, spyware, rat"),
    Family("Exploit", "exploit", 60_000,
        "exploits, heartbleed, heartbleed port 444, buffer overflow, rootkit, privilege escalation, shellshock, "
        "log4shell, imap, loadmodule, perl"),
    Family("Fuzzers", "fuzzers", 60_000,
        "fuzzer, fuzzing"),
    Family("Generic", "generic", 60_000,
        "generic attack"),
    Family("Backdoor", "backdoor", 60_000,
        "backdoors"),
    Family("Shellcode", "shellcode", 60_000,
        "shell code"),
    Family("Worm", "worm", 60_000,
        "worms"),
    Family("Cryptomining", "cryptomining", 60_000,
        "crypto mining, coin mining, coinminer, miner, cryptojacking"),
    Family("Spam", "spam", 60_000,
        "email spam"),
    Family("Phishing", "phishing", 60_000,
        "phish, social engineering, spear phishing"),
    Family("MITM", "mitm", 60_000,
        "man in the middle, arp spoofing, spoofing"),
)
# fmt: on

_BY_NAME = {family.name: family for family in FAMILIES}
_ATTEMPTED = re.compile(r"\s*[-–—]\s*attempted\s*$", re.IGNORECASE)
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ud800-\udfff]+")


def key(word: str) -> str:
    return "".join(filter(str.isalnum, word.lower()))


_ALIASES = {key(word): family.name for family in FAMILIES for word in (family.name, *family.aliases.split(","))}
assert len(_ALIASES) == sum(len({key(w) for w in (f.name, *f.aliases.split(","))}) for f in FAMILIES), "an alias of two"


@lru_cache(maxsize=4096)
def clean(word: str) -> str:
    """One line of printable characters, at most WORD_MAX."""
    return " ".join(_NOT_PRINTABLE.sub(" ", word).split())[:WORD_MAX].rstrip()


@lru_cache(maxsize=4096)
def canonical(word: str) -> str:
    """The canonical family of a source's word; '' stays ''."""
    word = clean(word)
    bare = _ATTEMPTED.sub("", word)
    return _ALIASES.get(key(bare)) or _ALIASES.get(_web_attack(bare)) or bare


def _web_attack(word: str) -> str:
    """The tables write "Web Attack - XSS" with every dash there is, some of them broken bytes."""
    return "webattack" if key(word).startswith("webattack") else ""


def labelled(label: str, family: str) -> str:
    """The family that an analyst's label gives an event which its detector called `family`; Unknown where nobody knows.

    A label is a family, or says of the detector's word whether it was right; what follows a colon is a remark.
    """
    word = clean(label.partition(":")[0])
    match key(word):
        case "truepositive" | "truenegative" | "tp" | "tn" | "confirmed":
            return family or UNKNOWN
        case "falsepositive" | "fp" | "falsealarm":
            return NORMAL
        case "falsenegative" | "fn":
            return UNKNOWN
    return canonical(word) or family or UNKNOWN


def is_attempt(word: str) -> bool:
    """CIC's improved labels: traffic of an attack that had no effect."""
    return _ATTEMPTED.search(word) is not None


def trace_word(family: str) -> str:
    """How the older system would have named it in a trace id."""
    known = _BY_NAME.get(family)
    return known.trace if known else key(family) or "unknown"


def trace_window_ms(family: str) -> int:
    known = _BY_NAME.get(family)
    return known.window_ms if known else 60_000
