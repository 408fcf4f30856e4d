"""Flow features that follow from other flow features: one definition for captures, tables and logs.

Always true
  - Only missing cells are filled; what a source measured is never overwritten.
  - Every value is exact by the definitions of engine/features.py: where a part is missing, the result stays missing.
  - Arithmetic is float64, row by row: how rows are cut into blocks changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.features import F32, INDEX

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]
TCP = 6.0
DURATION_US_MAX = 1e15  # 31 years: a source that says more is mistaken
FLOAT32_MAX = float(np.finfo(np.float32).max)  # what is larger is a source's mistake multiplied, and stays missing
IDLE_US = 5_000_000.0  # a longer gap ends an active period


def derive(features: F32, leaves: F64 | None = None) -> None:
    """Fill missing cells of float32 [n, 105], in place.

    leaves: [n], for data_exfiltration_indicators: 1 from an internal address to an external one, 0 otherwise, NaN where
    an address is missing; without it the column stays as it is."""
    rows = features.astype(np.float64)

    def get(name: str) -> F64:
        return rows[:, INDEX[name]]

    def fill(name: str, value: F64) -> None:
        column = get(name)
        np.copyto(column, value, where=np.isnan(column) & (np.abs(value) <= FLOAT32_MAX))

    with np.errstate(all="ignore"):
        _fill(get, fill)
        if leaves is not None:
            forward, backward = get("total_forward_bytes"), get("total_backward_bytes")
            share = forward / (forward + backward) * np.minimum(1.0, np.log10(1.0 + forward) / 8.0)
            fill("data_exfiltration_indicators", np.where(leaves == 1.0, share, leaves))
    features[:] = rows


def _fill(get: Callable[[str], F64], fill: Callable[[str, F64], None]) -> None:
    _fill_short_sides(get, fill)
    seconds = get("flow_duration")
    n_forward, n_backward = get("total_forward_packets"), get("total_backward_packets")
    bytes_forward, bytes_backward = get("total_forward_bytes"), get("total_backward_bytes")
    n, size = n_forward + n_backward, bytes_forward + bytes_backward

    def rate(amount: F64) -> F64:
        return np.where(seconds > 0.0, amount / seconds, np.where(seconds == 0.0, amount * 0.0, np.nan))

    fill("flow_bytes_per_second", rate(size))
    fill("flow_packets_per_second", rate(n))
    fill("forward_packets_per_second", rate(n_forward))
    fill("backward_packets_per_second", rate(n_backward))
    fill("download_upload_ratio", np.where(n_forward == 0.0, n_backward * 0.0, n_backward / n_forward))

    # Lengths: of each direction, then of both; a direction without packets has length 0.
    fill("forward_packet_length_mean", np.where(n_forward == 0.0, 0.0, bytes_forward / n_forward))
    fill("backward_packet_length_mean", np.where(n_backward == 0.0, 0.0, bytes_backward / n_backward))
    fill("average_forward_segment_size", get("forward_packet_length_mean"))
    fill("average_backward_segment_size", get("backward_packet_length_mean"))
    fill("packet_length_mean", get("average_packet_size"))
    fill("packet_length_mean", size / n)
    fill("average_packet_size", get("packet_length_mean"))
    _fill_both_directions(get, fill, n_forward, n_backward)
    mean, std = get("packet_length_mean"), get("packet_length_std")

    # Gaps add up to the duration; with one gap its mean, largest and smallest are the duration itself.
    gaps = n - 1.0
    fill("flow_inter_arrival_time_mean", np.where(gaps > 0.0, seconds * 1e6 / gaps, np.nan))
    one_gap = np.where(gaps == 1.0, seconds * 1e6, np.nan)
    fill("flow_inter_arrival_time_max", one_gap)
    fill("flow_inter_arrival_time_min", one_gap)
    fill("flow_inter_arrival_time_std", one_gap * 0.0)
    gap_mean, gap_std = get("flow_inter_arrival_time_mean"), get("flow_inter_arrival_time_std")
    never_idle = (get("flow_inter_arrival_time_max") <= IDLE_US) | (seconds * 1e6 <= IDLE_US)
    fill("active_mean", np.where(never_idle, seconds * 1e6, np.nan))

    syn, ack, rst = get("syn_flag_count"), get("ack_flag_count"), get("rst_flag_count")
    fin, urg = get("fin_flag_count"), get("urg_flag_count")
    fill("syn_ack_ratio", np.minimum(10.0, syn / (ack + 1.0)))
    fill("packet_symmetry", np.abs(n_forward - n_backward) / n)
    flags_known = np.where(np.isnan(syn + ack + rst + fin + urg + n), np.nan, 0.0)
    fill(
        "protocol_anomaly_score",
        flags_known
        + 0.3 * (syn > 2.0 * ack)
        + 0.3 * (rst / n > 0.3)
        + 0.2 * ((fin > 0.0) & (ack < fin))
        + 0.2 * (urg > 0.0),
    )
    fill("traffic_amplification_factor", np.minimum(100.0, bytes_backward / np.maximum(1.0, bytes_forward)))
    protocol = get("protocol_number")
    both_spoke = np.where(np.isnan(n), np.nan, (n_forward > 0.0) & (n_backward > 0.0))
    fill("flow_completion_rate", np.where(np.isnan(protocol) | (protocol == TCP), np.nan, both_spoke))

    packets_s, bytes_s = get("flow_packets_per_second"), get("flow_bytes_per_second")
    fill("packet_rate", _log_share(packets_s, 6.0))
    fill("network_activity", (_log_share(packets_s, 6.0) + _log_share(bytes_s, 9.0)) / 2.0)
    fill("data_volume", _log_share(size, 9.0))
    fill("avg_packet_size", np.minimum(1.0, get("average_packet_size") / 1500.0))
    fill("temporal_consistency", np.where(gaps >= 2.0, np.maximum(0.0, 1.0 - gap_std / gap_mean), np.nan))
    fill("packet_size_consistency", np.where(n >= 2.0, np.maximum(0.0, 1.0 - std / mean), np.nan))


def _fill_short_sides(get: Callable[[str], F64], fill: Callable[[str, F64], None]) -> None:
    """A direction without packets has nothing; with one its largest, smallest and mean length are its bytes."""
    for side in ("forward", "backward"):
        n = get(f"total_{side}_packets")
        nothing = np.where(n == 0.0, 0.0, np.nan)
        for name in ("total_{}_bytes", "{}_header_length", "{}_psh_flags", "{}_urg_flags"):
            fill(name.format(side), nothing)
        only = np.where(n <= 1.0, get(f"total_{side}_bytes"), np.nan)
        for stat in ("max", "min"):
            fill(f"{side}_packet_length_{stat}", only)
        fill(f"{side}_packet_length_std", only * 0.0)


def _fill_both_directions(
    get: Callable[[str], F64], fill: Callable[[str, F64], None], n_forward: F64, n_backward: F64
) -> None:
    """Smallest, largest and spread of packet_length over both directions, from those of each direction."""
    spread = np.zeros(len(n_forward))
    smallest, largest = np.full(len(n_forward), np.inf), np.full(len(n_forward), -np.inf)
    mean, n = get("packet_length_mean"), n_forward + n_backward
    for side, count in (("forward", n_forward), ("backward", n_backward)):
        side_mean, side_std = get(f"{side}_packet_length_mean"), get(f"{side}_packet_length_std")
        side_spread = (count - 1.0) * side_std**2 + count * (side_mean - mean) ** 2
        spread += np.where(count == 0.0, 0.0, np.where(count == 1.0, (side_mean - mean) ** 2, side_spread))
        smallest = np.where(count == 0.0, smallest, np.minimum(smallest, get(f"{side}_packet_length_min")))
        largest = np.where(count == 0.0, largest, np.maximum(largest, get(f"{side}_packet_length_max")))
    fill("minimum_packet_length", smallest)
    fill("maximum_packet_length", largest)
    std = np.sqrt(spread / (n - 1.0))
    fill("packet_length_std", np.where(n == 1.0, 0.0, std))
    fill("packet_length_variance", get("packet_length_std") ** 2)
    fill("packet_length_std", np.sqrt(get("packet_length_variance")))


def _log_share(value: F64, decades: float) -> F64:
    return np.minimum(1.0, np.log10(1.0 + value) / decades)
