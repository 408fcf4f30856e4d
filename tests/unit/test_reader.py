"""How a reader answers what comes together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from engine.reader import BATCH_QUESTIONS_MAX, Reader


def test_a_thousand_questions_of_one_message_are_answered_in_order_and_not_all_at_once() -> None:
    """Each holds a mask over all events until it is answered, and between two slices the reader says that it lives."""
    happened: list[int | str] = []

    def answer(questions: list[int]) -> list[int]:
        happened.append(len(questions))
        return [-question for question in questions]

    reader = SimpleNamespace(worker=SimpleNamespace(stamp=lambda: happened.append("alive")))
    answers = list(Reader._in_slices(cast(Any, reader), cast(Any, answer), cast(Any, list(range(150)))))
    assert answers == [-n for n in range(150)]
    most = BATCH_QUESTIONS_MAX
    assert happened == [most, "alive", most, "alive", 150 - 2 * most, "alive"]
