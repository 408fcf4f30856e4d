"""The 105 features: the one table of their names, order, units, scope and meaning.

Always true
  - Order and names are the contract: an event carries float32 [105] in this order, NaN = missing, never a sentinel.
  - docs/FEATURES.md is generated from this table.
  - `fact` groups rows that state the same fact, so that a distance and an explanation count one fact once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from engine.limits import AGREE_SHARE_MAX, AGREE_Z_MAX
from ipc.event import FEATURE_BYTES, FEATURE_COUNT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]
else:
    F32 = Any  # names and units are for clients, too, which need no numpy


class Feature(NamedTuple):
    """scope: flow (from the flow alone), sensor (given by the source), or what engine/context computes: src window,
    dst window, src history, pair history. heavy: spans orders of magnitude, so a scaler takes log1p first."""

    column: int
    name: str
    group: str
    scope: str
    unit: str
    heavy: bool
    fact: str
    definition: str


# fmt: off
FEATURES: tuple[Feature, ...] = (
    Feature(0, "protocol_number", "id", "flow", "-", False, "protocol_number", "IANA protocol number (6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6, ...)"),
    Feature(1, "interface_mode", "id", "sensor", "-", False, "interface_mode", "0 unknown or disabled, 1 host, 2 gateway; given by the source"),
    Feature(2, "source_ifindex", "id", "sensor", "-", False, "source_ifindex", "capture interface index; given by the source"),
    Feature(3, "flow_duration", "time", "flow", "s", True, "flow_duration", "last packet time minus first packet time"),
    Feature(4, "total_forward_packets", "count", "flow", "packets", True, "total_forward_packets", "packets initiator to responder"),
    Feature(5, "total_backward_packets", "count", "flow", "packets", True, "total_backward_packets", "packets responder to initiator"),
    Feature(6, "total_forward_bytes", "count", "flow", "bytes", True, "total_forward_bytes", "sum of forward packet_length"),
    Feature(7, "total_backward_bytes", "count", "flow", "bytes", True, "total_backward_bytes", "sum of backward packet_length"),
    Feature(8, "forward_packet_length_max", "length", "flow", "bytes", True, "forward_packet_length_max", "largest forward packet_length (0 where there is no forward packet)"),
    Feature(9, "forward_packet_length_min", "length", "flow", "bytes", True, "forward_packet_length_min", "smallest forward packet_length (0 where there is no forward packet)"),
    Feature(10, "forward_packet_length_mean", "length", "flow", "bytes", True, "forward_packet_length_mean", "mean forward packet_length (0 where there is no forward packet)"),
    Feature(11, "forward_packet_length_std", "length", "flow", "bytes", True, "forward_packet_length_std", "sample standard deviation forward packet_length (0 where there is no forward packet)"),
    Feature(12, "backward_packet_length_max", "length", "flow", "bytes", True, "backward_packet_length_max", "largest backward packet_length (0 where there is no backward packet)"),
    Feature(13, "backward_packet_length_min", "length", "flow", "bytes", True, "backward_packet_length_min", "smallest backward packet_length (0 where there is no backward packet)"),
    Feature(14, "backward_packet_length_mean", "length", "flow", "bytes", True, "backward_packet_length_mean", "mean backward packet_length (0 where there is no backward packet)"),
    Feature(15, "backward_packet_length_std", "length", "flow", "bytes", True, "backward_packet_length_std", "sample standard deviation backward packet_length (0 where there is no backward packet)"),
    Feature(16, "flow_bytes_per_second", "rate", "flow", "bytes/s", True, "flow_bytes_per_second", "(forward+backward bytes)/flow_duration; 0 where duration is 0"),
    Feature(17, "flow_packets_per_second", "rate", "flow", "packets/s", True, "flow_packets_per_second", "(forward+backward packets)/flow_duration; 0 where duration is 0"),
    Feature(18, "forward_packets_per_second", "rate", "flow", "packets/s", True, "forward_packets_per_second", "forward packets/flow_duration"),
    Feature(19, "backward_packets_per_second", "rate", "flow", "packets/s", True, "backward_packets_per_second", "backward packets/flow_duration"),
    Feature(20, "download_upload_ratio", "ratio", "flow", "-", True, "download_upload_ratio", "backward packets/forward packets; 0 where there is no forward packet"),
    Feature(21, "average_packet_size", "length", "flow", "bytes", True, "packet_length_mean", "total bytes/total packets"),
    Feature(22, "average_forward_segment_size", "length", "flow", "bytes", True, "forward_packet_length_mean", "forward bytes/forward packets"),
    Feature(23, "average_backward_segment_size", "length", "flow", "bytes", True, "backward_packet_length_mean", "backward bytes/backward packets"),
    Feature(24, "flow_inter_arrival_time_mean", "time", "flow", "us", True, "flow_inter_arrival_time_mean", "mean of the gaps between consecutive packets of the flow, either direction"),
    Feature(25, "flow_inter_arrival_time_std", "time", "flow", "us", True, "flow_inter_arrival_time_std", "std of the gaps between consecutive packets of the flow, either direction"),
    Feature(26, "flow_inter_arrival_time_max", "time", "flow", "us", True, "flow_inter_arrival_time_max", "max of the gaps between consecutive packets of the flow, either direction"),
    Feature(27, "flow_inter_arrival_time_min", "time", "flow", "us", True, "flow_inter_arrival_time_min", "min of the gaps between consecutive packets of the flow, either direction"),
    Feature(28, "forward_inter_arrival_time_total", "time", "flow", "us", True, "forward_inter_arrival_time_total", "total of the gaps between consecutive forward packets"),
    Feature(29, "forward_inter_arrival_time_mean", "time", "flow", "us", True, "forward_inter_arrival_time_mean", "mean of the gaps between consecutive forward packets"),
    Feature(30, "forward_inter_arrival_time_std", "time", "flow", "us", True, "forward_inter_arrival_time_std", "std of the gaps between consecutive forward packets"),
    Feature(31, "forward_inter_arrival_time_max", "time", "flow", "us", True, "forward_inter_arrival_time_max", "max of the gaps between consecutive forward packets"),
    Feature(32, "forward_inter_arrival_time_min", "time", "flow", "us", True, "forward_inter_arrival_time_min", "min of the gaps between consecutive forward packets"),
    Feature(33, "backward_inter_arrival_time_total", "time", "flow", "us", True, "backward_inter_arrival_time_total", "total of the gaps between consecutive backward packets"),
    Feature(34, "backward_inter_arrival_time_mean", "time", "flow", "us", True, "backward_inter_arrival_time_mean", "mean of the gaps between consecutive backward packets"),
    Feature(35, "backward_inter_arrival_time_std", "time", "flow", "us", True, "backward_inter_arrival_time_std", "std of the gaps between consecutive backward packets"),
    Feature(36, "backward_inter_arrival_time_max", "time", "flow", "us", True, "backward_inter_arrival_time_max", "max of the gaps between consecutive backward packets"),
    Feature(37, "backward_inter_arrival_time_min", "time", "flow", "us", True, "backward_inter_arrival_time_min", "min of the gaps between consecutive backward packets"),
    Feature(38, "fin_flag_count", "flags", "flow", "packets", True, "fin_flag_count", "packets with FIN set, both directions"),
    Feature(39, "syn_flag_count", "flags", "flow", "packets", True, "syn_flag_count", "packets with SYN set, both directions"),
    Feature(40, "rst_flag_count", "flags", "flow", "packets", True, "rst_flag_count", "packets with RST set, both directions"),
    Feature(41, "psh_flag_count", "flags", "flow", "packets", True, "psh_flag_count", "packets with PSH set, both directions"),
    Feature(42, "ack_flag_count", "flags", "flow", "packets", True, "ack_flag_count", "packets with ACK set, both directions"),
    Feature(43, "urg_flag_count", "flags", "flow", "packets", True, "urg_flag_count", "packets with URG set, both directions"),
    Feature(44, "cwr_flag_count", "flags", "flow", "packets", True, "cwr_flag_count", "packets with CWR set, both directions"),
    Feature(45, "ece_flag_count", "flags", "flow", "packets", True, "ece_flag_count", "packets with ECE set, both directions"),
    Feature(46, "forward_psh_flags", "flags", "flow", "packets", True, "forward_psh_flags", "forward packets with PSH set"),
    Feature(47, "backward_psh_flags", "flags", "flow", "packets", True, "backward_psh_flags", "backward packets with PSH set"),
    Feature(48, "forward_urg_flags", "flags", "flow", "packets", True, "forward_urg_flags", "forward packets with URG set"),
    Feature(49, "backward_urg_flags", "flags", "flow", "packets", True, "backward_urg_flags", "backward packets with URG set"),
    Feature(50, "forward_header_length", "header", "flow", "bytes", True, "forward_header_length", "sum of L4 header bytes of the forward packets (8 for UDP, data offset x 4 for TCP)"),
    Feature(51, "backward_header_length", "header", "flow", "bytes", True, "backward_header_length", "sum of L4 header bytes of the backward packets (8 for UDP, data offset x 4 for TCP)"),
    Feature(52, "forward_average_bytes_bulk", "bulk", "flow", "bytes", True, "forward_average_bytes_bulk", "mean bytes of a forward bulk: 4 or more consecutive forward packets with payload, each gap below 1 s"),
    Feature(53, "forward_average_packets_bulk", "bulk", "flow", "packets", True, "forward_average_packets_bulk", "mean packets of a forward bulk"),
    Feature(54, "forward_average_bulk_rate", "bulk", "flow", "bytes/s", True, "forward_average_bulk_rate", "forward bulk bytes/forward bulk seconds"),
    Feature(55, "backward_average_bytes_bulk", "bulk", "flow", "bytes", True, "backward_average_bytes_bulk", "mean bytes of a backward bulk: 4 or more consecutive backward packets with payload, each gap below 1 s"),
    Feature(56, "backward_average_packets_bulk", "bulk", "flow", "packets", True, "backward_average_packets_bulk", "mean packets of a backward bulk"),
    Feature(57, "backward_average_bulk_rate", "bulk", "flow", "bytes/s", True, "backward_average_bulk_rate", "backward bulk bytes/backward bulk seconds"),
    Feature(58, "minimum_packet_length", "length", "flow", "bytes", True, "minimum_packet_length", "smallest packet_length, both directions"),
    Feature(59, "maximum_packet_length", "length", "flow", "bytes", True, "maximum_packet_length", "largest packet_length, both directions"),
    Feature(60, "packet_length_mean", "length", "flow", "bytes", True, "packet_length_mean", "mean packet_length, both directions"),
    Feature(61, "packet_length_std", "length", "flow", "bytes", True, "packet_length_std", "sample standard deviation of packet_length, both directions"),
    Feature(62, "packet_length_variance", "length", "flow", "bytes^2", True, "packet_length_std", "square of packet_length_std"),
    Feature(63, "active_mean", "time", "flow", "us", True, "active_mean", "mean length of the active periods; a gap above 5 s ends one"),
    Feature(64, "idle_mean", "time", "flow", "us", True, "idle_mean", "mean length of the idle periods, that is of gaps above 5 s"),
    Feature(65, "syn_ack_ratio", "ddos", "flow", "-", False, "syn_ack_ratio", "syn_flag_count/(ack_flag_count+1), at most 10"),
    Feature(66, "packet_symmetry", "ddos", "flow", "-", False, "packet_symmetry", "|forward-backward packets|/total packets; 0 is symmetric"),
    Feature(67, "source_ip_dispersion", "ddos", "dst window", "-", False, "source_ip_dispersion", "distinct sources towards D/flows towards D"),
    Feature(68, "protocol_anomaly_score", "ddos", "flow", "-", False, "protocol_anomaly_score", "0.3[syn>2 ack]+0.3[rst/packets>0.3]+0.2[fin>0 and ack<fin]+0.2[urg>0]"),
    Feature(69, "packet_size_entropy", "ddos", "flow", "bits", False, "packet_size_entropy", "Shannon entropy of the histogram of packet_length in 32-byte bins; needs packets"),
    Feature(70, "traffic_amplification_factor", "ddos", "flow", "-", True, "traffic_amplification_factor", "backward bytes/max(1, forward bytes), at most 100"),
    Feature(71, "flow_completion_rate", "ddos", "flow", "-", False, "flow_completion_rate", "from packets, Zeek conn_state or EVE tcp state, else NaN. TCP: 1 established and closed in order, 0.5 established only, 0 never established; other protocols: 1 where both sides spoke, else 0"),
    Feature(72, "geographical_concentration", "ddos", "dst window", "-", False, "geographical_concentration", "Herfindahl index of the sources' /16 (IPv6 /32) prefixes towards D: what can be known of geography without a database"),
    Feature(73, "traffic_escalation_rate", "ddos", "dst window", "-", False, "traffic_escalation_rate", "r/(1+r), r = (flows towards D in the later 15 s + 1)/(flows in the earlier 15 s + 1)"),
    Feature(74, "resource_saturation_score", "ddos", "dst window", "-", False, "resource_saturation_score", "mean of exp(-average_packet_size/100) and min(1, packets/s towards D / 10000)"),
    Feature(75, "io_intensity", "ransomware", "src window", "-", False, "io_intensity", "min(1, log10(1+bytes/s, both ways, of the flows of S to file-service ports)/8); file-service ports: 20 21 111 137-139 445 548 873 2049 3260"),
    Feature(76, "entropy", "ransomware", "flow", "-", False, "entropy", "Shannon entropy of the first 1,024 payload bytes of each direction, concatenated, divided by 8; NaN without payload or where the capture cut it"),
    Feature(77, "resource_usage", "ransomware", "src window", "-", False, "resource_usage", "share of S in all bytes of its sensor in the window"),
    Feature(78, "network_activity", "ransomware", "flow", "-", False, "network_activity", "mean of min(1, log10(1+packets/s)/6) and min(1, log10(1+bytes/s)/9)"),
    Feature(79, "file_operations", "ransomware", "src window", "-", False, "file_operations", "min(1, log2(1+flows of S to file-service ports)/10)"),
    Feature(80, "process_anomaly", "ransomware", "src history", "-", False, "process_anomaly", "1 - share of this (protocol, destination port) in the decayed history of S (half-life 1 h), before this flow is added; NaN until S has 5 flows"),
    Feature(81, "temporal_pattern", "ransomware", "pair history", "-", False, "temporal_pattern", "1/(1+CV) of the gaps between the starts of the last 8 flows S to D:port, this one included; 0 below 3 flows (beaconing)"),
    Feature(82, "access_frequency", "ransomware", "src window", "-", False, "access_frequency", "min(1, log2(1+flows S to D:port)/10)"),
    Feature(83, "data_volume", "ransomware", "flow", "-", False, "data_volume", "min(1, log10(1+total bytes)/9)"),
    Feature(84, "behavior_consistency", "ransomware", "src history", "-", False, "behavior_consistency", "exp(-|z|) of log1p(total bytes) against the decayed mean and deviation of S before this flow (half-life 1 h, deviation at least 0.1); NaN under 5 flows"),
    Feature(85, "packet_rate", "traffic", "flow", "-", False, "flow_packets_per_second", "min(1, log10(1+flow_packets_per_second)/6)"),
    Feature(86, "connection_rate", "traffic", "src window", "-", False, "connection_rate", "min(1, log2(1+flows of S per second)/10)"),
    Feature(87, "tcp_udp_ratio", "traffic", "src window", "-", False, "tcp_udp_ratio", "TCP flows of S/(TCP+UDP flows of S); 0.5 where there is neither"),
    Feature(88, "avg_packet_size", "traffic", "flow", "-", False, "packet_length_mean", "min(1, average_packet_size/1500)"),
    Feature(89, "port_entropy", "traffic", "src window", "-", False, "port_entropy", "Shannon entropy of the destination ports of S over log2(max(2, flows))"),
    Feature(90, "flow_duration_std", "traffic", "src window", "-", False, "flow_duration_std", "standard deviation of log1p(duration in ms) over the flows of S"),
    Feature(91, "src_ip_entropy", "traffic", "dst window", "-", False, "src_ip_entropy", "Shannon entropy of the sources towards D over log2(max(2, flows))"),
    Feature(92, "dst_ip_concentration", "traffic", "src window", "-", False, "dst_ip_concentration", "Herfindahl index of the destinations of S"),
    Feature(93, "protocol_variety", "traffic", "src window", "-", False, "protocol_variety", "min(1, distinct (protocol, service class) of S/8); service class: the port where it is below 1024, else 'high'"),
    Feature(94, "temporal_consistency", "traffic", "flow", "-", False, "temporal_consistency", "max(0, 1 - CV of the packet gaps of this flow)"),
    Feature(95, "internal_connection_rate", "internal", "src window", "-", False, "internal_connection_rate", "min(1, log2(1+flows of S to internal addresses per second)/10); internal: RFC 1918, ULA, link-local, or as configured"),
    Feature(96, "service_port_consistency", "internal", "src window", "-", False, "service_port_consistency", "share of the flows of S that go to its most used destination port"),
    Feature(97, "protocol_regularity", "internal", "src history", "-", False, "protocol_regularity", "1 - entropy/log2(3) of TCP, UDP, other over the decayed history of S (half-life 1 h)"),
    Feature(98, "packet_size_consistency", "internal", "flow", "-", False, "packet_size_consistency", "max(0, 1 - packet_length_std/packet_length_mean)"),
    Feature(99, "connection_duration_std", "internal", "pair history", "-", False, "connection_duration_std", "standard deviation of log1p(duration in ms) of the last 8 flows S to D"),
    Feature(100, "lateral_movement_score", "internal", "src window", "-", False, "lateral_movement_score", "S internal, else 0: min(1, log2(1+distinct internal destinations of S on 22 23 135 139 445 3389 5985 5986)/6)"),
    Feature(101, "service_discovery_patterns", "internal", "src window", "-", False, "service_discovery_patterns", "distinct (D, port) of S with no packet back/flows of S"),
    Feature(102, "data_exfiltration_indicators", "internal", "flow", "-", False, "data_exfiltration_indicators", "internal to external only, else 0: forward bytes/(forward+backward bytes) x min(1, log10(1+forward bytes)/8)"),
    Feature(103, "temporal_anomaly_score", "internal", "src history", "-", False, "temporal_anomaly_score", "1-exp(-|z|/3), z = flows of S in the last closed 30 s bucket (aligned to the epoch) against their decayed mean and deviation (half-life 1 h, empty buckets count as 0, deviation at least 1); NaN under 5 buckets"),
    Feature(104, "access_pattern_entropy", "internal", "src window", "-", False, "access_pattern_entropy", "Shannon entropy of the (D, port) pairs of S over log2(max(2, flows))"),
)
# fmt: on

NAMES = tuple(f.name for f in FEATURES)
INDEX = {f.name: f.column for f in FEATURES}
CONTEXT_INDEXES = tuple(f.column for f in FEATURES if f.scope.endswith(("window", "history")))

assert len(FEATURES) == FEATURE_COUNT and all(f.column == i for i, f in enumerate(FEATURES))


def agree(query: float | None, hit: float | None, z: float | None) -> bool:
    """Are two values of a feature about the same? z: how far apart they are, in robust deviations. The values are held
    against each other, too: one deviation of what spans orders of magnitude is a large factor, and what lies beyond the
    scale was cut to its end."""
    if query is None or hit is None or z is None or abs(z) > AGREE_Z_MAX:
        return False
    return abs(query - hit) <= AGREE_SHARE_MAX * max(abs(query), abs(hit))


def empty(n: int) -> F32:
    """float32 [n, 105], all missing."""
    import numpy as np

    return np.full((n, FEATURE_COUNT), np.nan, np.float32)


def unpack(blobs: list[bytes]) -> F32:
    """float32 [len(blobs), 105], owned by the caller, from FEATURE_BYTES each; an empty blob is a row of missing ones.

    Infinite values become missing: they are a source's division by zero, never a measurement.
    """
    import numpy as np

    missing = b"\x00\x00\xc0\x7f" * FEATURE_COUNT
    out = np.frombuffer(b"".join(b or missing for b in blobs), "<f4").reshape(-1, FEATURE_COUNT).astype(np.float32)
    out[~np.isfinite(out)] = np.nan
    return out


def pack(row: F32) -> bytes:
    """FEATURE_BYTES of one row."""
    import numpy as np

    blob = np.ascontiguousarray(row, "<f4").tobytes()
    assert len(blob) == FEATURE_BYTES
    return blob


def pack_rows(features: F32) -> list[bytes]:
    """FEATURE_BYTES of each row of float32 [n, 105]."""
    import numpy as np

    assert features.shape[1:] == (FEATURE_COUNT,)
    blob = np.ascontiguousarray(features, "<f4").tobytes()
    return [blob[at : at + FEATURE_BYTES] for at in range(0, len(blob), FEATURE_BYTES)]
