"""The doctor's report as documents. No printing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from cli.session import Session
    from engine.maintain.doctor import Finding

MEASURE_MS = 600_000  # the longest that a measurement may take
SCRUB_MS = 3_600_000  # the longest that a scrub is waited for


class Report(NamedTuple):
    """problems: how many findings are one and were not mended."""

    findings: list[dict[str, Any]]
    problems: int
    summary: dict[str, Any]


def run(session: Session, *, deep: bool, fix: bool, quality: bool, sample: int) -> Report:
    """sample: events looked up for the quality; 0: as set."""
    import msgspec

    from engine.errors import EngineError
    from engine.maintain import doctor

    layout = session.existing()
    found = _fix(session) if fix else []
    key_file = ""
    try:
        key_file = session.config().store.key_file
    except EngineError as e:
        found.append(doctor.Finding("problem", "settings", str(e)))
    found += doctor.run(layout, deep=deep, key_file=key_file)
    summary: dict[str, Any] = {"data_dir": str(layout.data_dir), "deep": deep, "fix": fix}
    if quality:
        more, summary["quality"] = _quality(session, sample)
        found += [doctor.Finding(*f) for f in more]
    problems = sum(f.severity == "problem" and not f.fixed for f in found)
    return Report([msgspec.to_builtins(f) for f in found], problems, summary | {"problems": problems})


def _fix(session: Session) -> list[Finding]:
    """Mend: by a scrub of the engine that runs here, which mends, or here where none does."""
    from engine.errors import EngineError
    from engine.maintain import doctor
    from ipc.errors import ClientError

    layout = session.existing()
    try:
        if not doctor.engine_runs(layout):
            return doctor.fix(layout, session.config())
        facts = session.client().scrub(timeout_ms=SCRUB_MS).facts
    except (EngineError, ClientError, OSError) as e:
        return [doctor.Finding("problem", "fix", f"nothing was mended: {e}")]
    left = f"; left: {', '.join(facts['left_names'])}" if facts["left"] else ""
    detail = f"the engine looked, and mended {facts['mended']} of {facts['damaged']} damaged files and values{left}"
    if facts["left"]:
        return [doctor.Finding("problem", "fix", detail)]
    return [doctor.Finding("ok", "fix", detail, fixed=bool(facts["mended"]))]


def _quality(session: Session, sample: int) -> tuple[list[tuple[str, str, str]], dict[str, Any] | None]:
    """Findings and the figures; asked of the engine where one runs here, so that its stats show them too."""
    from cli.answers import quality_document
    from engine.errors import EngineError
    from engine.maintain import doctor, gauges, quality
    from engine.store.catalog import Catalog
    from engine.store.recover import map_size
    from ipc.errors import ClientError

    layout = session.existing()
    try:
        if doctor.engine_runs(layout):
            facts = session.client().measure(sample=sample, timeout_ms=MEASURE_MS).facts
        else:
            config = session.config()
            catalog = Catalog(layout.catalog, write=False, map_size=map_size(config))
            try:
                window, sample = config.quality.window_events, sample or config.quality.sample
                measured = quality.measure(layout, catalog, window=window, sample=sample, seed=0)
            finally:
                catalog.close()
            facts = gauges.facts(layout, measured, config.upgrade, whole=True)
    except (EngineError, ClientError, OSError) as e:
        return [("note", "quality", f"was not measured: {e}")], None
    return list(gauges.findings(facts)), quality_document(facts)
