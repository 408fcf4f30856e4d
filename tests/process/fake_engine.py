"""A supervisor over fake workers: python -P -m tests.process.fake_engine DATA_DIR [KEY=VALUE ...]"""

from __future__ import annotations

import sys

from engine import config
from engine.run import supervisor

FAKES = {"reader": "tests.process.fake_role", "ingest": "tests.process.fake_role"}

if __name__ == "__main__":
    pairs = (argument.split("=") for argument in sys.argv[2:])
    flags = {name: value if name.startswith("sockets.") else int(value) for name, value in pairs}
    sys.exit(supervisor.run(config.load(env={}, flags={"data_dir": sys.argv[1], **flags}), modules=FAKES))
