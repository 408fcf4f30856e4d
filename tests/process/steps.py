"""Steps on a data directory, to be killed at a failpoint: python -m tests.process.steps DIR STEP..."""

from __future__ import annotations

import sys
from pathlib import Path

from engine import gc, lock, retention, switch
from engine.layout import Layout
from engine.publish import Submission
from ipc.messages import Reject
from tests.events import blocked, several
from tests.store_fixture import Store


def main(data_dir: Path, steps: list[str]) -> None:
    layout = Layout(data_dir)
    layout.make()
    lock.hold(layout.writer_lock, wait_s=1.0)
    store = Store(data_dir)
    for step in steps:
        what, *rest = step.split(":")
        if what == "publish":
            first, count = map(int, rest)
            store.publish(several(count, first), {b"file": step.encode()})
        elif what == "refuse":
            rejects = [Reject("file", n, f"bad {n}") for n in map(int, rest)]
            offsets = {b"file": step.encode()}
            store.publisher.publish([Submission("ndjson", [], rejects, lambda outcome: None, offsets, "test")])
        elif what == "act":  # on events before, of and after those that are stored with it
            first, count = map(int, rest)
            actions = [blocked(n, after_s=0) for n in range(first - 10, first + count + 10)]
            store.publish(several(count, first), {b"actions": step.encode()}, actions)
        elif what == "index":
            store.index()
        elif what == "merge":  # and what is merged away goes
            store.merge()
            gc.collect(layout, store.publisher.manifest)
        elif what == "retain":
            retention.hide(store.publisher, int(rest[0]))
        elif what == "sweep":
            while retention.sweep(store.publisher):
                pass
        elif what == "begin":
            store.begin_switch(*rest)
        elif what == "go_on":
            store.go_on()
        elif what == "finish":
            switch.finish(store.publisher)
        print(f"{step} {store.generation}", flush=True)  # the acknowledgement
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
