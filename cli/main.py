"""The commands. One function for each: arguments -> call -> print, nothing else.

Always true
  - What a command needs is imported inside it: `flowkin query_similar` loads click, msgspec and ipc, no more.
  - The order of the functions is that of a day: run, put in, ask, know more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.group import SETTINGS, Flowkin
from cli.options import (
    PATH,
    PATH_OR_DASH,
    TOP_K_MAX,
    Words,
    filtered,
    located,
    printed,
    reading,
    searching,
    timed,
    voting,
)
from cli.session import Session

if TYPE_CHECKING:
    from cli.feed import How
    from cli.render import Out
    from ipc.messages import Answers, Filter, Found, Options, Voting


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).debug = True


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        from cli.render import Out

        Out().to.line(f"flowkin {version('flowkin')}")
        ctx.exit()


@click.group(cls=Flowkin, context_settings=SETTINGS)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="What this is.")
@click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show where an error came from.")
@located()
def flowkin(session: Session) -> None:
    """Have we seen this network-security event before, and why do we think so?

    Every command takes --data-dir DIR (or FLOWKIN_DATA_DIR) and --json; names may be typed with - or _.
    Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 no engine, 6 overloaded or late, 7 findings.

    \b
    Examples:
      flowkin start --data-dir /var/lib/flowkin
      flowkin ingest eve.json --data-dir /var/lib/flowkin
      flowkin query_similar ID --explain --data-dir /var/lib/flowkin
      flowkin shell --data-dir /var/lib/flowkin
    """


# ---- run the engine -----------------------------------------------------------------------------------------------
_READERS = click.option("--readers", metavar="N", type=click.IntRange(1, 64), help="Reader processes.")
_CONFIG = click.option("--config", metavar="FILE", type=PATH, help="Settings.  [env: FLOWKIN_CONFIG]")
_SET = click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any setting, e.g. readers.count=4.")


@flowkin.command("serve")
@located(socket=False)
@_READERS
@_CONFIG
@_SET
def serve(session: Session, readers: int | None, config: Path | None, settings: tuple[str, ...]) -> None:
    """Run the engine in the foreground.

    Creates the data directory; a line beginning READY on stderr says that every worker serves. SIGTERM ends it.

    \b
    Examples:
      flowkin serve --data-dir ./data
      flowkin serve --data-dir ./data --readers 4 --set ingest.save_after_ms=20
    """
    from cli.errors import USAGE, CommandError, Quit
    from engine.supervisor import run

    loaded = session.config(config, {"readers.count": readers}, settings)
    if not loaded.data_dir:
        raise CommandError("no data directory: give --data-dir DIR or set FLOWKIN_DATA_DIR", USAGE)
    raise Quit(run(loaded))


@flowkin.command("start")
@located(socket=False)
@_READERS
@_CONFIG
@_SET
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 3600), default=120.0, show_default=True,
              help="Wait for READY at most so long.")  # fmt: skip
@printed
def start(
    session: Session, out: Out, readers: int | None, config: Path | None, settings: tuple[str, ...], timeout: float
) -> None:
    """Run the engine in the background.

    Returns when every worker serves. What the engine says goes to DIR/run/engine.log.

    \b
    Examples:
      flowkin start --data-dir ./data
      flowkin start --data-dir ./data --readers 4
    """
    from cli import process

    session.config(config, {"readers.count": readers}, settings)  # a bad setting is refused here, not in a log
    args = ["serve", "--data-dir", str(session.layout.data_dir)]
    args += ["--readers", str(readers)] if readers else []
    args += ["--config", str(config.absolute())] if config else []
    args += [word for setting in settings for word in ("--set", setting)]
    pid = process.start(session.layout, args, timeout_s=timeout)
    log = process.log_path(session.layout)
    facts = {"pid": pid, "data_dir": str(session.layout.data_dir), "log": str(log)}
    out.done(facts, f"engine started (pid {pid}), log in {log}")


@flowkin.command("stop")
@located(socket=False)
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 3600), default=60.0, show_default=True,
              help="Wait for its end at most so long.")  # fmt: skip
@printed
def stop(session: Session, out: Out, timeout: float) -> None:
    """Stop the engine; what is under way is finished and saved.

    \b
    Example:
      flowkin stop --data-dir ./data
    """
    from cli import process
    from cli.errors import NOT_REACHABLE, CommandError

    pid = process.stop(session.existing(), timeout_s=timeout)
    if pid is None:
        raise CommandError(f"no engine runs on {session.layout.data_dir}", NOT_REACHABLE)
    out.done({"pid": pid, "stopped": True}, f"engine stopped (pid {pid})")


@flowkin.command("status")
@located()
@timed
@printed
def status(session: Session, out: Out, timeout_ms: int | None) -> None:
    """Does an engine serve here, and what is it?

    \b
    Example:
      flowkin status --data-dir ./data
    """
    reply = session.client().info(timeout_ms=timeout_ms)
    out.facts(reply.facts, running=True, generation=reply.generation)


@flowkin.command("doctor")
@located(socket=False)
@click.option("--deep", is_flag=True, help="Read and check every byte.")
@click.option("--fix", is_flag=True, help="Repair what can be made again: derived files only.")
@click.option("--quality", is_flag=True, help="Measure recall, neighbours, drift and coverage, now.")
@click.option("--sample", metavar="N", type=click.IntRange(50, 10_000), default=None,
              help="With --quality: so many events are looked up.  [default: quality.sample]")  # fmt: skip
@printed
def doctor(session: Session, out: Out, deep: bool, fix: bool, quality: bool, sample: int | None) -> None:
    """Check a data directory, running or not.

    Exit status 7 where it found problems. An upgrade trigger that fires is a note, with what to do.

    \b
    Examples:
      flowkin doctor --data-dir ./data
      flowkin doctor --data-dir ./data --deep --json
      flowkin doctor --data-dir ./data --quality --sample 1000
    """
    from cli import checkup
    from cli.errors import FINDINGS, Quit

    if sample and not quality:
        raise click.UsageError("--sample needs --quality")
    report = checkup.run(session, deep=deep, fix=fix, quality=quality, sample=sample or 0)
    out.findings(report.findings, report.summary)
    if report.problems:
        raise Quit(FINDINGS)


@flowkin.group("backup")
def backup() -> None:
    """Backups: create, list, verify, restore, delete, prune.

    A backup is a directory with one generation in it, whole. It is taken while the engine runs, or while it does not.

    \b
    Examples:
      flowkin backup create /backup/flowkin --data-dir ./data
      flowkin backup restore /backup/flowkin/NAME ./data
    """


@backup.command("create")
@click.argument("home", metavar="DIR", type=PATH)
@click.option("--name", metavar="NAME", default="", help="Of the backup.  [default: from time and generation]")
@located(socket=False)
@printed
def backup_create(session: Session, out: Out, home: Path, name: str) -> None:
    """Take a backup as DIR/NAME. Nobody waits for it; it is read back from the disk before it has its name.

    Full row files and indexes that an earlier backup in DIR has are linked from there, all else is copied. Exit status
    7 where a record of the catalog is damaged: it is in the backup as it is, the rest is whole.

    \b
    Examples:
      flowkin backup create /backup/flowkin --data-dir ./data
      flowkin backup create /backup/flowkin --name before-upgrade --data-dir ./data
    """
    from cli import backups
    from cli.errors import FINDINGS, Quit
    from cli.render import progress

    with progress("backup", unit="files") as meter:
        made = backups.create(session, home, name, meter)
    out.backed_up(made)
    if made["damaged"]:
        raise Quit(FINDINGS)


@backup.command("list")
@click.argument("home", metavar="DIR", type=PATH)
@printed
def backup_list(out: Out, home: Path) -> None:
    """The backups in a directory, the oldest first. Their files are not looked at: that is `verify`.

    \b
    Example:
      flowkin backup list /backup/flowkin
    """
    from cli import backups

    out.backups(backups.listed(home))


@backup.command("verify")
@click.argument("path", metavar="BACKUP", type=PATH)
@printed
def backup_verify(out: Out, path: Path) -> None:
    """Read every byte of a backup: files, rows and values against their checksums. Exit status 7 where one is wrong.

    \b
    Example:
      flowkin backup verify /backup/flowkin/NAME
    """
    from cli import backups
    from cli.errors import FINDINGS, Quit
    from cli.render import progress

    with progress("verify", unit="files") as meter:
        report = backups.verify(path, meter)
    out.findings(report.findings, report.summary)
    if report.problems:
        raise Quit(FINDINGS)


@backup.command("restore")
@click.argument("path", metavar="BACKUP", type=PATH)
@click.argument("target", metavar="DIR", type=PATH)
@printed
def backup_restore(out: Out, path: Path, target: Path) -> None:
    """Make a data directory of a backup: DIR, which is absent or empty. All is there, or nothing.

    Every file is copied, never linked, and compared with its checksum. Then `flowkin start --data-dir DIR`.

    \b
    Example:
      flowkin backup restore /backup/flowkin/NAME ./data
    """
    from cli import backups
    from cli.render import progress

    with progress("restore", unit="files") as meter:
        restored = backups.restore(path, target, meter)
    out.done(restored, f"{restored['events']:,} events, generation {restored['generation']}, restored to {target}; "
             f"`flowkin start --data-dir {target}` serves them")  # fmt: skip


@backup.command("delete")
@click.argument("path", metavar="BACKUP", type=PATH)
@printed
def backup_delete(out: Out, path: Path) -> None:
    """Remove a backup. Others that share files with it keep them.

    \b
    Example:
      flowkin backup delete /backup/flowkin/NAME
    """
    from engine.backup import delete

    delete(path)
    out.done({"removed": [path.name]}, f"backup {path} is removed")


@backup.command("prune")
@click.argument("home", metavar="DIR", type=PATH)
@click.option("--keep", metavar="N", type=click.IntRange(1), required=True, help="Keep the N newest.")
@printed
def backup_prune(out: Out, home: Path, keep: int) -> None:
    """Remove all but the newest backups in a directory.

    What cannot be read is left alone. Where each of the N holds damaged records, the newest that holds none stays, too.

    \b
    Example:
      flowkin backup prune /backup/flowkin --keep 7
    """
    from cli.text import plural
    from engine.backup import prune

    removed = prune(home, keep)
    out.done({"removed": removed}, f"{plural(len(removed), 'backup')} removed: {', '.join(removed) or 'none'}")


# ---- put events in ------------------------------------------------------------------------------------------------
@flowkin.command("ingest")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH_OR_DASH)
@reading()
@located()
@printed
def ingest(session: Session, out: Out, paths: tuple[Path, ...], how: How) -> None:
    """Store the events of files, directories or stdin (-), also .gz and .zst.

    The files are opened as you. Everything readable is durable when it returns; the same file again is all duplicates.
    What cannot be read goes to the dead letters and is counted.

    \b
    Examples:
      flowkin ingest eve.json.gz --data-dir ./data
      flowkin ingest captures/ --format pcap --sensor dmz --data-dir ./data
      zcat conn.log.gz | flowkin ingest - --format zeek --data-dir ./data --json
    """
    from cli import feed
    from cli.render import progress

    with progress("ingest") as meter:
        summary = feed.ingest(session.client(), paths, how, meter)
    out.ingested(summary.document())


@flowkin.command("generate")
@click.option("--events", metavar="N", type=click.IntRange(1, 1 << 40), required=True, help="How many.")
@click.option("--seed", metavar="S", type=click.INT, default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--out", "file", metavar="FILE", type=PATH_OR_DASH, required=True,
              help="NDJSON file; - for stdout.")  # fmt: skip
@printed
def generate(out: Out, events: int, seed: int, file: Path) -> None:
    """Write synthetic events, labelled: campaigns, benign look-alikes, overlapping families.

    \b
    Examples:
      flowkin generate --events 100000 --seed 7 --out synthetic.ndjson
      flowkin generate --events 1000 --out - | flowkin ingest - --format ndjson --data-dir ./data
    """
    from cli import files
    from cli.render import progress

    with progress("generate", events) as meter:
        written = files.generate(events, seed, file, meter)
    if str(file) != "-":
        out.done({"events": written, "file": str(file), "seed": seed}, f"{written:,} events in {file}")


@flowkin.command("label")
@click.argument("event_id", metavar="ID")
@click.argument("label", metavar="LABEL")
@click.option("--by", metavar="NAME", default="", help="Who says so.  [default: you]")
@located()
@timed
@printed
def label(session: Session, out: Out, event_id: str, label: str, by: str, timeout_ms: int | None) -> None:
    """Say what an event was; '' takes the label away. The detector's verdict stays as it is.

    \b
    Examples:
      flowkin label synthetic/synthetic_000042 true_positive --by ana --data-dir ./data
      flowkin label ID 'false positive: backup job' --data-dir ./data
    """
    import getpass

    by = by or getpass.getuser()
    done = session.client().label(event_id, label, by=by, timeout_ms=timeout_ms)
    facts = {"generation": done.generation, "event_id": event_id, "label": label or None, "labelled_by": by}
    sentence = f"{event_id} is labelled {label!r} by {by}" if label else f"{event_id} has no label now"
    out.done(facts | done.facts, sentence)


# ---- ask ----------------------------------------------------------------------------------------------------------
def _remember(session: Session, reply: Answers | Found) -> None:
    """For #N in the shell: what was printed last."""
    from cli.answers import event_of, identity
    from ipc.messages import Answers

    if session.interactive:
        shown = [h for a in reply.answers for h in a.hits] if isinstance(reply, Answers) else reply.events
        session.hits = [identity(event_of(one.event)) for one in shown]


@flowkin.command("query_similar")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@searching()
@located()
@printed
def query_similar(
    session: Session, out: Out, ids: tuple[str, ...], options: Options, plan: bool, timeout_ms: int | None
) -> None:
    """Which past events are like this one, how like, in what, and what became of them?

    An ID is the detector's (the newest that bears it), or source/id for one exactly; - reads ids from stdin.

    \b
    Examples:
      flowkin query_similar synthetic_000042 --explain --data-dir ./data
      flowkin query_similar ID -k 20 --space attack --since 7d --class MALICIOUS --data-dir ./data
      flowkin query_similar ID --before --other-episodes --dst 10.0.0.0/8 --dst-port 1-1023 --json --data-dir ./data
      flowkin recent --ndjson | jq -r .event_id | flowkin query_similar - --ndjson
    """
    from cli import questions

    several, wanted = questions.ids_of(ids, sys.stdin)

    def answers() -> Iterator[Any]:
        for reply in questions.similar(session.client(), wanted, options, timeout_ms):
            _remember(session, reply)
            yield from ((answer, reply.generation) for answer in reply.answers)

    out.answers(answers(), several=several, plan=plan)


@flowkin.command("query_event")
@click.argument("path", metavar="PATH", type=PATH_OR_DASH)
@reading("--as-source")
@searching()
@located()
@printed
def query_event(
    session: Session, out: Out, path: Path, how: How, options: Options, plan: bool, timeout_ms: int | None
) -> None:
    """Which past events are like those of this file? Nothing of it is stored.

    The events are asked about in the order of time, each with the recent past that the engine and the file hold.
    One event is shown in full, of several a line each (--explain shows all in full).

    \b
    Examples:
      flowkin query_event alert.json --format eve -k 5 --explain --data-dir ./data
      flowkin query_event today.csv --format cicflow -k 10 --space attack --ndjson --data-dir ./data
    """
    from cli import feed
    from cli.render import progress

    events = feed.events([path], how)
    with progress("query") as meter:
        answers = feed.metered(feed.ask(session.client(), events, options, timeout_ms), meter)
        several, answers = feed.peeked(answers)
        out.answers(answers, several=True, brief=several and not options.explain, plan=plan)


@flowkin.command("classify")
@click.argument("what", metavar="ID...|FILE...", nargs=-1, required=True)
@reading("--as-source")
@voting()
@located()
@printed
def classify(
    session: Session, out: Out, what: tuple[str, ...], how: How, options: Voting, timeout_ms: int | None
) -> None:
    """What is this event, how sure, and has there been anything like it? By the vote of its nearest precedents.

    Precedents bear an analyst's label, or the family that their detector named; labels count from the next answer on.
    IDs are of stored events (- reads them from stdin); events of files are not stored. With --format, all are files.

    \b
    Examples:
      flowkin classify synthetic_000042 --data-dir ./data
      flowkin classify today.csv --format cicflow --ndjson --data-dir ./data
      flowkin classify ID --other-episodes --space chronos -k 10 --json --data-dir ./data
      flowkin recent --ndjson | jq -r .event_id | flowkin classify - --ndjson
    """
    from cli import feed, questions
    from cli.render import progress

    paths = feed.files_of(what, how)
    if paths:
        events = feed.events(paths, how)
        with progress("classify") as meter:
            found = feed.metered(feed.classify(session.client(), events, options, timeout_ms), meter)
            several, judgements = feed.peeked(questions.remembered(found, session))
            out.judgements(judgements, several=several, listed=True)
        return
    several, wanted = questions.ids_of(what, sys.stdin)
    found = questions.classified(session.client(), wanted, options, timeout_ms)
    out.judgements(questions.remembered(found, session), several=several, listed=several)


@flowkin.command("search")
@click.argument("text", metavar="TEXT", nargs=-1, required=True)
@searching(space="sbert")
@located()
@printed
def search(
    session: Session, out: Out, text: tuple[str, ...], options: Options, plan: bool, timeout_ms: int | None
) -> None:
    """Events that say something like this.

    \b
    Examples:
      flowkin search 'dns tunnelling to a new domain' --data-dir ./data
      flowkin search ssh brute force --since 7d -k 20 --data-dir ./data
    """
    reply = session.client().search_text(" ".join(text), options=options, timeout_ms=timeout_ms)
    _remember(session, reply)
    out.answers(((answer, reply.generation) for answer in reply.answers), several=False, plan=plan)


@flowkin.command("list")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--all", "everything", is_flag=True, help="All of them, whatever --limit says.")
@click.option("--after", metavar="SEQ", type=click.INT, default=-1, help="Go on after this event's seq.")
@filtered
@timed
@located()
@printed
def list_(
    session: Session,
    out: Out,
    limit: int,
    everything: bool,
    after: int,
    filter: Filter | None,
    timeout_ms: int | None,
) -> None:
    """Stored events in the order of arrival, the oldest first.

    \b
    Examples:
      flowkin list --class MALICIOUS --since 24h --data-dir ./data
      flowkin list --all --ndjson --family DDoS,DoS --dst-port 80,443 --data-dir ./data
    """
    from cli import questions

    pages = questions.pages(session.client(), filter, after, None if everything else limit, timeout_ms)
    out.events(questions.noted(pages, session))


@flowkin.command("recent")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1, TOP_K_MAX), default=20, show_default=True,
              help="How many.")  # fmt: skip
@click.option("--by", type=click.Choice(["arrival", "event-time"]), default="arrival", show_default=True, help="Order.")
@filtered
@timed
@located()
@printed
def recent(session: Session, out: Out, limit: int, by: str, filter: Filter | None, timeout_ms: int | None) -> None:
    """The newest events, the newest first.

    \b
    Examples:
      flowkin recent --data-dir ./data
      flowkin recent -n 50 --by event-time --class MALICIOUS,SUSPICIOUS --data-dir ./data
    """
    reply = session.client().recent(limit=limit, filter=filter, by_event_time=by == "event-time", timeout_ms=timeout_ms)
    _remember(session, reply)
    out.events([reply])


@flowkin.command("show")
@click.argument("event_id", metavar="ID")
@click.option("--raw", is_flag=True, help="The original record only.")
@located()
@timed
@printed
def show(session: Session, out: Out, event_id: str, raw: bool, timeout_ms: int | None) -> None:
    """Everything about one event: fields, label and history, the 105 features.

    \b
    Examples:
      flowkin show synthetic_000042 --data-dir ./data
      flowkin show eve/1234567 --raw --data-dir ./data
    """
    from cli import questions

    found = questions.one(session.client(), event_id, raw=raw, timeout_ms=timeout_ms)
    out.stored(found.events[0], found.generation, raw=raw)


@flowkin.command("watch")
@filtered
@located()
@printed
def watch(session: Session, out: Out, filter: Filter | None) -> None:
    """New events as they come, until Ctrl-C.

    \b
    Examples:
      flowkin watch --class MALICIOUS --data-dir ./data
      flowkin watch --ndjson --data-dir ./data | jq .src_ip
    """
    from cli import questions

    for page in questions.watch(session.client(), filter):
        out.passing(page.events)


@flowkin.command("shell")
@located()
def shell(session: Session) -> None:
    """Ask in a dialogue: the same commands, #N for hit N, completion, history.

    \b
    Examples:
      flowkin shell --data-dir ./data
      echo 'recent -n 5' | flowkin shell --data-dir ./data
    """
    from cli.errors import Quit
    from cli.shell import Shell

    raise Quit(Shell(session).loop())


# ---- know more ----------------------------------------------------------------------------------------------------
@flowkin.command("stats")
@click.option("--features", is_flag=True, help="Every feature of every source: how often it is there, its range.")
@click.option("--source", "sources", metavar="NAME,...", type=Words("NAME,..."), multiple=True,
              help="Every feature of these sources.")  # fmt: skip
@located()
@timed
@printed
def stats(session: Session, out: Out, features: bool, sources: tuple[list[str], ...], timeout_ms: int | None) -> None:
    """Counts, sizes, coverage for each source, dead letters by reason, health.

    Coverage counts the features that a source fills in at least one event; a feature is constant where at least two
    events bear it, all with one value.

    \b
    Examples:
      flowkin stats --json --data-dir ./data
      flowkin stats --features --source eve --data-dir ./data
    """
    from cli import questions
    from cli.answers import stats_document

    names = [name for some in sources for name in some]
    out.stats(stats_document(*questions.stats(session.client(), features, names, timeout_ms)))


@flowkin.command("dead_letters")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1, 10_000), default=20, show_default=True,
              help="How many.")  # fmt: skip
@click.option("--reason", metavar="TEXT", default="", help="Only those whose reason holds this text.")
@located(socket=False)
@printed
def dead_letters(session: Session, out: Out, limit: int, reason: str) -> None:
    """The newest records that could not be read or were refused, the newest first.

    Read from the data directory, whether an engine runs or not; `flowkin stats` counts all of them by reason. The last
    64 MiB of them are looked at.

    \b
    Examples:
      flowkin dead_letters --data-dir ./data
      flowkin dead_letters -n 1000 --reason 'not JSON' --ndjson --data-dir ./data | jq -r .record
    """
    from cli import questions

    out.letters(questions.letters(session.existing().dead_letters, reason, limit, session.cipher()))


@flowkin.command("info")
@located()
@timed
@printed
def info(session: Session, out: Out, timeout_ms: int | None) -> None:
    """What this engine is: versions, spaces, models, limits.

    \b
    Example:
      flowkin info --data-dir ./data
    """
    reply = session.client().info(timeout_ms=timeout_ms)
    out.facts(reply.facts, generation=reply.generation)


@flowkin.group("models", invoke_without_command=True)
@located()
@printed
def models(session: Session, out: Out) -> None:
    """Versions of the embedders: list, show, compare, use, rollback, gc.

    \b
    Examples:
      flowkin models --data-dir ./data
      flowkin models use 2026-05 --data-dir ./data
    """
    if click.get_current_context().invoked_subcommand is None:
        reply = session.client().models()
        out.models(reply.facts, reply.generation)


@models.command("list")
@located()
@timed
@printed
def models_list(session: Session, out: Out, timeout_ms: int | None) -> None:
    """All versions, and which one is in use.

    \b
    Example:
      flowkin models list --data-dir ./data
    """
    reply = session.client().models(timeout_ms=timeout_ms)
    out.models(reply.facts, reply.generation)


@models.command("show")
@click.argument("version", metavar="VERSION")
@located()
@timed
@printed
def models_show(session: Session, out: Out, version: str, timeout_ms: int | None) -> None:
    """One version: how it was fitted, its calibration, its files.

    \b
    Example:
      flowkin models show 2026-05 --data-dir ./data
    """
    from cli import questions

    reply = session.client().models(timeout_ms=timeout_ms)
    out.facts(questions.model_of(reply.facts, version), generation=reply.generation)


@models.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("-n", "--events", "count", metavar="N", type=click.IntRange(100, 20_000), default=3_000,
              show_default=True, help="Draw at most so many.")  # fmt: skip
@click.option("--seed", metavar="S", type=click.IntRange(0), default=0, show_default=True,
              help="Same seed, same events.")  # fmt: skip
@located(socket=False)
@printed
def models_compare(session: Session, out: Out, a: str, b: str, count: int, seed: int) -> None:
    """Compare two versions on stored events of known family: what each finds, costs, and what a switch to B takes.

    A and B: versions of the data directory, ones that ship, or directories (with a /). Each drawn event looks back at
    the drawn events before it. Read from the data directory, whether an engine runs or not; nothing is changed.

    \b
    Examples:
      flowkin models compare v4 2026-05 --data-dir ./data
      flowkin models compare v4 models/2026-05 -n 10000 --json --data-dir ./data
    """
    from cli.render import progress
    from engine.compare import compare
    from engine.recover import map_size

    layout, config = session.existing(), session.config()
    with progress("compare", unit=""):
        found = compare(layout, (a, b), config.network.internal, map_size(config), count, seed, session.cipher())
    out.compared(found)


_WAIT = click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 86_400), default=3600.0,
                     show_default=True, help="Wait at most so long; the switch goes on.")  # fmt: skip


@models.command("use")
@click.argument("version", metavar="VERSION|DIR")
@located()
@_WAIT
@printed
def models_use(session: Session, out: Out, version: str, timeout: float) -> None:
    """Switch to a version; stored events are embedded anew first, while the old one answers.

    A directory that `flowkin train` wrote is given to the engine first. The version before is kept for
    `flowkin models rollback`. A switch outlives a restart; using the version that is in use gives it up.

    \b
    Examples:
      flowkin models use 2026-05 --data-dir ./data
      flowkin models use models/2026-05 --data-dir ./data
    """
    from cli import training
    from cli.render import progress

    if "/" in version:
        version = training.added(session.client(), Path(version))
    with progress(f"switch to {version}", unit=""):
        done = session.client().use_model(version, timeout_ms=round(timeout * 1000))
    out.done({"generation": done.generation, "version": version} | done.facts, f"model {version} is in use")


@models.command("rollback")
@located()
@_WAIT
@printed
def models_rollback(session: Session, out: Out, timeout: float) -> None:
    """Return to the version before the last switch, whose rows are kept; only later events are embedded by it first.

    \b
    Example:
      flowkin models rollback --data-dir ./data
    """
    from cli.render import progress

    with progress("rollback", unit=""):
        done = session.client().rollback_model(timeout_ms=round(timeout * 1000))
    out.done({"generation": done.generation} | done.facts, f"model {done.facts['version']} is in use")


@models.command("gc")
@located()
@timed
@printed
def models_gc(session: Session, out: Out, timeout_ms: int | None) -> None:
    """Remove the rows and indexes that are kept for a rollback. The version itself stays, and can be used anew.

    \b
    Example:
      flowkin models gc --data-dir ./data
    """
    from cli.text import size

    done = session.client().forget_model(timeout_ms=timeout_ms)
    version = done.facts["version"]
    said = f"{size(done.facts['bytes'])} of model {version} freed" if version else "nothing is kept"
    out.done({"generation": done.generation} | done.facts, said)


@flowkin.command("purge")
@click.argument("ids", metavar="[ID...]", nargs=-1)
@filtered
@click.option("--backups", metavar="DIR", type=PATH, multiple=True,
              help="Then also from every backup in this directory; again for another one.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say how many events it would be; nothing is changed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 86_400), default=3600.0, show_default=True,
              help="Wait at most so long; it goes on.")  # fmt: skip
@located()
@printed
def purge(
    session: Session, out: Out, ids: tuple[str, ...], filter: Filter | None, backups: tuple[Path, ...], dry_run: bool,
    yes: bool, timeout: float,
) -> None:  # fmt: skip
    """Remove events for good: those that the filter flags name, or those of these IDs.

    They are in no answer any more when it returns; so are dead letters, waiting firewall actions and the recent past of
    the addresses that the filter names. `flowkin compact` then removes what the catalog's free pages hold of them.

    A backup that holds some of it is taken anew without them, under its name; that takes room for two copies of it.
    Exit status 7 where one is left as it is. --dry-run does not look into backups.

    \b
    Examples:
      flowkin purge --addr 203.0.113.7 --dry-run --data-dir ./data
      flowkin purge --addr 203.0.113.7 --yes --data-dir ./data
      flowkin purge --addr 203.0.113.7 --yes --backups /backup/flowkin --data-dir ./data
      flowkin purge --source lab --until 30d --yes --data-dir ./data
      flowkin purge eve/1234567 --yes --data-dir ./data
    """
    from cli import backups as of_backups
    from cli import questions
    from cli.errors import FINDINGS, Quit
    from cli.render import progress
    from cli.text import plural

    wanted = list(questions.ids_of(ids, sys.stdin)[1])
    facts, generation = questions.purged(session.client(), filter, wanted, dry_run, yes, round(timeout * 1000))
    would = "would be purged" if dry_run else "purged"
    said, left = f"{facts['events']:,} events {would}", []
    if not dry_run:
        said += f", {facts['dead_letters']:,} dead letters ({facts['dead_letters_left']:,} left); now `flowkin compact`"
    if backups and not dry_run:
        with progress("backups", unit="") as meter:
            facts["backups"] = of_backups.purged(session, backups, filter, wanted, meter)
        left = [one for one in facts["backups"] if one["error"]]
        anew = sum(one["changed"] for one in facts["backups"])
        said += f"; {plural(len(facts['backups']), 'backup')} looked at, {anew} taken anew"
        said += "".join(f"; {one['path']} is left as it is: {one['error']}" for one in left)
    out.done({"generation": generation} | facts, said)
    if left:
        raise Quit(FINDINGS)


@flowkin.command("compact")
@located()
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 86_400), default=3600.0, show_default=True,
              help="Wait at most so long; it goes on.")  # fmt: skip
@printed
def compact(session: Session, out: Out, timeout: float) -> None:
    """Copy the catalog into a new file without what was deleted; its space is given back.

    Events are stored and questions answered meanwhile.

    \b
    Example:
      flowkin compact --data-dir ./data
    """
    from cli.render import progress
    from cli.text import size

    with progress("compact", unit=""):
        done = session.client().compact(timeout_ms=round(timeout * 1000))
    facts = done.facts
    said = f"catalog: {size(facts['bytes_after'])}, before {size(facts['bytes_before'])}"
    if facts["waits_for"]:
        said += f"; the old one is still held by {', '.join(facts['waits_for'])}"
    out.done({"generation": done.generation} | facts, said)


@flowkin.command("fit")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH_OR_DASH)
@reading()
@click.option("--name", metavar="VERSION", default="", help="Name of the new version.  [default: from the time]")
@click.option("--seed", metavar="S", type=click.INT, default=0, show_default=True, help="Same seed, same model.")
@located()
@printed
def fit(session: Session, out: Out, paths: tuple[Path, ...], how: How, name: str, seed: int) -> None:
    """Fit a new version of the embedders on the events of files; nothing of them is stored.

    An engine without events uses it at once; otherwise it waits for `flowkin models use VERSION`.

    \b
    Example:
      flowkin fit labelled.csv --format cicflow --name 2026-05 --data-dir ./data
    """
    from cli import training
    from cli.render import progress

    with progress("fit") as meter:
        fitted = training.fit(session.client(), paths, how, name, seed, meter)
    used = "is in use" if fitted["used"] else f"waits for `flowkin models use {fitted['version']}`"
    out.done(fitted, f"model {fitted['version']}, fitted on {fitted['events']:,} events, {used}")


@flowkin.command("train")
@click.option("--data", "paths", metavar="PATH", multiple=True, required=True, type=PATH,
              help="Files or directories of labelled events; may be repeated.")  # fmt: skip
@click.option("--out", "target", metavar="DIR", required=True, type=PATH, help="The version becomes DIR/VERSION.")
@reading()
@click.option("--name", metavar="VERSION", default="", help="Name of the new version.  [default: from the time]")
@click.option("--seed", metavar="S", type=click.INT, default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--internal", metavar="CIDR", multiple=True,
              help="Networks that count as inside.  [default: private ones]")  # fmt: skip
@printed
def train(
    out: Out, paths: tuple[Path, ...], target: Path, how: How, name: str, seed: int, internal: tuple[str, ...]
) -> None:
    """Train a new version of the embedders, with networks, on the events of files. Needs no engine, and minutes.

    \b
    Examples:
      flowkin train --data labelled.csv --format cicflow --out models --name 2026-05
      flowkin models use models/2026-05 --data-dir ./data
    """
    from cli import training
    from cli.render import progress
    from engine.config import CIDRS_INTERNAL

    with progress("train") as meter:
        trained = training.train(paths, how, internal or CIDRS_INTERNAL, name, seed, target, meter)
    out.done(trained, f"model {trained['version']}, trained on {trained['events']:,} events, in {trained['path']}")


@flowkin.command("export")
@click.option("--ndjson", "as_ndjson", metavar="FILE", type=PATH_OR_DASH,
              help="One event a line; can be ingested again. - for stdout.")  # fmt: skip
@click.option("--parquet", metavar="FILE", type=PATH, help="A table: fields, features and vectors.")
@click.option("--legacy", metavar="DIR", type=PATH, help="FAISS indexes and metadata as the older system had them.")
@located()
@click.option("--json", is_flag=True, help="Print one JSON document.")
def export(session: Session, as_ndjson: Path | None, parquet: Path | None, legacy: Path | None, json: bool) -> None:
    """Write all events to a file.

    \b
    Examples:
      flowkin export --ndjson events.ndjson --data-dir ./data
      flowkin export --parquet events.parquet --data-dir ./data
    """
    from cli import files
    from cli.render import Out, progress

    given = [(k, v) for k, v in (("ndjson", as_ndjson), ("parquet", parquet), ("legacy", legacy)) if v is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --ndjson FILE, --parquet FILE, --legacy DIR")
    kind, target = given[0]
    with progress("export") as meter:
        exported = files.export(session, kind, target, meter)
    if str(target) != "-":
        out = Out("json" if json else "text")
        out.done(exported, f"{exported['events']:,} events in {target}")


def main() -> int:
    """The program; its exit status."""
    from cli.run import run

    session = Session()
    try:
        return run(sys.argv[1:], session)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main())
