"""How a reader answers what comes together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.reader import BATCH_EXPLAINED_MAX, BATCH_HITS_MAX, BATCH_QUESTIONS_MAX, Reader
from engine.search.query import Question
from ipc.messages import Options


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (Options(top_k=10), BATCH_QUESTIONS_MAX),
        (Options(top_k=1_000), BATCH_HITS_MAX // 1_000),
        (Options(explain=True), BATCH_EXPLAINED_MAX),
    ],
    ids=["few hits", "many", "explained"],
)
def test_a_thousand_questions_of_one_message_are_answered_in_order_and_not_all_at_once(
    options: Options, most: int
) -> None:
    """Each holds a mask over all events until it is answered, and between two slices the reader says that it lives:
    one that answered 64 questions for 1,000 hits each at once was killed as hung."""
    happened: list[int | str] = []

    def answer(questions: list[Question]) -> list[int]:
        happened.append(len(questions))
        return [-question.seq for question in questions]

    reader = SimpleNamespace(worker=SimpleNamespace(stamp=lambda: happened.append("alive")))
    questions = [Question(options, {}, seq) for seq in range(150)]
    answers = list(Reader._in_slices(cast(Any, reader), cast(Any, answer), questions))
    assert answers == [-n for n in range(150)]
    slices = [most] * (150 // most) + [150 % most] * (150 % most > 0)
    assert happened == [word for size in slices for word in (size, "alive")]


def test_questions_without_reasons_are_not_cut_up_by_one_with_them() -> None:
    sizes: list[int] = []

    def answer(questions: list[Question]) -> list[int]:
        sizes.append(len(questions))
        return [0] * len(questions)

    reader = SimpleNamespace(worker=SimpleNamespace(stamp=lambda: None))
    one = [Question(Options(explain=i == 5), {}, i) for i in range(60)]
    assert len(list(Reader._in_slices(cast(Any, reader), cast(Any, answer), one))) == 60
    assert sizes == [60]
