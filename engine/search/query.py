"""From a question to an answer: what is like this event, how like, and why.

Always true
  - One answer comes from one snapshot and one read transaction: one generation over all spaces and the metadata.
  - The event itself is never its own neighbour. Hits are ordered by distance, equal ones the newest first.
  - A hit whose vector disagrees with its checksum, or whose record does, is left out and reported, never returned.
  - Stored events are spliced into answers as bytes, never decoded, but to explain.

In a single space the distance is L2 between vectors. Fused, it is the weighted mean of the distances' percentiles among
random pairs in each space (0..100): spaces count by how unusual a distance is, not by its unit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from engine.embed.base import BEHAVIOUR, DIMS, FUSED, SPACES, ModelSet
from engine.embed.linear import LinearEmbedder
from engine.embed.text import TextEmbedder
from engine.embed.vote import places, within
from engine.errors import BadRequestError, CorruptionError, NotFoundError, UnknownSpaceError
from engine.features import CONTEXT_INDEXES, F32, FEATURES, agree, unpack
from engine.limits import COLLAPSE_FETCH_MAX, KNOWN_MIN
from engine.search import filters
from engine.search.connection import Asked, alerts, flows
from engine.search.snapshot import Candidates, Snapshot
from engine.store.catalog import View
from engine.store.index import Mask
from ipc.event import Event, Hit
from ipc.messages import Answer, Contribution, CounterExample, Explanation, Judgement, Options

log = logging.getLogger(__name__)

PLACE_NUMBERS = 65_536  # of candidates' vectors; with more it pays to look only at those that can be in a place
PLACE_ROWS = 128  # compared at once then: larger blocks of memory are slow (DISTANCE_NUMBERS in snapshot.py)
FUSED_FETCH_MIN = 64  # candidates from each space, so that one space's favourites are seen by the others
LEADING = 6  # features that are named as agreeing, and as disagreeing
LEADING_CONTEXT = 3  # of them, where there are so many of the flow itself
LEADING_SHARE_MIN = 0.01  # of the distance; less is not worth a line
CONTEXT = frozenset(FEATURES[i].fact for i in CONTEXT_INDEXES)

A = TypeVar("A", Answer, Judgement)
T = TypeVar("T")

_decode_event = msgspec.msgpack.Decoder(Event).decode


class Question(Struct):
    """One event asked about. seq: -1 where it is not stored. head: the event as msgpack, None for a text or a vector.
    vectors: float32 [dim] by space, as far as there are any. features: float32 [105] of an event that was sent."""

    options: Options
    vectors: dict[str, F32]
    seq: int = -1
    head: bytes | None = None
    features: F32 | None = None
    decoded: Event | None = None
    unknown: bool = False  # asked what behaves like it, and too little is known of it

    @property
    def event(self) -> Event | None:
        if self.decoded is None and self.head is not None:
            self.decoded = _decode_event(self.head)
        return self.decoded


class Group(Struct, frozen=True):
    """A hit and the near-duplicates it stands for. seqs: its own first."""

    seq: int
    distance: float
    seqs: list[int]

    @property
    def size(self) -> int:
        return len(self.seqs)


def spaces_of(options: Options) -> tuple[str, ...]:
    """Raises UnknownSpaceError."""
    if options.space == FUSED:
        return SPACES
    if options.space not in SPACES:
        raise UnknownSpaceError(options.space, (*SPACES, FUSED))
    return (options.space,)


def stored_question(name: str, options: Options, snapshot: Snapshot, view: View, models: ModelSet) -> Question:
    """Raises NotFoundError, CorruptionError, UnknownSpaceError."""
    spaces = spaces_of(options)
    seq = view.find(name)
    if seq is None or not snapshot.has(seq):
        raise NotFoundError(f"no event {name!r} in generation {snapshot.generation}; `flowkin recent` lists some")
    head = view.stored(seq)
    snapshot.check(seq, spaces)
    asked = {s: models.embedders[s].asked(snapshot.vector(s, seq)[None, :])[0] for s in spaces}
    return Question(options, asked, seq, head)


class Plan(NamedTuple):
    """How one question is searched. allowed: None = all rows."""

    allowed: Mask | None
    matched: int
    fetch: int
    weights: dict[str, float]


class Sought(Struct):
    """A question and what was found: the nearest groups among `fetch` candidates of each space, and the percentile of
    each group's distance."""

    question: Question
    plan: Plan
    found: dict[str, Candidates]
    fetch: int
    groups: list[Group]
    percentiles: list[float] = []


class Answering:
    """Answers the questions of one micro-batch from one snapshot and one read transaction."""

    def __init__(self, snapshot: Snapshot, models: ModelSet, view: View) -> None:
        self.snapshot, self.models, self.view = snapshot, models, view

    def answer(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """One answer each, in order; an exception where that question cannot be answered."""
        answers = self._each(questions, self._finish)
        self._tell_connections(questions, answers)
        return answers

    def _tell_connections(self, questions: Sequence[Question], answers: Sequence[Answer | Exception]) -> None:
        """What else is stored of the connections of all answers that give reasons, or have none to give."""
        start = time.perf_counter()
        told = [
            (question, answer) for question, answer in zip(questions, answers, strict=True)
            if not isinstance(answer, Exception) and (question.options.explain or question.unknown)
        ]  # fmt: skip
        if not told:
            return
        bare = [(Asked(q.event, q.seq), answer) for q, answer in told if q.event is not None and q.event.kind != "flow"]
        for (_, answer), found in zip(bare, flows([one for one, _ in bare], self.snapshot, self.view), strict=True):
            answer.query_flows = found
        asked: list[Asked] = []
        for question, answer in told:
            if question.options.explain:
                asked += [Asked(question.event, question.seq)] if question.event is not None else []
                asked += [Asked(_event_of(hit), hit.seq) for hit in answer.hits]
        said = iter(alerts(asked, self.snapshot, self.view))
        for question, answer in told:
            if question.options.explain:
                answer.query_alerts = next(said) if question.event is not None else []
                answer.alerts = list(islice(said, len(answer.hits)))
            answer.took_us += int((time.perf_counter() - start) * 1e6)

    def _each(self, questions: Sequence[Question], finish: Callable[[Sought], A]) -> list[A | Exception]:
        """Plan all, search together, finish each. One bad question does not cost the others theirs."""
        start = time.perf_counter()
        plans = [_tried(self._plan, question) for question in questions]
        found = self._search_together(questions, plans)
        sought: list[Sought | Exception] = []
        for i, (question, plan) in enumerate(zip(questions, plans, strict=True)):
            if isinstance(plan, Exception):
                sought.append(plan)
            else:
                sought.append(_tried(self._sought, question, plan, {s: found[i, s] for s in plan.weights}))
        self._set_percentiles([one for one in sought if not isinstance(one, Exception)])
        out: list[A | Exception] = []
        for one in sought:
            answer = one if isinstance(one, Exception) else _tried(finish, one)
            if not isinstance(answer, Exception):
                answer.took_us = int((time.perf_counter() - start) * 1e6)
            out.append(answer)
        return out

    def _plan(self, question: Question) -> Plan:
        options, snapshot = question.options, self.snapshot
        spaces = spaces_of(options)
        missing = [s for s in spaces if s not in question.vectors]
        if missing:
            raise BadRequestError(f"this has no {missing[0]} vector; search it in {', '.join(question.vectors)}")
        weights = dict.fromkeys(spaces, 1.0)
        if options.space == FUSED:
            unknown = [s for s in options.weights if s not in SPACES]
            if unknown:
                raise UnknownSpaceError(unknown[0], SPACES)
            weights = {s: options.weights.get(s, 0.0 if options.weights else self.models.fusion[s]) for s in SPACES}
            total = sum(weights.values())
            if not 0 < total < math.inf:  # NaN is neither
                raise BadRequestError(f"the weights of the spaces add up to {total}; give at least one above 0")
            weights = {s: w / total for s, w in weights.items() if w > 0}
            if self._coverage(question) < KNOWN_MIN:
                weights = {"sbert": 1.0}
        wanted = [] if options.filter is None else filters.tests(options.filter, snapshot)
        if options.before or options.other_episodes:
            if question.event is None:
                raise BadRequestError("before and other_episodes compare with an event; this is a text or a vector")
            if options.before:
                wanted.append(filters.before(question.event))
            if options.other_episodes:
                wanted.append(self._other_episodes(question.event))
        question.unknown = self._too_little(question)
        if question.unknown:
            wanted.append(filters.nothing)
        said = filters.marks(options.filter)
        allowed = filters.mask(snapshot, wanted, said, self.view) if wanted or said else None
        if allowed is not None and snapshot.has(question.seq):
            allowed[question.seq - snapshot.first_seq] = False
        matched = int(np.count_nonzero(allowed)) if allowed is not None else snapshot.events - (question.seq >= 0)
        fetch = options.top_k * (4 if options.collapse else 1) + (question.seq >= 0)
        return Plan(allowed, matched, max(fetch, FUSED_FETCH_MIN if options.space == FUSED else 0), weights)

    def _too_little(self, question: Question) -> bool:
        """Is it asked what behaves like an event of unknown behaviour? Nothing does, and nothing is unlike it."""
        known = question.head is None or self._coverage(question) >= KNOWN_MIN
        return not known and question.options.space in BEHAVIOUR

    def _other_episodes(self, event: Event) -> filters.Test:
        return filters.other_episodes(event, self.snapshot)

    def _search_together(
        self, questions: Sequence[Question], plans: Sequence[Plan | Exception]
    ) -> dict[tuple[int, str], Candidates]:
        """Questions without a filter share one search for each space and number of candidates."""
        groups: dict[tuple[str, int, int], list[int]] = {}
        for i, plan in enumerate(plans):
            if isinstance(plan, Plan):
                for space in plan.weights:
                    groups.setdefault((space, plan.fetch, -1 if plan.allowed is None else i), []).append(i)
        out: dict[tuple[int, str], Candidates] = {}
        for (space, fetch, _), members in groups.items():
            queries = np.stack([questions[i].vectors[space] for i in members])
            plan = plans[members[0]]
            assert isinstance(plan, Plan)
            for i, candidates in zip(members, self.snapshot.search(space, queries, fetch, plan.allowed), strict=True):
                out[i, space] = candidates
        return out

    # ---- from candidates to hits ----------------------------------------------------------------------------------

    def _finish(self, sought: Sought) -> Answer:
        question, plan, found = sought.question, sought.plan, sought.found
        options = question.options
        hits, families = self._hits(sought)
        own = self._own_family(question)
        same = families.count(own) if own else 0
        answer = Answer(
            space=options.space, model=self.models.version, metric="percentile" if options.space == FUSED else "l2",
            exact=all(c.exact for c in found.values()) and (options.space != FUSED or sought.fetch >= plan.matched),
            scanned=sum(c.scanned for c in found.values()), matched=plan.matched, took_us=0,
            query=None if question.head is None else Raw(question.head), hits=hits,
            same_family=same / len(hits) if own and hits else None,
            no_close_precedent=self._no_close_precedent(sought),
            weights=plan.weights if options.space == FUSED else {}, plan=self._describe(sought),
        )  # fmt: skip
        if options.explain:
            answer.explain, answer.counter_example = self._explain(question, plan, hits, own or _most(families))
        return answer

    def _sought(self, question: Question, plan: Plan, found: dict[str, Candidates]) -> Sought:
        """The nearest groups, among as many candidates as that takes."""
        fetch = plan.fetch
        while True:
            ranked = self._rank(question, plan, found)
            groups = self._collapse(ranked, plan, question.options)
            everything = fetch >= min(COLLAPSE_FETCH_MAX, plan.matched + 1)
            if len(groups) >= min(question.options.top_k, plan.matched) or everything:
                return Sought(question, plan, found, fetch, groups)
            fetch = min(4 * fetch, COLLAPSE_FETCH_MAX)  # a flood filled the candidates; look further
            found = {
                s: self.snapshot.search(s, question.vectors[s][None, :], fetch, plan.allowed)[0] for s in plan.weights
            }

    def _set_percentiles(self, sought: Sequence[Sought]) -> None:
        """Of the groups of all questions of a space at once."""
        spaces: dict[str, list[Sought]] = {}
        for one in sought:
            if one.question.options.space == FUSED:  # the distance is one
                one.percentiles = [group.distance for group in one.groups]
            else:
                spaces.setdefault(one.question.options.space, []).append(one)
        for space, members in spaces.items():
            distances = np.array([group.distance for one in members for group in one.groups])
            percentiles = iter(self.models.embedders[space].calibration.percentile(distances).tolist())
            for one in members:
                one.percentiles = list(islice(percentiles, len(one.groups)))

    def _rank(self, question: Question, plan: Plan, found: dict[str, Candidates]) -> Candidates:
        """Candidates of all spaces in one order, without the event itself."""
        if len(found) == 1 and question.options.space != FUSED:
            (candidates,) = found.values()
            if question.seq < 0:
                return candidates
            keep = candidates.seqs != question.seq
            return candidates._replace(distances=candidates.distances[keep], seqs=candidates.seqs[keep])
        seqs = np.unique(np.concatenate([c.seqs for c in found.values()]))
        seqs = seqs[seqs != question.seq]
        fused, known = np.zeros(len(seqs)), self.snapshot.column("coverage", seqs) >= KNOWN_MIN
        for space, weight in plan.weights.items():
            distances = self.snapshot.distances(space, question.vectors[space], seqs)
            fused += weight * self._fused_percentiles(space, distances, known)
        order = np.lexsort((-seqs, fused))
        return Candidates(fused[order], seqs[order], False, 0)

    def _fused_percentiles(
        self, space: str, distances: NDArray[np.float64], known: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """What a space adds to a fused distance; the most where the hit's behaviour is not known."""
        percentiles = self.models.embedders[space].calibration.percentile(distances)
        return percentiles if space == "sbert" else np.where(known, percentiles, 100.0)

    def _collapse(self, ranked: Candidates, plan: Plan, options: Options) -> list[Group]:
        """Near-duplicates (same family, vectors nearly equal in every space that counts) become one group."""
        seqs, distances = ranked.seqs, ranked.distances.tolist()
        if not options.collapse or not distances:
            return [Group(seq, distances[i], [seq]) for i, seq in enumerate(seqs.tolist())]
        kinds = self._kinds(seqs)
        near = {space: within(self.models.embedders[space].calibration) for space in plan.weights}
        if options.space == FUSED or len(seqs) * DIMS[options.space] <= PLACE_NUMBERS:
            vectors = [(self.snapshot.vectors(space, seqs), near[space]) for space in plan.weights]
            found = places(vectors, options.top_k, kinds)
        else:
            (space,) = plan.weights
            found = self._places(space, ranked, near[space], options.top_k, kinds)
        return [Group(int(seqs[i[0]]), distances[i[0]], seqs[i].tolist()) for i in found]

    def _places(
        self, space: str, ranked: Candidates, near: float, most: int, kinds: NDArray[np.int64] | None
    ) -> list[NDArray[np.int64]]:
        """As engine/embed/vote.py's `places`, which compares all rows with each place. Rows so near to each other
        are about as near to the query, so only those are looked at."""
        out: list[NDArray[np.int64]] = []
        left, taken = np.arange(len(ranked.seqs)), np.zeros(len(ranked.seqs), np.bool_)
        rows, fetched = np.empty((len(left), DIMS[space]), np.float32), 0  # as far as they were looked at
        while len(left) and len(out) < most:
            first = left[0]
            farthest = ranked.distances[first] * (1 + 1e-6) + near * (1 + 1e-3)  # more than rounding comes to
            ahead = left[: np.searchsorted(ranked.distances[left], farthest, "right")]
            if kinds is not None:
                ahead = ahead[kinds[ahead] == kinds[first]]
            while len(ahead) > 1 and fetched <= ahead[-1]:
                some = slice(fetched, fetched + PLACE_ROWS)
                rows[some] = self.snapshot.vectors(space, ranked.seqs[some])
                fetched += PLACE_ROWS
            like = [ahead[:1]]
            for at in range(1, len(ahead), PLACE_ROWS):
                others = ahead[at : at + PLACE_ROWS]
                difference = rows[others] - rows[first]
                like.append(others[np.einsum("ij,ij->i", difference, difference) <= near * near])
            out.append(np.concatenate(like))
            taken[out[-1]] = True
            left = left[~taken[left]]
        return out

    def _kinds(self, seqs: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Events of different kinds are never one hit: their families."""
        return self.snapshot.column("family", seqs)

    def _hits(self, sought: Sought) -> tuple[list[Hit], list[int]]:
        """The hits, and the number of each one's family. What is damaged is left out."""
        hits: list[Hit] = []
        families: list[int] = []
        top_k, spaces, view, snapshot = sought.question.options.top_k, sought.plan.weights, self.view, self.snapshot
        for group, percentile in zip(sought.groups, sought.percentiles, strict=True):
            if len(hits) == top_k:
                break
            seq = group.seq
            try:
                family = snapshot.checked_family(seq, spaces)
                head = view.stored(seq)
                note = view.annotation_bytes(seq)
            except CorruptionError as e:
                log.error("left out of an answer: %s", e)
                continue
            annotation = None if note is None else Raw(note)
            hits.append(Hit(seq, group.distance, percentile, len(group.seqs), Raw(head), annotation))
            families.append(family)
        return hits, families

    def _percentile(self, space: str, distance: float) -> float:
        return float(self.models.embedders[space].calibration.percentile(np.array([distance]))[0])

    def _coverage(self, question: Question) -> int:
        """How many of the features the query has: as it was sent, where it was."""
        if question.features is not None:
            return int(np.isfinite(question.features).sum())
        return int(self.snapshot.cell("coverage", question.seq)) if question.seq >= 0 else 0

    def _own_family(self, question: Question) -> int:
        """Number of the query's family; 0 where it has none, -1 for a word that no stored event bears."""
        if question.seq >= 0:
            return int(self.snapshot.cell("family", question.seq))
        if question.event is None:
            return 0
        names = self.snapshot.names.families
        return names.index(question.event.family) if question.event.family in names else -1

    def _no_close_precedent(self, sought: Sought) -> bool:
        """Is the nearest event beyond the calibrated bound in every space that counts?"""
        if sought.question.unknown:
            return False
        for space, candidates in sought.found.items():
            first = int(len(candidates.seqs) > 0 and candidates.seqs.item(0) == sought.question.seq)
            if first < len(candidates.seqs):
                bound = self.models.embedders[space].calibration.precedent_bound
                if candidates.distances.item(first) <= bound:
                    return False
        return True

    def _describe(self, sought: Sought) -> str:
        """One line for --explain-plan."""
        plan, snapshot = sought.plan, self.snapshot
        if sought.question.unknown:
            how = f"fewer than {KNOWN_MIN} features are known of this event, too few to compare its behaviour"
        elif plan.allowed is None:
            how = "no filter"
        else:
            share = plan.matched / max(1, snapshot.events)
            how = f"filter matches {plan.matched} of {snapshot.events} ({share:.4%})"
        parts = []
        for space, candidates in sought.found.items():
            way = f"exact, {snapshot.ways[space]}" if candidates.exact else snapshot.ways[space]
            asked, part = sought.question.vectors[space], ""
            if math.isnan(asked[-1]):
                part = f"asked in {int(np.isfinite(asked).sum())} of {DIMS[space]} dimensions, "
            parts.append(f"{space}: {part}{way}, {sought.fetch} candidates, {candidates.scanned} scanned")
        return f"{how}; " + "; ".join(parts)

    # ---- why ------------------------------------------------------------------------------------------------------

    def explain_pair(self, question: Question, space: str, seq: int) -> Explanation:
        """Why stored event `seq` is as far from the question as it is. Raises NotFoundError, CorruptionError."""
        question_features = self._features(question)
        return self._explain_hit(question, question_features, seq, space, None)

    def _features(self, question: Question) -> F32:
        if question.features is not None:
            return question.features
        record = self.view.record(question.seq)
        assert record is not None
        features: F32 = unpack([record.features])[0]
        return features

    def _explain(
        self, question: Question, plan: Plan, hits: Sequence[Hit], family: int
    ) -> tuple[list[Explanation], CounterExample | None]:
        if question.event is None:
            space = question.options.space
            if space != "sbert":
                return [], None
        features = self._features(question) if question.event is not None else np.full(105, np.nan, np.float32)
        explanations = [self._explain_hit(question, features, h.seq, question.options.space, plan) for h in hits]
        return explanations, self._counter_example(question, features, plan, family) if question.event else None

    def _explain_hit(self, question: Question, features: F32, seq: int, space: str, plan: Plan | None) -> Explanation:
        record = self.view.record(seq)
        if record is None:
            raise NotFoundError(f"no event with seq {seq}")
        event, hit_features = _decode_event(record.head), unpack([record.features])[0]
        spaces = list(plan.weights) if plan and space == FUSED else [space]
        self.snapshot.check(seq, spaces)
        known = np.array([event.coverage >= KNOWN_MIN])
        parts = []
        for part in spaces:
            distance = float(self.snapshot.distances(part, question.vectors[part], np.array([seq]))[0])
            contributions: list[Contribution] = []
            unusual: dict[str, float] = {}
            words: list[tuple[str, float]] = []
            if question.event is not None:
                embedder = self.models.embedders[part]
                contributions = embedder.explain(question.event, features, event, hit_features)
                if isinstance(embedder, LinearEmbedder):
                    unusual = embedder.unusual(features)
                if isinstance(embedder, TextEmbedder):
                    words = embedder.words(question.event, features, event, hit_features)
            percentile = self._percentile(part, distance)
            if space == FUSED:
                percentile = float(self._fused_percentiles(part, np.array([distance]), known)[0])
            apart = _disagree(contributions, distance)
            parts.append(
                Explanation(
                    event_id=event.event_id, space=part, distance=distance, percentile=percentile,
                    contributions=contributions, agree=_agree(contributions, unusual, apart),
                    disagree=apart, words=words,
                )
            )  # fmt: skip
        if space != FUSED or plan is None:
            return parts[0]
        fused = sum(plan.weights[p.space] * p.percentile for p in parts)
        return Explanation(
            event_id=event.event_id, space=FUSED, distance=fused, percentile=fused, parts=parts,
            spaces={p.space: (p.distance, p.percentile, plan.weights[p.space]) for p in parts},
            agree=next((p.agree for p in parts if p.space == "attack"), []),
            disagree=next((p.disagree for p in parts if p.space == "attack"), []),
        )  # fmt: skip

    def _counter_example(self, question: Question, features: F32, plan: Plan, family: int) -> CounterExample | None:
        """The nearest event of another known family than `family`, the question's or, where it has none, that of most
        hits; none where they have none either (0). In the attack space where the answer is fused."""
        if not family:
            return None
        space = question.options.space
        if space == FUSED:
            space = "attack" if "attack" in plan.weights else next(iter(plan.weights))
        if space not in question.vectors:
            return None
        allowed = filters.mask(self.snapshot, [filters.other_family(family)])
        if plan.allowed is not None:
            allowed &= plan.allowed
        found = self.snapshot.search(space, question.vectors[space][None, :], 1, allowed)[0]
        if not len(found.seqs):
            return None
        seq = int(found.seqs[0])
        try:
            head = self.view.head(seq)
            why = self._explain_hit(question, features, seq, space, None)
        except CorruptionError as e:
            log.error("left out of an answer: %s", e)
            return None
        return None if head is None else CounterExample(seq, float(found.distances[0]), Raw(head), why.contributions)


def _event_of(hit: Hit) -> Event:
    return hit.event if isinstance(hit.event, Event) else _decode_event(hit.event)


def _tried(call: Callable[..., T], *args: Any) -> T | Exception:
    try:
        return call(*args)
    except Exception as e:
        return e


def _most(families: Sequence[int]) -> int:
    """The known family that most of them are, the first of equals; 0 where none is known."""
    known = [family for family in families if family]
    return max(known, key=known.count, default=0)


def _agree(contributions: Sequence[Contribution], unusual: dict[str, float], apart: Sequence[str]) -> list[str]:
    """Features known on both sides that hardly differ, the most unusual first: that both are TCP says little, that both
    have a value that few others have says much. apart: those that disagree."""
    near = [c for c in contributions if c.feature not in apart and agree(c.query, c.hit, c.z)]
    return _leading(sorted(near, key=lambda c: (-unusual.get(c.feature, 0.0), c.feature)))


def _disagree(contributions: Sequence[Contribution], distance: float) -> list[str]:
    least = LEADING_SHARE_MIN * distance
    return _leading([c for c in contributions if c.contribution > least and c.query != c.hit])


def _leading(contributions: Sequence[Contribution]) -> list[str]:
    """The first few names of the flow itself, then those of its context, which would crowd them out."""
    names = [c.feature for c in contributions]
    own, context = [n for n in names if n not in CONTEXT], [n for n in names if n in CONTEXT]
    own = own[: LEADING - min(len(context), LEADING_CONTEXT)]
    return own + context[: LEADING - len(own)]
