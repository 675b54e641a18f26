"""A model that is loaded again while the old one is still there, as in a notebook's ``Out``: nothing of it grows but what it must."""

import os
import subprocess
import sys
import threading

import pytest
from api_tools import forced

import numainfer as ni


def scratch(model):
    return sum(node.scratch for node in model.placement.nodes)


LOADS = """
import os, sys, time
import numainfer as ni

def settles_at(wanted):  # those that were told to end take a moment
    end = time.monotonic() + 10
    while n_threads() != wanted and time.monotonic() < end:
        time.sleep(0.01)
    assert n_threads() == wanted, (n_threads(), wanted)

def n_threads():
    return len(os.listdir("/proc/self/task"))

def scratch(model):
    return sum(node.scratch for node in model.placement.nodes)

def load():
    return ni.load(sys.argv[1], placement="replicate", n_ctx=128)

load().close()
nodes = len(ni.topology().nodes)
time.sleep(0.5)  # the workers are gone; NumPy's threads stay
bare = n_threads()
out = [load()]
alone = n_threads()
wanted = out[0].generate([5, 6, 7], max_tokens=6)
out[0].generate([[5], [6]], max_tokens=2, mode="throughput")  # lanes of single nodes have threads too
needs = scratch(out[0])
settles_at(alone) if nodes == 1 else None
assert n_threads() > alone or nodes == 1
for _ in range(4):
    out.append(load())
    assert out[-1].runtime.engine.replicas is out[0].runtime.engine.replicas
settles_at(alone)
assert [scratch(model) for model in out[:-1]] == [0] * 4 and scratch(out[-1]) > 0
again = [model.generate([5, 6, 7], max_tokens=6) for model in out]  # all can be used as before
assert [done.token_ids for done in again] == [wanted.token_ids] * 5
assert out[0].generate([[5], [6]], max_tokens=2, mode="throughput")[1].token_ids
assert scratch(out[0]) == needs
for model in out:
    model.close()
settles_at(bare)
"""


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_old_models_keep_no_threads(tiny_path, nodes):
    """In a process of its own, for threads are counted."""
    found = subprocess.run([sys.executable, "-c", LOADS, str(tiny_path)], env=os.environ | {"NUMAINFER_FAKE_NODES": nodes},
                           capture_output=True, text=True, timeout=120)  # fmt: skip
    assert found.returncode == 0, found.stderr


def test_a_session_goes_on_where_it_stood(tiny_path):
    with ni.load(tiny_path, n_ctx=128) as old, old.session() as session:
        wanted = old.generate([5, 6, 7, 8, 9], max_tokens=4).token_ids
        session.generate([5, 6, 7], max_tokens=1)
        with ni.load(tiny_path, n_ctx=128):
            done = session.generate([5, 6, 7, 8, 9], max_tokens=4)
    assert done.token_ids == wanted and done.usage.cached_tokens == 3


def test_a_model_in_use_is_left_alone(tiny_path):
    with ni.load(tiny_path, n_ctx=128) as old:
        entered, go_on = threading.Event(), threading.Event()

        def wait():
            with old.runtime.turn():
                entered.set()
                go_on.wait(10)

        thread = threading.Thread(target=wait)
        thread.start()
        entered.wait(10)
        team = old.runtime.engine.lane.team
        try:
            with ni.load(tiny_path, n_ctx=128):  # waits for nobody
                assert old.runtime.engine.lane.team is team and len(team)
        finally:
            go_on.set()
            thread.join()


def test_a_list_goes_on_while_its_model_is_loaded_again(tiny_path):
    """Between two steps the threads may end; the next one makes new ones, with the same bits."""
    with ni.load(tiny_path, n_ctx=256) as old:
        options = {"max_tokens": 150, "ignore_eos": True}
        wanted = old.generate([[5], [6], [7]], **options)
        found = []
        thread = threading.Thread(target=lambda: found.extend(old.generate([[5], [6], [7]], **options)))
        thread.start()
        while thread.is_alive():
            ni.load(tiny_path, n_ctx=256).close()
        thread.join()
    assert [done.token_ids for done in found] == [done.token_ids for done in wanted]


def test_other_weights_do_not_rest(tiny_pair):
    with ni.load(tiny_pair["llama"]) as old, ni.load(tiny_pair["gemma3"]):
        assert scratch(old) > 0


def test_inside_its_own_step_a_model_is_loaded_again(tiny_path):
    """A logits processor of a list runs between steps; one of a stream in the caller's thread."""
    with ni.load(tiny_path) as old:
        def load(token_ids, logits):
            ni.load(tiny_path).close()
            return process(token_ids, logits)

        own = forced(old, "ab")
        process = own["logits_processor"]
        assert old.generate("x", **own | {"logits_processor": load}).text == "ab"
