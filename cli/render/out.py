"""One command's output: the format, JSON and NDJSON for programs, and which page a person gets.

Always true
  - `Out` is made once for each command. "json" prints exactly one document, "ndjson" one line for each thing.
    What has no end (watch) is a line for each thing in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from cli.answers import (
    Document,
    annotation_of,
    answer_document,
    event_of,
    history_document,
    judgement_document,
    stored_document,
)
from cli.render import answer, backup, coverage, event, facts, judgement, model
from cli.render.style import BAD, DIM, GOOD, WARN, named_features
from cli.tables import Span, Writer
from cli.text import duration, escaped, plural
from ipc.event import FEATURE_BYTES
from ipc.messages import Answer, Found, Judgement, Stored

Format = Literal["text", "json", "ndjson"]


def json_line(document: Any) -> str:
    """NaN and infinities become null; what a terminal would act on, or hide, is escaped as JSON has it."""
    return escaped(msgspec.json.encode(document).decode())


class Out:
    """One command's output."""

    def __init__(self, fmt: Format = "text", writer: Writer | None = None) -> None:
        self.format: Format = fmt
        self.to = writer or Writer()

    @property
    def text(self) -> bool:
        return self.format == "text"

    def document(self, document: Any) -> None:
        """One JSON document (indented on a terminal)."""
        text = json_line(document)
        if self.format == "json" and self.to.stream.isatty():
            text = escaped(msgspec.json.format(text, indent=2))
        self.to.raw(text + "\n")

    def documents(self, documents: Iterable[Document]) -> None:
        """ndjson: lines as they come; json: one list, written as it comes, and closed also where an error ends it."""
        if self.format == "ndjson":
            for document in documents:
                self.to.raw(json_line(document) + "\n")
                self.to.stream.flush()
            return
        self.to.raw("[")
        try:
            for i, document in enumerate(documents):
                self.to.raw(("," if i else "") + "\n" + json_line(document))
        finally:
            self.to.raw("\n]\n")

    def answers(
        self, answers: Iterable[tuple[Answer, int]], *, several: bool, brief: bool = False, plan: bool = False
    ) -> None:
        """(answer, generation) of one query or several: a list in JSON, a line each in NDJSON (in text if brief)."""
        if not self.text:
            documents = (answer_document(one, generation) for one, generation in answers)
            if several or self.format == "ndjson":
                self.documents(documents)
            else:
                for document in documents:
                    self.document(document)
            return
        if brief:
            answer.lines(self.to, answers)
            return
        for i, (one, generation) in enumerate(answers):
            if i:
                self.to.line()
            answer.whole(self.to, one, generation, plan=plan)
            self.to.stream.flush()

    def judgements(self, judgements: Iterable[tuple[Judgement, int]], *, several: bool, listed: bool) -> None:
        """One in full, several a line each; JSON: a list where `listed`, NDJSON: a line each."""
        if not self.text:
            documents = (judgement_document(one, generation) for one, generation in judgements)
            if listed or self.format == "ndjson":
                self.documents(documents)
            else:
                for document in documents:
                    self.document(document)
            return
        if several:
            judgement.lines(self.to, judgements)
            return
        for one, generation in judgements:
            judgement.whole(self.to, one, generation)

    def events(self, pages: Iterable[Found]) -> None:
        """list and recent: a table; JSON: {"generation", "events", "next_seq"}; NDJSON: an event a line."""
        if self.format == "ndjson":
            for page in pages:
                self.to.raw("".join(json_line(stored_document(stored)) + "\n" for stored in page.events))
                self.to.stream.flush()
            return
        generation, next_seq, events = 0, -1, []
        for page in pages:
            generation, next_seq = page.generation, page.next_seq
            events += page.events
        if self.format == "json":
            documents = [stored_document(stored) for stored in events]
            self.document({"generation": generation, "events": documents, "next_seq": next_seq})
            return
        if not events:
            self.to.line(Span("no event matches", WARN))
            return
        event.table(self.to, events)
        more = f" · more: --after {next_seq}" if next_seq >= 0 else ""
        self.to.line(Span(f"{plural(len(events), 'event')} · generation {generation}{more}", DIM))

    def passing(self, stored: Sequence[Stored]) -> None:
        """watch: a line for each new event, at once; in JSON, too: a list would never end."""
        for one in stored:
            if not self.text:
                self.to.raw(json_line(stored_document(one)) + "\n")
                continue
            event.line(self.to, event_of(one.event))
        self.to.stream.flush()

    def stored(self, stored: Stored, generation: int, *, raw: bool = False) -> None:
        """show: everything about one event."""
        if raw:
            data = stored.raw.decode("utf-8", "replace")
            if self.text:
                for line in data.splitlines() or [""]:
                    self.to.line(line)
            else:
                self.document({"generation": generation, "seq": stored.seq, "raw": data})
            return
        if not self.text:
            document: Document = {"generation": generation} | stored_document(stored)
            document["history"] = history_document(stored.annotation)
            document["features"] = named_features(stored.features)
            self.document(document)
            return
        event.whole(self.to, stored.seq, event_of(stored.event), annotation_of(stored.annotation))
        if len(stored.features) == FEATURE_BYTES:
            self.to.line()
            event.features(self.to, stored.features)

    def facts(self, given: Mapping[str, Any], **more: Any) -> None:
        """Info, stats, models: JSON as it came; for people nested facts as aligned lines and tables."""
        if not self.text:
            self.document({**more, **given})
            return
        facts.tree(self.to, {**more, **given}, 0)

    def stats(self, document: Mapping[str, Any]) -> None:
        """For people: the figures, then the sources and the dead letters; where features were asked for, those only."""
        if not self.text:
            self.document(document)
            return
        sources = document.get("sources", [])
        if any("features" in row for row in sources):
            for i, row in enumerate(sources):
                if i:
                    self.to.line()
                coverage.source_features(self.to, row)
            return
        facts.tree(self.to, {k: v for k, v in document.items() if k not in ("sources", "dead_letters")}, 0)
        if sources:
            coverage.sources(self.to, sources)
        if letters := document.get("dead_letters", {}).get("reasons"):
            coverage.reasons(self.to, document["dead_letters"], letters)

    def letters(self, letters: Iterable[Document]) -> None:
        """Dead letters: a line that says where and why, then the record, cut."""
        if not self.text:
            self.documents(letters)
            return
        coverage.letters(self.to, letters)

    def models(self, given: Mapping[str, Any], generation: int) -> None:
        """The versions there are: a line each for people."""
        if self.text:
            model.versions(self.to, given)
        else:
            self.facts(given, generation=generation)

    def backed_up(self, made: Mapping[str, Any]) -> None:
        """A new backup."""
        if self.text:
            backup.made(self.to, made)
        else:
            self.document(made)

    def backups(self, given: Sequence[Document]) -> None:
        """The backups in a directory: a table; JSON: {"backups"}; NDJSON: a line each."""
        if self.text:
            backup.table(self.to, given)
        elif self.format == "ndjson":
            self.documents(given)
        else:
            self.document({"backups": list(given)})

    def compared(self, found: Mapping[str, Any]) -> None:
        """Two versions side by side."""
        if self.text:
            model.comparison(self.to, found)
        else:
            self.document(found)

    def ingested(self, summary: Mapping[str, Any]) -> None:
        if not self.text:
            self.document(summary)
            return
        seconds = float(summary["seconds"])
        total = summary["accepted"] + summary["duplicates"]
        rate = f", {total / seconds:,.0f}/s" if seconds > 0 and total else ""
        self.to.line(
            Span(plural(summary["accepted"], "event"), GOOD if summary["accepted"] else ""), " stored, ",
            f"{plural(summary['duplicates'], 'duplicate')}, ",
            Span(f"{summary['rejected']:,} rejected", BAD if summary["rejected"] else ""),
            f" in {duration(seconds)}{rate} · generation {summary['generation']}",
        )  # fmt: skip
        if summary["joined"] or summary["waiting"]:
            self.to.line(
                f"firewall actions: {summary['joined']:,} said of events, {summary['waiting']:,} have met no event yet"
            )
        if summary["rejected"] and summary["dead_letters"]:
            self.to.line(f"what could not be read is in {summary['dead_letters']}")

    def done(self, document: Mapping[str, Any], sentence: str) -> None:
        """A command that changed something: facts for programs, a sentence for people."""
        if self.text:
            self.to.line(sentence)
        else:
            self.document(document)

    def findings(self, findings: Sequence[Document], summary: Mapping[str, Any]) -> None:
        if self.format == "ndjson":
            self.documents(findings)
            return
        if self.format == "json":
            self.document({**summary, "findings": list(findings)})
            return
        styles = {"problem": BAD, "note": WARN, "fixed": GOOD, "ok": GOOD}
        for finding in findings:
            level = "fixed" if finding["fixed"] else finding["severity"]
            self.to.line(Span(f"{level:8}", styles.get(level, "")), f"  {finding['object']}: {finding['detail']}")
        problems = int(summary.get("problems", 0))
        self.to.line(Span(plural(problems, "problem") if problems else "no problem found", BAD if problems else GOOD))
