"""Who may run a step: in order of arrival, a lane for itself, all of them for the whole."""

import threading
import time

import pytest

from numainfer._core import Cancelled
from numainfer.turns import Turns


def test_turns_come_in_order_of_arrival():
    turns, order = Turns(), []

    def work(name, lane):
        with turns.of(lane):
            order.append(name)

    threads = []
    with turns:
        for i, lane in enumerate(["a", None, "a", "b", None]):
            threads.append(threading.Thread(target=work, args=(i, lane)))
            threads[-1].start()
            deadline = time.monotonic() + 10
            while len(turns._tickets) <= i and time.monotonic() < deadline:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order.index(0) < order.index(1) < min(order.index(2), order.index(3)) and order[-1] == 4
    assert turns._holders == {} and turns._tickets == []


def test_lanes_exclude_themselves_and_the_whole():
    turns = Turns()

    def free(lane):
        got = []

        class Job:
            @property
            def cancelled(self):
                return True

        def work():
            try:
                with turns.of(lane, Job()):
                    got.append(True)
            except Cancelled:
                got.append(False)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        return got[0]

    with turns.of("a"):
        assert free("b") and not free("a") and not free(None)
        with pytest.raises(RuntimeError, match="midst of a step"), turns:
            pass
    with turns:
        assert not free("a") and not free(None)
    assert free("a") and free(None)
