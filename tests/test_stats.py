"""What a manager counts."""

from __future__ import annotations

import threading

import pytest

from wsthread.stats import Counters, Counts, Totals

NOTHING = Counts(0, 0, 0, {}, {}, Totals())


@pytest.mark.parametrize(("several", "expected"), [
    ([], Totals()),
    ([Totals(1, 2, 3, 4, 5)], Totals(1, 2, 3, 4, 5)),
    ([Totals(1, 2, 3, 4, 5), Totals(), Totals(10, 20, 30, 40, 50)], Totals(11, 22, 33, 44, 55)),
])
def test_sum(several: list[Totals], expected: Totals) -> None:
    assert Totals.sum(several) == Totals.sum(iter(several)) == expected


def test_counts() -> None:
    counters = Counters()
    assert counters.snapshot() == NOTHING
    for _ in range(3):
        counters.accept()
    counters.slow()
    counters.greedy()
    counters.greedy()
    counters.refuse("403 Forbidden")
    counters.refuse("403 Forbidden")
    counters.refuse("503 Service Unavailable")
    counters.finish(4000, Totals(1, 1, 1, 1, 1))
    counters.finish(1000, Totals(bytes_sent=7))
    counters.finish(4000, Totals(messages_received=2))
    counts = counters.snapshot()
    assert counts == Counts(
        accepted=3, slow=1, greedy=2, refused={"403 Forbidden": 2, "503 Service Unavailable": 1},
        closed={"1000": 1, "4000": 2}, finished=Totals(3, 1, 1, 1, 8))
    assert list(counts.closed) == ["1000", "4000"]


def test_a_snapshot_stays_as_it_is() -> None:
    counters = Counters()
    before = counters.snapshot()
    counters.accept()
    counters.refuse("403 Forbidden")
    counters.finish(1000, Totals(bytes_sent=7))
    assert before == NOTHING


def test_no_count_is_lost() -> None:
    counters = Counters()

    def count() -> None:
        for _ in range(1000):
            counters.accept()
            counters.refuse("403 Forbidden")
            counters.finish(1000, Totals(messages_sent=1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = Counts(4000, 0, 0, {"403 Forbidden": 4000}, {"1000": 4000}, Totals(messages_sent=4000))
    assert counters.snapshot() == expected
