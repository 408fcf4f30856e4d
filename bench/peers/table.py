"""The Markdown of docs/PERFORMANCE.md from kept lines: one table a data set and size, each from one run."""

from __future__ import annotations

import json
from typing import Any

from bench.harness import RESULTS


def table() -> str:
    """Of the newest run of each (data, events)."""
    newest: dict[tuple[str, int], dict[str, Any]] = {}
    for text in (RESULTS / "peers.jsonl").read_text().splitlines():
        line = json.loads(text)
        newest[line["config"]["data"], line["events"]] = line
    return "\n\n".join(_one(line) for line in newest.values())


def _one(line: dict[str, Any]) -> str:
    connections = list(line["flowkin"]["at"])
    config = line["config"]
    head = (
        f"{line['events']:,} events ({config['data']}), {line['metadata_bytes_per_event']:.0f} bytes of metadata each,"
        f" {config['rounds']} rounds of {config['seconds']:g} s, commit {line['commit']}, {line['at'][:10]},"
        f" load {line['machine']['load_before']} before:"
    )
    rows = [
        ["store", *(f"{c} conn." for c in connections), *(f"ratio at {c}" for c in connections), "recall@10",
         "p50, p99 ms at " + connections[-1], "client CPU", "MiB"],
    ]  # fmt: skip
    rows.append(["---"] * len(rows[0]))
    rows.append(_row("**flowkin**", line["flowkin"], connections))
    left_out = []
    for name, peer in line["peers"].items():
        if "left_out" in peer:
            left_out.append(f"Left out: {name}: {peer['left_out']}.")
        else:
            rows.append(_row(name + (" (in process)" if peer["embedded"] else ""), peer, connections))
    parts = [head, "\n".join("| " + " | ".join(row) + " |" for row in rows), *left_out]
    limits = ", ".join(f"{kind} ({of['setting']}) {of['qps']:,.0f}" for kind, of in line["limits"].items())
    parts.append(
        f"limit_qps {line['limit_qps']:,.0f} ({line['limit_of']}); in process: {limits}. flowkin's most is"
        f" {line['limit_share']:.2f} of it."
    )
    return "\n\n".join(parts)


def _row(name: str, of: dict[str, Any], connections: list[str]) -> list[str]:
    at, last = of["at"], of["at"][connections[-1]]
    ratios = [f"{at[c]['ratio']:.1f}" if "ratio" in at[c] else "" for c in connections]
    cpu = last.get("client_cpu_share")
    return [
        name, *(f"{at[c]['qps']:,.0f}" for c in connections), *ratios, f"{of['recall_at_10']:.3f}",
        f"{last['p50_ms']:.1f}, {last['p99_ms']:.1f}", "" if cpu is None else f"{cpu:.2f}", f"{of['memory_mib']:,.0f}",
    ]  # fmt: skip
