"""Families: the sources' words become the canonical ones, unknown words stay."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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


words = st.sampled_from([w for f in FAMILIES for w in (f.name, *f.aliases.split(","))])
dressed = st.builds(
    "{}{}{}".format, st.text(max_size=4), words, st.sampled_from(["", " - Attempted", " \u2013 attempted"])
)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.one_of(st.text(), dressed))
@example("x" * 126 + " - attempted")
def test_canonical_is_idempotent_for_any_word(word: str) -> None:
    once = canonical(word)
    assert canonical(once) == once and len(once) <= 128 and once == once.strip()


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
