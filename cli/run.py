"""Runs one command line, for the program and for the shell alike: every way to fail becomes one sentence and a status.

Always true
  - No traceback, except with --debug. The sentence goes to stderr, escaped like any text that may hold event text.
  - A reader that closes our stdout early (`| head`) is no failure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from cli.errors import DENIED, FAILED, LATE, NOT_FOUND, NOT_REACHABLE, OK, USAGE, CommandError, Quit
from cli.session import Session
from cli.text import clean

PROGRAM = "flowkin"


def say(text: str) -> None:
    sys.stderr.write(clean(text) + "\n")
    sys.stderr.flush()


def _usage(error: click.ClickException) -> str:
    text = error.format_message().strip().rstrip(".")
    text = " ".join(text.split())
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else PROGRAM
    help_line = f"`{path} --help` says more"
    return f"{path}: {text[:1].lower() + text[1:] if text[:2].istitle() else text}; {help_line}"


def _foreign(error: OSError) -> tuple[str, int]:
    what = f"{error.filename}: " if error.filename else ""
    text = f"{PROGRAM}: {what}{(error.strerror or str(error)).lower()}"
    if isinstance(error, PermissionError):
        return text, DENIED
    if isinstance(error, FileNotFoundError):
        return text, NOT_FOUND
    return text, FAILED


def _reason(error: BaseException, session: Session) -> tuple[str, int]:
    """The sentence and the status."""
    if isinstance(error, click.ClickException):
        return _usage(error), USAGE if isinstance(error, click.UsageError) else error.exit_code
    status = getattr(error, "exit_status", None)
    if isinstance(status, int):  # ours: CommandError, ipc.errors, engine.errors
        text = str(error) or type(error).__name__
        if status == NOT_REACHABLE and isinstance(error.__cause__, PermissionError):
            path = getattr(error, "path", "the socket")
            return f"{PROGRAM}: you may not reach the engine at {path}; its owner or group may", DENIED
        if status == NOT_REACHABLE and "flowkin start" not in text:
            where = f" --data-dir {session.data_dir}" if session.data_dir and not session.socket else ""
            text += f"{'' if text.endswith('?') else ';'} `flowkin start{where}` starts one"
        if status == LATE and (wait_ms := getattr(error, "retry_after_ms", 0)):
            text += f"; try again in {wait_ms} ms"
        return f"{PROGRAM}: {text}", status if OK <= status <= 7 else FAILED
    if isinstance(error, OSError):
        return _foreign(error)
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":  # bytes of an argument, or of stdin
        return f"{PROGRAM}: {error.object!r} is not UTF-8", USAGE
    if isinstance(error, ModuleNotFoundError):
        return f"{PROGRAM}: {error.name} is not installed, which this command needs", FAILED
    hint = "" if session.debug else "; --debug shows where"
    return f"{PROGRAM}: internal error, {type(error).__name__}: {' '.join(str(error).split())}{hint}", FAILED


def failed(error: Exception, session: Session) -> int:
    """Says what went wrong; the status."""
    if session.debug and not isinstance(error, click.ClickException | CommandError):
        import traceback

        traceback.print_exception(error)
    text, status = _reason(error, session)
    say(text)
    return status


def _close_stdout() -> None:
    """What is buffered has no reader any more; without this the interpreter complains at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def ended(status: int, session: Session) -> int:
    """A command's own status, once what it said is out; where nobody listens any more it is the same."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
    except OSError as e:
        _close_stdout()
        text, of_error = _reason(e, session)
        say(text)
        return status or of_error
    return status


def run(args: Sequence[str], session: Session) -> int:
    """The exit status. Raises KeyboardInterrupt only (the shell stays, the program leaves)."""
    from cli.main import flowkin

    try:
        with flowkin.make_context(PROGRAM, list(args), obj=session) as ctx:
            flowkin.invoke(ctx)
        sys.stdout.flush()
        return OK
    except click.exceptions.Exit as e:
        return ended(e.exit_code, session)
    except Quit as e:
        return ended(e.exit_status, session)
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        if session.debug:
            raise
        _close_stdout()
        return OK
    except Exception as e:
        return ended(failed(e, session), session)
