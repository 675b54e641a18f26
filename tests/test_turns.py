"""Who may run a step: in order of arrival, a lane for itself, all of them for the whole."""

import signal
import threading
import time

import pytest

from numainfer._core import Cancelled, Turns


def test_turns_come_in_order_of_arrival():
    turns, order = Turns(), []

    def work(name, lane):
        with turns.of(lane):
            order.append(name)

    threads = []
    with turns.of():
        for i, lane in enumerate(["a", None, "a", "b", None]):
            threads.append(threading.Thread(target=work, args=(i, lane)))
            threads[-1].start()
            deadline = time.monotonic() + 10
            while turns.n_waiting <= i and time.monotonic() < deadline:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order.index(0) < order.index(1) < min(order.index(2), order.index(3)) and order[-1] == 4
    assert turns.holders == [] and turns.n_waiting == 0


def test_lanes_exclude_themselves_and_the_whole():
    turns = Turns()

    def free(lane):
        got = []

        def work():
            try:
                with turns.of(lane, lambda: True):
                    got.append(True)
            except Cancelled:
                got.append(False)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        return got[0]

    with turns.of("a"):
        assert free("b") and not free("a") and not free(None)
        with pytest.raises(RuntimeError, match="midst of a step"), turns.of():
            pass
    with turns.of():
        assert not free("a") and not free(None)
    assert free("a") and free(None)


def test_a_signal_at_any_moment_leaves_no_turn_behind():
    """What SIGINT does, by a timer whose moments sweep over taking, holding and giving back a turn."""

    def raise_it(*_):
        raise KeyboardInterrupt

    turns, before, hits = Turns(), signal.signal(signal.SIGALRM, raise_it), 0
    try:
        for i in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + i % 100 * 1e-6)
                for _ in range(300):
                    with turns.of("a"):
                        pass
                    with turns.of():
                        pass
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
            assert turns.holders == [] and turns.n_waiting == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 1000


def test_a_signal_ends_waiting():
    turns, before = Turns(), signal.signal(signal.SIGALRM, signal.default_int_handler)
    taken, over = threading.Event(), threading.Event()

    def hold():
        with turns.of():
            taken.set()
            over.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert taken.wait(10)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt), turns.of("a"):
            pass
        assert turns.holders == [None] and turns.n_waiting == 0
    finally:
        signal.signal(signal.SIGALRM, before)
        over.set()
        thread.join(10)
    with turns.of("a"):
        assert turns.holders == ["a"]


def test_a_turn_that_nobody_gives_back_ends_with_its_object():
    """Ctrl-C may come behind ``__enter__``, before the ``with`` block has begun: then no ``__exit__`` is called."""
    turns = Turns()
    turn = turns.of("a")
    turn.__enter__()
    assert turns.holders == ["a"]
    del turn
    assert turns.holders == []
