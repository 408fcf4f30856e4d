"""The only place in the tree that prints results: tables and JSON for what came back. Data on stdout, words on stderr.

    out         one command's output: JSON and NDJSON for programs, and which page a person gets
    answer      an answer, or a line for each of several; reason: why its hits are near
    judgement   what `classify` says
    event       one event, and tables of events
    facts       facts whatever their names; coverage: sources, their features, dead letters
    style       words, colours and small pieces; progress: a bar on stderr

Always true
  - A page is functions of a Writer and what came back; only `out` knows formats.
  - Text of an event is escaped in tables and lines (cli/tables.py does it for all); JSON escapes on its own.
  - A program's keys come from cli/answers.py; what is printed for people may change with any version.
"""

from cli.render.out import Out
from cli.render.progress import Meter, progress

__all__ = ["Meter", "Out", "progress"]
