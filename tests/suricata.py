"""A real Suricata for tests: offline over packets, with a configuration of a few lines. Without it a test skips."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

RUN_S = 60.0
CONFIG = """%YAML 1.1
---
vars:
  address-groups: {HOME_NET: "any", EXTERNAL_NET: "any"}
  port-groups: {HTTP_PORTS: "80"}
stats: {enabled: no}
outputs:
OUTPUTS
logging:
  default-log-level: notice
  outputs: [console: {enabled: yes}]
app-layer:
  protocols:
    http: {enabled: yes}
    tls: {enabled: yes, detection-ports: {dp: 443}}
    dns: {tcp: {enabled: yes, detection-ports: {dp: 53}}, udp: {enabled: yes, detection-ports: {dp: 53}}}
pcap-file: {checksum-checks: no}
flow: {memcap: 64mb, hash-size: 16384, prealloc: 1000}
stream: {memcap: 64mb, checksum-validation: no, reassembly: {memcap: 64mb, depth: 1mb}}
host-mode: sniffer-only
runmode: single
"""
OUTPUT = """
  - eve-log:
      enabled: yes
      filetype: {type}
      filename: {file}
      types: [alert: {{http: yes}}, flow, dns: {{version: 2}}, http: {{extended: yes}}, tls: {{extended: yes}}, files]
"""
RULES = """
alert tcp any any -> any any (msg:"TEST SYN"; flags:S; sid:1000001; rev:1; metadata: mitre_technique_id T1046;)
alert dns any any -> any any (msg:"TEST name"; dns.query; content:"."; sid:1000002; rev:1;)
alert http any any -> any any (msg:"TEST http"; http.method; content:"GET"; sid:1000003; rev:1;)
"""


class Suricata:
    """One run over packets. outputs: (filetype, path) of each EVE log."""

    def __init__(self, folder: Path, packets: Path, outputs: Sequence[tuple[str, Path]]) -> None:
        program = shutil.which("suricata")
        if program is None:
            pytest.skip("needs suricata, which is not installed here (make deps)")
        folder.mkdir(exist_ok=True)
        text = "".join(OUTPUT.format(type=kind, file=path) for kind, path in outputs)
        (folder / "suricata.yaml").write_text(CONFIG.replace("OUTPUTS", text))
        (folder / "test.rules").write_text(RULES)
        self.log = folder / "console.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "-c", folder / "suricata.yaml", "-S", folder / "test.rules", "-l", folder, "-k", "none",
                 "-r", packets, "--set", "unix-command.enabled=no", "--pidfile", folder / "suricata.pid"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self) -> None:
        """Until all packets were read and all flows written."""
        try:
            assert self.process.wait(RUN_S) == 0, self.log.read_text()
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
