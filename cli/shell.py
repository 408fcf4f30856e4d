"""The dialogue: lines in, the same commands through the same parser, one connection for the whole session.

Always true
  - A line is what would follow `flowkin`; nothing is parsed here but quotes, #N and the backslash words.
  - An error ends its line, never the shell. Ctrl-C ends the request, Ctrl-D the shell.
  - Piped, it prints results only, and its exit status is that of the last command.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.errors import NOT_FOUND, OK, USAGE
from cli.group import ALIASES
from cli.run import failed, run, say

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer

    from cli.session import Session

PROMPT = "SECURITY_SYSTEM> "
HELP = r"""A line is what would follow `flowkin`: recent, query_similar ID --explain, search 'dns tunnel' ...
  #3              the id of hit 3 of the last answer, in any command: similar #3 -k 20
  help [COMMAND]  \?   what there is, or what a command takes
  \timing              say how long each command took, or stop saying so
  exit  \q  Ctrl-D     leave;  Ctrl-C ends a request and stays"""
WORDS = ("help", "exit", "quit", r"\timing", r"\?", r"\q")
TAKES_PATHS = ("ingest", "query_event", "query-event", "event", "classify", "fit")
_HIT = re.compile(r"#0*(\d{1,9})\d*")  # so long a number is beyond all hits by its first digits; int() takes no 5,000
RECENT_S = 15.0
RECENT_TIMEOUT_MS = 250


class Shell:
    def __init__(self, session: Session) -> None:
        self.session = session
        session.interactive = True
        self.timing = False
        self.status = OK

    def loop(self) -> int:
        """Until the end of the input; the exit status."""
        prompt = prompt_session(self.session) if sys.stdin.isatty() and sys.stdout.isatty() else None
        lines = iter(sys.stdin) if prompt is None else None
        while True:
            try:
                line = next(lines) if lines is not None else prompt.prompt(PROMPT)  # type: ignore[union-attr]
            except (EOFError, StopIteration):
                return self.status
            except KeyboardInterrupt:  # at the prompt: the line is dropped
                if prompt is None:
                    raise
                continue
            try:
                if not self.one(line.strip()):
                    return self.status
            except KeyboardInterrupt:  # the client has cancelled the request; the next one connects anew
                self.status = 130
                if prompt is None:
                    raise
            except Exception as e:
                self.status = failed(e, self.session)

    def one(self, line: str) -> bool:
        """Do one line; False to leave."""
        if not line or line == "--" or line.startswith(("-- ", "# ")):
            return True
        try:
            words = shlex.split(line)
        except ValueError as e:
            return self._fail(f"{str(e).lower()}: quote what holds spaces or quotes", USAGE)
        if words[0].lower() in ("exit", "quit", r"\q", "q"):
            return False
        if line.startswith("\\"):
            return self._backslash(line)
        if words[0] == "flowkin":
            words = words[1:] or ["help"]
        if words[0] == "help":
            return self._help(words[1:])
        if words[0] == "shell":
            return self._fail("this is the shell already; `help` says what there is", USAGE)
        missing = [w for w in words if (m := _HIT.fullmatch(w)) and not 0 < int(m[1]) <= len(self.session.hits)]
        if missing:
            had = len(self.session.hits)
            return self._fail(f"there is no hit {missing[0]}; the last answer had {had or 'none'}", NOT_FOUND)
        words = [self.session.hits[int(m[1]) - 1] if (m := _HIT.fullmatch(w)) else w for w in words]
        started_s = time.monotonic()
        self.status = run(words, self.session)
        if self.timing:
            say(f"time: {(time.monotonic() - started_s) * 1000:.1f} ms")
        return True

    def _backslash(self, line: str) -> bool:
        word = line.split()[0].lower()
        if word == r"\timing":
            self.timing = not self.timing
            say(f"timing is {'on' if self.timing else 'off'}")
        elif word in (r"\?", r"\h"):
            return self._help(line.split()[1:])
        else:
            return self._fail(rf"no command {word}; there are \timing, \? and \q", USAGE)
        return True

    def _help(self, words: list[str]) -> bool:
        self.status = run([*words, "--help"], self.session)
        if not words:
            for line in ("", *HELP.splitlines()):  # `say` escapes a newline
                say(line)
        return True

    def _fail(self, text: str, status: int) -> bool:
        say(text)
        self.status = status
        return True


# ---- on a terminal ------------------------------------------------------------------------------------------------
def history_path(session: Session) -> Path:
    """In the data directory's run where we may write, else in the user's state directory. Created 0600."""
    candidates = []
    if session.data_dir is not None and os.access(session.layout.run, os.W_OK):
        candidates.append(session.layout.run / "shell_history")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    candidates.append(state / "flowkin" / "history")
    for path in candidates:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
            return path
        except OSError:
            continue
    return Path(os.devnull)


def prompt_session(session: Session) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    return PromptSession(
        history=FileHistory(str(history_path(session))),
        completer=completer(session),
        complete_while_typing=False,
        enable_history_search=True,
    )


class Words:
    """What may come next on a line."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._recent: list[str] = []
        self._fetched_s = float("-inf")

    def recent(self) -> list[str]:
        """Ids of what arrived lately; none where the engine does not answer at once."""
        if time.monotonic() - self._fetched_s > RECENT_S:
            self._fetched_s = time.monotonic()
            try:
                from cli.answers import event_of, identity

                found = self.session.client().recent(limit=50, timeout_ms=RECENT_TIMEOUT_MS)
                self._recent = [identity(event_of(stored.event)) for stored in found.events]
            except Exception:
                self._recent = []
        return self._recent

    def after(self, before: str) -> Iterator[str]:
        """Candidates for the last word of the line."""
        from cli.main import flowkin

        words = before.split()
        last = "" if not words or before[-1].isspace() else words.pop()
        if not words:
            yield from _starting([*flowkin.list_commands(click.Context(flowkin)), *ALIASES, *WORDS], last)
            return
        command = flowkin.get_command(click.Context(flowkin), words.pop(0))
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            command = command.commands.get(words.pop(0))
        if command is None:
            return
        if isinstance(command, click.Group):
            yield from _starting(command.commands, last)
        option = _option(command, words[-1]) if words else None
        if option is not None and not option.is_flag:
            yield from _starting(_choices(option.type), last)
        elif last.startswith("-"):
            yield from _starting(sorted(o for p in command.params for o in p.opts if o.startswith("--")), last)
        elif any(p.name in ("ids", "event_id", "what") for p in command.params):
            yield from _starting([f"#{n}" for n in range(1, len(self.session.hits) + 1)] if last == "#" else [], last)
            yield from _starting(dict.fromkeys([*self.session.hits, *self.recent()]), last)


def _starting(words: Iterable[str], prefix: str) -> Iterator[str]:
    return (word for word in words if word.lower().startswith(prefix.lower()))


def _option(command: click.Command, word: str) -> click.Option | None:
    return next((p for p in command.params if isinstance(p, click.Option) and word in p.opts), None)


def _choices(kind: Any) -> list[str]:
    return [str(choice) for choice in getattr(kind, "choices", ())]


def completer(session: Session) -> Completer:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    words, paths = Words(session), PathCompleter(expanduser=True)

    class Lines(Completer):
        def get_completions(self, document: Document, complete_event: Any) -> Iterator[Completion]:
            before = document.text_before_cursor
            last = "" if not before or before[-1].isspace() else before.split()[-1]
            for word in words.after(before):
                yield Completion(word, start_position=-len(last))
            if before.split()[:1] and before.split()[0] in TAKES_PATHS and not last.startswith("-"):
                yield from paths.get_completions(Document(last), complete_event)

    return Lines()
