from __future__ import annotations

import signal

from engine.run.restart import (
    CRASH_TRIES,
    DELAY_S_MAX,
    DELAY_S_MIN,
    LOOP_EXITS,
    START_TRIES,
    STEADY_S,
    GiveUp,
    Policy,
    Restart,
    Suspicion,
    describe,
)

KILLED = -signal.SIGKILL


def ready() -> Policy:
    policy = Policy("reader-0")
    policy.on_ready(0.0)
    return policy


def test_a_first_death_is_made_good_within_a_second() -> None:
    assert ready().on_exit(KILLED, 5.0) == Restart(DELAY_S_MIN)


def test_delays_double_up_to_the_most_and_a_loop_is_said_loudly_but_never_given_up() -> None:
    policy, decisions = ready(), []
    for turn in range(40):
        decisions.append(policy.on_exit(1, float(turn)))
        policy.on_ready(float(turn))
    assert all(isinstance(decision, Restart) for decision in decisions)
    delays = [decision.after_s for decision in decisions if isinstance(decision, Restart)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == DELAY_S_MAX
    assert [decision.looping for decision in decisions if isinstance(decision, Restart)] == [
        turn >= LOOP_EXITS - 1 for turn in range(40)
    ]


def test_it_is_restarted_for_ever() -> None:
    """Half a minute each, for a month."""
    policy = Policy("ingest")
    policy.on_ready(0.0)
    now_s = 0.0
    for _ in range(100_000):
        now_s += 0.5
        what = policy.on_exit(1, now_s)
        assert isinstance(what, Restart) and 0 < what.after_s <= DELAY_S_MAX
        now_s += what.after_s


def test_a_steady_time_clears_the_sheet() -> None:
    policy = ready()
    for turn in range(6):
        policy.on_exit(1, float(turn))
    policy.on_ready(10.0)
    assert policy.on_exit(1, 10.0 + STEADY_S) == Restart(DELAY_S_MIN)


def test_statuses_70_to_79_are_final_before_and_after_the_start() -> None:
    for policy in (Policy("ingest"), ready()):
        for status in (70, 79):
            decision = policy.on_exit(status, 1.0)
            assert isinstance(decision, GiveUp)
            assert decision.status == status
            assert f"exited with status {status}" in decision.reason
    assert isinstance(ready().on_exit(69, 1.0), Restart)
    assert isinstance(ready().on_exit(80, 1.0), Restart)


def test_a_worker_that_never_was_ready_gives_up_the_start() -> None:
    policy = Policy("ingest")
    for _ in range(START_TRIES - 1):
        assert isinstance(policy.on_exit(-signal.SIGABRT, 1.0), Restart)
    assert policy.on_exit(-signal.SIGABRT, 1.0) == GiveUp(
        "ingest was killed by SIGABRT, and was not ready in 3 tries", 1
    )


def test_an_exit_without_being_asked_is_a_death_whatever_its_status() -> None:
    assert isinstance(ready().on_exit(0, 1.0), Restart)


def test_two_crashes_within_ten_seconds_are_suspicious_and_count_once() -> None:
    suspicion = Suspicion()
    assert not suspicion.on_exit(-signal.SIGSEGV, 0.0)
    assert not suspicion.on_exit(KILLED, 1.0)
    assert not suspicion.on_exit(1, 1.0)
    assert suspicion.on_exit(-signal.SIGBUS, 10.0)
    assert not suspicion.on_exit(-signal.SIGABRT, 11.0)
    assert not suspicion.on_exit(-signal.SIGABRT, 22.0)


def test_statuses_in_words() -> None:
    assert describe(3) == "exited with status 3"
    assert describe(KILLED) == "was killed by SIGKILL"
    assert describe(-250) == "was killed by signal 250"


def test_a_reader_that_crashes_before_it_was_ever_ready_gets_time_for_its_files_to_be_looked_at() -> None:
    policy = Policy("reader-0")
    decisions = [policy.on_exit(-signal.SIGSEGV, float(turn)) for turn in range(CRASH_TRIES)]
    assert all(isinstance(decision, Restart) for decision in decisions[:-1])
    assert isinstance(decisions[-1], GiveUp)
    assert sum(decision.after_s for decision in decisions[:-1] if isinstance(decision, Restart)) > 60
    ingest = Policy("ingest")
    decisions = [ingest.on_exit(-signal.SIGSEGV, float(turn)) for turn in range(START_TRIES)]
    assert isinstance(decisions[-1], GiveUp)
