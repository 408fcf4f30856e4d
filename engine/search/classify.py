"""What is this event, going by its precedents: a vote of the nearest events whose family is known.

Always true
  - What the detector called the event asked about, and how it was labelled, is never looked at.
  - An analyst's label is the family of its event from the next answer on, and speaks for the event's near-duplicates:
    in a place that holds labelled events, those alone vote. It is found however large the flood that it lies in.
  - Events of no known family do not vote, nor does an event whose row disagrees with its checksums.
  - Near-duplicates of whatever families are one place with one vote, divided as its events are. So a flood of one event
    counts as one precedent, and identical events that were called two things leave doubt.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from engine.embed.base import BEHAVIOUR, SPACES, Calibration
from engine.embed.vote import VOTERS, vote, within
from engine.errors import BadRequestError, CorruptionError
from engine.families import UNKNOWN, labelled
from engine.limits import KNOWN_MIN
from engine.search import filters
from engine.search.query import Answering, Group, Plan, Question, Sought
from engine.search.snapshot import Candidates
from engine.store.index import Mask
from ipc.event import Event, Hit
from ipc.messages import Judgement, Options, Precedent, Voting

log = logging.getLogger(__name__)

LABEL = b"label\0"  # of the catalog's marks: label NUL word NUL seq
SPEAKING_MAX = 256  # events of one place, the nearest; a larger flood is divided as these are


class Place(NamedTuple):
    """A place and who speaks for it: `speakers` by family, the nearest first; labelled: they are analysts' labels."""

    distance: float
    size: int
    speakers: dict[str, list[int]]
    labelled: bool

    @property
    def parts(self) -> dict[str, float]:
        total = sum(map(len, self.speakers.values()))
        return {family: len(seqs) / total for family, seqs in self.speakers.items()}


def options_of(voting: Voting) -> Options:
    """How the precedents are searched. Raises BadRequestError."""
    if voting.space not in SPACES:
        raise BadRequestError(f"a vote is held in one space: {', '.join(SPACES)}, not {voting.space!r}")
    return Options(
        space=voting.space, top_k=voting.k, filter=voting.filter, before=voting.before,
        other_episodes=voting.other_episodes, collapse=voting.collapse, min_generation=voting.min_generation,
        deadline_ms=voting.deadline_ms,
    )  # fmt: skip


def compared(options: Options, known: int) -> Options:
    """How an event is classified of which so many features are known: too few tell no behaviour, then its text."""
    if options.space in BEHAVIOUR and known < KNOWN_MIN:
        return msgspec.structs.replace(options, space="sbert")
    return options


class Classifying(Answering):
    """Classifies the events of one micro-batch from one snapshot and one read transaction."""

    def judge(self, questions: list[Question]) -> list[Judgement | Exception]:
        """One judgement each, in order; an exception where that question cannot be answered."""
        return self._each(questions, self._judge)

    # ---- who may vote ---------------------------------------------------------------------------------------------

    @cached_property
    def labels(self) -> dict[int, str]:
        """The family of each labelled event, by seq; Unknown where the label says that nobody knows."""
        snapshot = self.snapshot
        out: dict[int, str] = {}
        for key, _ in self.view.scan("marks", prefix=LABEL):
            seq = int.from_bytes(key[-8:], "big")
            if snapshot.has(seq):
                out[seq] = labelled(key[len(LABEL) : -9].decode(), self._said(seq))
        return out

    @cached_property
    def _labelled(self) -> NDArray[np.int64]:
        return np.array(list(self.labels), np.int64)

    @cached_property
    def voters(self) -> Mask:
        out = filters.mask(self.snapshot, [lambda c: c["family"] != 0])
        for seq, family in self.labels.items():
            out[seq - self.snapshot.first_seq] = family != UNKNOWN
        return out

    def _said(self, seq: int) -> str:
        """The detector's family."""
        file, row = self.snapshot.at(seq)
        return self.snapshot.names.families[int(file.columns["family"][row])]

    def _plan(self, question: Question) -> Plan:
        plan = super()._plan(question)
        allowed = self.voters.copy() if plan.allowed is None else plan.allowed & self.voters
        if question.seq >= 0:
            allowed[question.seq - self.snapshot.first_seq] = False
        return plan._replace(allowed=allowed, matched=int(np.count_nonzero(allowed)))

    def _other_episodes(self, event: Event) -> filters.Test:
        return filters.other_episodes(event, self.snapshot, any_family=True)

    # ---- the places -----------------------------------------------------------------------------------------------

    def _rank(self, question: Question, plan: Plan, found: dict[str, Candidates]) -> Candidates:
        """With the labelled events as near as those found: a flood must not hide what was said of one of it."""
        ranked = super()._rank(question, plan, found)
        assert plan.allowed is not None
        first = self.snapshot.first_seq
        seqs = self._labelled[plan.allowed[self._labelled - first]]
        if not len(seqs) or not len(ranked.seqs):
            return ranked
        (space,) = plan.weights
        distances = self.snapshot.distances(space, question.vectors[space], seqs)
        near = distances <= ranked.distances[-1] + within(self._calibration(space))
        near &= ~np.isin(seqs, ranked.seqs)
        distances = np.concatenate([ranked.distances, distances[near]])
        seqs = np.concatenate([ranked.seqs, seqs[near]])
        order = np.lexsort((-seqs, distances))
        return ranked._replace(distances=distances[order], seqs=seqs[order])

    def _kinds(self, seqs: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """A place holds events of all families."""
        return None

    def _place(self, group: Group, space: str) -> Place | None:
        """None where nothing of it can be trusted."""
        said = [seq for seq in group.seqs if seq in self.labels]
        speakers: dict[str, list[int]] = {}
        for seq in said or group.seqs[:SPEAKING_MAX]:
            try:
                self.snapshot.check(seq, [space])
            except CorruptionError as e:
                log.error("left out of a vote: %s", e)
                continue
            speakers.setdefault(self.labels[seq] if said else self._said(seq), []).append(seq)
        return Place(group.distance, group.size, speakers, bool(said)) if speakers else None

    # ---- the judgement --------------------------------------------------------------------------------------------

    def _calibration(self, space: str) -> Calibration:
        return self.models.embedders[space].calibration

    def _judge(self, sought: Sought) -> Judgement:
        question, plan, found = sought.question, sought.plan, sought.found
        (space,), options = plan.weights, question.options
        calibration = self._calibration(space)
        held = [place for group in sought.groups[: options.top_k] if (place := self._place(group, space)) is not None]
        distances = [place.distance for place in held]
        ballot = vote(distances, [place.parts for place in held], within(calibration), calibration.precedent_bound)
        chances = probabilities(ballot.shares, calibration)
        (family, probability), *others = chances.items() if chances else [("", 0.0)]
        spread = [float(np.quantile(distances, at)) for at in (0.0, 0.5, 1.0)] if distances else []
        novelty = calibration.novelty(distances[0]) if distances else 1.0
        measured = len(calibration.certainty) > 0 and len(calibration.nearest_quantiles) > 0
        all_before = options.before and options.filter is None and not options.other_episodes  # may vote, and no others
        return Judgement(
            query=None if question.head is None else Raw(question.head), family=family, probability=probability,
            runners_up=others, novelty=novelty, no_close_precedent=novelty > 1.0 - calibration.false_alarm,
            false_alarm=calibration.false_alarm,
            calibrated=measured and all_before and options.top_k == VOTERS and options.collapse,
            precedents=self._precedents(question, space, held, ballot.weights),
            k=len(held), votes=ballot.shares, doubt=ballot.doubt, distances=spread,
            percentiles=[self._percentile(space, distance) for distance in spread], space=space,
            model=self.models.version, exact=all(c.exact for c in found.values()),
            scanned=sum(c.scanned for c in found.values()), matched=plan.matched, took_us=0,
        )  # fmt: skip

    def _precedents(self, question: Question, space: str, held: list[Place], weights: list[float]) -> list[Precedent]:
        """For each place the nearest event of each family that it votes for."""
        out: list[Precedent] = []
        for place, weight in zip(held, weights, strict=True):
            parts = place.parts
            for family, seqs in place.speakers.items():
                count = place.size if len(parts) == 1 else len(seqs)
                hit = self._hit(question, space, seqs[0], count)
                if hit is not None:
                    out.append(Precedent(hit, family, place.labelled, weight * parts[family]))
        return sorted(out, key=lambda p: (p.hit.distance, -p.hit.seq))

    def _hit(self, question: Question, space: str, seq: int, count: int) -> Hit | None:
        try:
            head, note = self.view.head(seq), self.view.annotation_bytes(seq)
        except CorruptionError as e:
            log.error("left out of an answer: %s", e)
            return None
        if head is None:
            return None
        distance = float(self.snapshot.distances(space, question.vectors[space], np.array([seq]))[0])
        annotation = None if note is None else Raw(note)
        return Hit(seq, distance, self._percentile(space, distance), count, Raw(head), annotation)


def probabilities(shares: dict[str, float], calibration: Calibration) -> dict[str, float]:
    """Of each family, in the order of its share. The leading one's was measured; the others have what theirs would
    give, and no more than what that leaves."""
    chances = {family: calibration.probability(share) for family, share in shares.items()}
    if not chances:
        return {}
    leading = next(iter(chances))
    rest = sum(chances.values()) - chances[leading]
    left = 1.0 - chances[leading]
    if rest > left:
        chances = {f: p if f == leading else p * left / rest for f, p in chances.items()}
    return chances
