"""Every bound of the engine, the unit last in its name. What a user may change is in config.py; the rest is here.

The asserts at the end say how bounds relate; they run at import.
"""

from __future__ import annotations

from ipc.messages import EVENTS_PER_MESSAGE_MAX, FRAME_BYTES_MAX

FORMAT_VERSION = 3  # of a data directory: the newest that is read
FORMAT_BORN = 1  # what a new one has
FORMAT_REMOVED = 2  # from the first removal on: an older flowkin would look for what is gone
FORMAT_ENCRYPTED = 3  # born with a key (engine/store/cipher.py), or given one: an older one would read what is sealed
FEATURES_VERSION = 1  # of the 105 features' definitions

ROW_FILE_ROWS = 16_384  # events in a row file; a data directory keeps the value it was born with
ROW_FILE_ROWS_MIN = 64  # smaller ones serve tests

COMMIT_EVENTS_MAX = 4_096  # one huge commit taxes all later ones (LMDB rewrites its free list)
FAMILIES_MAX = 4_096  # distinct family words; later ones become "Unknown"
SOURCES_MAX = 4_096
SOURCE_BYTES_MAX = 128  # of a source's name

RECORD_BYTES_MAX = 1 << 20  # one source record: a line, a row
DECOMPRESS_RATIO_MAX = 200
DECOMPRESS_BYTES_MAX = 1 << 30  # a member of an archive

CONTEXT_HOSTS_MAX = 65_536  # and as many destinations
CONTEXT_FLOWS_MAX = 2_000_000  # in the windows of all hosts together, and as many in those of all destinations
CONTEXT_WINDOW_S = 30
CONTEXT_LATE_MAX_S = 900

# Python's collector looks for cycles when so many containers were made and kept. The context keeps several of a flow,
# none of them in a cycle: at the default of 700 the collector goes through them again and again.
YOUNG_OBJECTS_MAX = 50_000

COLLAPSE_FETCH_MAX = 1_024  # candidates looked at to fill an answer with distinct hits
KNOWN_MIN = 8  # features; an event with fewer (a bare alert) says nothing of behaviour: two such are not alike in it
AGREE_Z_MAX = 0.25  # robust deviations; nearer values of a feature agree, if they differ
AGREE_SHARE_MAX = 0.1  # by no more than this share of the larger one
OTHER_EPISODE_S = 600

ACTIONS_WAITING_MAX = 65_536  # firewall actions that events to come are held against
ACTION_WAIT_S = 900  # of event time
ACTION_NEAR_S = 5  # between an action and an event of the same source
ACTION_JOINS_MAX = 32_768  # of one commit; what is beyond is counted
ACTION_HISTORY_MAX = 64  # actions in the history of one event
LABEL_HISTORY_MAX = 64  # labels there; it is part of every answer with that event

HANDOFF_BACKLOG_MAX = 64  # connections on the way to one worker
PENDING_REQUESTS_MAX = 1_024  # of one reader
PENDING_PER_CONNECTION_CROWDED = 8  # once half of these places are taken: who sends most is refused first
WAIT_SHARE_MAX = 0.5  # of its deadline that a request may be expected to wait in a reader; else it is refused at once
FILES_KEPT = 512  # descriptors of a worker that are not for connections: files, refusals that are still to be told

LISTEN_BYTES_MAX = 64 << 20  # of one listening source, read and not stored yet; what comes beyond is dropped
LISTEN_CONNECTIONS_MAX = 64  # of one listening source
LISTEN_READ_BYTES = 1 << 18  # at once; the most that is parsed at once, too

assert EVENTS_PER_MESSAGE_MAX <= COMMIT_EVENTS_MAX
assert RECORD_BYTES_MAX < FRAME_BYTES_MAX
assert RECORD_BYTES_MAX + LISTEN_READ_BYTES < LISTEN_BYTES_MAX
assert CONTEXT_FLOWS_MAX >= 4 * CONTEXT_HOSTS_MAX  # halving windows of one flow each frees nothing
assert ROW_FILE_ROWS % ROW_FILE_ROWS_MIN == 0
