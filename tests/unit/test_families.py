"""Families: the sources' words become the canonical ones, unknown words stay."""

from __future__ import annotations

import pytest

from engine.families import FAMILIES, canonical, is_attempt, trace_window_ms, trace_word


@pytest.mark.parametrize(
    ("word", "family"),
    [
        ("DoS Hulk", "DoS"),
        ("dos_hulk", "DoS"),
        ("DoS Slowhttptest", "DoS"),
        ("DDoS", "DDoS"),
        ("DDOS attack-HOIC", "DDoS"),
        ("FTP-Patator", "BruteForce"),
        ("SSH-Bruteforce", "BruteForce"),
        ("FTP-BruteForce", "BruteForce"),
        ("Portscan", "PortScan"),
        ("PORTSCAN", "PortScan"),
        ("Infiltration - Portscan", "PortScan"),
        ("Reconnaissance", "PortScan"),
        ("Web Attack - XSS", "WebAttack"),
        ("Web Attack \u2013 Sql Injection", "WebAttack"),
        ("Web Attack \ufffd Brute Force", "WebAttack"),
        ("Botnet - Attempted", "Botnet"),
        ("Heartbleed", "Exploit"),
        ("Theft", "Exfiltration"),
        ("C&C", "C2"),
        ("C&C-HeartBeat", "C2"),
        ("PartOfAHorizontalPortScan", "PortScan"),
        ("BENIGN", "Normal"),
        ("Background", "Unknown"),
        ("Worms", "Worm"),
        ("", ""),
        ("Zero Day\tThing\x00", "Zero Day Thing"),
    ],
)
def test_words_of_sources(word: str, family: str) -> None:
    assert canonical(word) == family


def test_canonical_is_idempotent() -> None:
    for family in FAMILIES:
        assert canonical(family.name) == family.name
        for alias in family.aliases.split(","):
            assert canonical(alias) == family.name
    assert canonical(canonical("Something  New ")) == "Something New"


def test_attempts() -> None:
    assert is_attempt("Botnet - Attempted") and is_attempt("DoS Hulk - attempted ")
    assert not is_attempt("Attempted Information Leak")


def test_trace_words_are_those_of_the_older_system() -> None:
    words = {f: trace_word(f) for f in ("DDoS", "Ransomware", "BruteForce", "PortScan", "Unknown")}
    assert list(words.values()) == ["ddos", "ransomware", "ssh_brute", "scan", "unknown"]
    assert [trace_window_ms(f) for f in ("DDoS", "BruteForce", "PortScan", "New Thing")] == [
        10_000,
        30_000,
        60_000,
        60_000,
    ]
    assert trace_word("New Thing") == "newthing"
