"""Features that follow from others: only missing cells are filled, row by row, and only where every part is known."""

from __future__ import annotations

import numpy as np
import pytest

from engine.features import FEATURES, INDEX, empty
from engine.flows.derived import derive


def rows(n: int, seed: int = 1) -> np.ndarray:
    """Plausible base features with holes."""
    rng = np.random.default_rng(seed)
    out = empty(n)
    for name, high in (
        ("flow_duration", 100.0), ("total_forward_packets", 50), ("total_backward_packets", 50),
        ("total_forward_bytes", 1e6), ("total_backward_bytes", 1e6), ("syn_flag_count", 3), ("ack_flag_count", 50),
        ("rst_flag_count", 3), ("fin_flag_count", 2), ("urg_flag_count", 1), ("flow_inter_arrival_time_std", 1e6),
        ("forward_packet_length_std", 500), ("backward_packet_length_std", 500), ("protocol_number", 18),
    ):  # fmt: skip
        out[:, INDEX[name]] = np.where(rng.random(n) < 0.1, np.nan, np.floor(rng.random(n) * high))
    return out


def one(**given: float) -> dict[str, float]:
    features = empty(1)
    for name, value in given.items():
        features[0, INDEX[name]] = value
    derive(features)
    return {f.name: float(features[0, f.column]) for f in FEATURES}


def test_nothing_given_nothing_derived() -> None:
    features = empty(3)
    derive(features)
    assert np.isnan(features).all()


def test_measured_values_stay() -> None:
    features = rows(500)
    features[::2, INDEX["flow_packets_per_second"]] = 7.0
    before = features.copy()
    derive(features)
    given = ~np.isnan(before)
    assert (features[given] == before[given]).all()
    assert np.isfinite(features[~np.isnan(features)]).all()


def test_deriving_twice_adds_nothing() -> None:
    once = rows(500)
    derive(once)
    twice = once.copy()
    derive(twice)
    assert twice.tobytes() == once.tobytes()


def test_blocks_change_nothing() -> None:
    whole = rows(1_000)
    parts = [whole[i : i + 7].copy() for i in range(0, 1_000, 7)]
    derive(whole)
    for part in parts:
        derive(part)
    assert whole.tobytes() == np.concatenate(parts).tobytes()


def test_rates_are_zero_at_duration_zero_and_other_quotients_missing() -> None:
    f = one(
        flow_duration=0,
        total_forward_packets=0,
        total_backward_packets=0,
        total_forward_bytes=0,
        total_backward_bytes=0,
    )
    assert f["flow_packets_per_second"] == f["forward_packets_per_second"] == f["download_upload_ratio"] == 0
    assert f["forward_packet_length_mean"] == f["average_backward_segment_size"] == 0
    assert np.isnan([f["packet_symmetry"], f["packet_length_mean"], f["flow_inter_arrival_time_mean"]]).all()


def test_by_hand() -> None:
    f = one(
        flow_duration=2.0, total_forward_packets=2, total_backward_packets=0, total_forward_bytes=1_000,
        total_backward_bytes=0, forward_packet_length_std=10, syn_flag_count=3, ack_flag_count=1, rst_flag_count=1,
        fin_flag_count=2, urg_flag_count=1, protocol_number=17,
    )  # fmt: skip
    assert f["protocol_anomaly_score"] == pytest.approx(1.0)
    assert f["syn_ack_ratio"] == 1.5 and f["packet_symmetry"] == 1 and f["flow_completion_rate"] == 0
    assert f["flow_inter_arrival_time_mean"] == f["flow_inter_arrival_time_max"] == 2e6
    assert f["packet_length_std"] == pytest.approx(10) and f["packet_length_variance"] == pytest.approx(100)
    assert f["packet_size_consistency"] == pytest.approx(0.98)
    assert f["active_mean"] == 2e6 and np.isnan(f["temporal_consistency"])
    assert f["network_activity"] == pytest.approx((np.log10(2) / 6 + np.log10(501) / 9) / 2)


def test_a_direction_without_packets_or_with_one_says_more() -> None:
    features = empty(3)
    features[:, INDEX["total_forward_packets"]] = 1
    features[:, INDEX["total_backward_packets"]] = [0, 1, 2]
    features[:2, INDEX["total_forward_bytes"]] = 40
    derive(features)
    known = {name: features[:, INDEX[name]].tolist() for name in INDEX}
    for name in ("total_backward_bytes", "backward_header_length", "backward_psh_flags", "backward_packet_length_max"):
        assert known[name][0] == 0 and np.isnan(known[name][1:]).all(), name
    for stat in ("max", "min", "mean"):
        assert known[f"forward_packet_length_{stat}"][:2] == [40, 40]
    assert known["forward_packet_length_std"][:2] == [0, 0]
    assert known["packet_length_mean"][0] == known["maximum_packet_length"][0] == 40
    assert np.isnan(features[2, INDEX["forward_packet_length_max"]])


def test_exfiltration_needs_to_know_what_is_internal() -> None:
    features = empty(4)
    features[:, INDEX["total_forward_bytes"]] = 999
    features[:, INDEX["total_backward_bytes"]] = 1
    derive(features, np.array([1.0, 0.0, 0.0, np.nan]))
    found = features[:, INDEX["data_exfiltration_indicators"]].tolist()
    assert found == pytest.approx([0.999 * 3 / 8, 0, 0, np.nan], nan_ok=True)
