"""Power failures by replay: what an engine asked of its disk, how that may have been left, and what was promised.

trace.py records the system calls of a real engine with strace; disk.py is the model of a disk that loses, tears and
reorders what was not synced; workload.py is what is done to the engine; oracle.py opens what is left and asks;
migration.py does both for `flowkin migrate`. explore.py goes through them. By hand:
`python -m tests.power --states N --seed S`, with --migration for the latter.
"""
