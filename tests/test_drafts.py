"""A small model that drafts: the same bits, whoever else uses the two."""

import itertools
import threading

import numpy as np
import pytest
from scheduler_tools import facts, prompts_of, spy_steps
from test_speculation import FEW_LETTERS, SAMPLED, SAMPLING, counts, free_rows, shout  # noqa: F401
from tiny_models import tiny

import numainfer as ni
from numainfer._core import Cancelled
from numainfer.engine.layout import Layout
from numainfer.serving import drafts
from numainfer.serving.runtime import Runtime
from numainfer.serving.speculation import MOST, Costs


@pytest.fixture(scope="module")
def other_path(tmp_path_factory):
    """A llama of other weights and the same vocabulary."""
    return tiny(tmp_path_factory.mktemp("other"), "llama", "Q8_0", seed=9, width=64, layers=1)


@pytest.fixture
def other(other_path):
    with ni.load(other_path) as model:
        yield model


GREEDY = {"max_tokens": 40, "ignore_eos": True}


def test_one_that_says_the_same(load_tiny, free_rows, monkeypatch):  # noqa: F811
    model, twin = load_tiny(), load_tiny()
    (prompt,) = prompts_of((30,))
    wanted = model.generate(prompt, **GREEDY)
    steps = spy_steps(monkeypatch)
    done = model.generate(prompt, speculate=twin, **GREEDY)
    assert facts(done) == facts(wanted) and counts(done)[0] == counts(done)[1] > 30
    # The prompt; then eight drafts, the first of which reads the prompt, too, and a step over them; later as many as may be.
    rows = [rows for _, rows, *_ in steps]
    assert rows[:12] == [30, 31, *[1] * 7, 9, 2, 1] and max(rows[10:]) == MOST + 1


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_another_that_is_often_wrong(load_tiny, other, free_rows, monkeypatch, sampling):  # noqa: F811
    if {"regex", "choice"} & sampling.keys():
        pytest.importorskip("llguidance")
    model, sampling, total = load_tiny(2), {"max_tokens": 24, "ignore_eos": True} | sampling, np.zeros(2, int)
    prompts, step = prompts_of((5, 150, 20)), drafts.Draft._step

    def checked(draft, ids, rows):
        assert draft._fed[: len(draft._ids)] == draft._ids[: len(draft._fed)]  # what was wrong is forgotten
        return step(draft, ids, rows)

    monkeypatch.setattr(drafts.Draft, "_step", checked)
    wanted = [facts(model.generate(p, **sampling)) for p in prompts]
    for mode in ("latency", "throughput"):
        done = model.generate(prompts, speculate=other, mode=mode, **sampling)
        assert [facts(d) for d in done] == wanted
        total += np.sum([counts(d) for d in done], axis=0)
    stream = model.stream(prompts[0], speculate=other, **sampling)
    assert "".join(map(str, stream)) == wanted[0][0]
    assert total[1] < total[0]


def test_sessions(load_tiny, other, free_rows, caplog):  # noqa: F811
    model, twin = load_tiny(n_ctx=400), load_tiny(n_ctx=280)
    (prompt,) = prompts_of((200,))
    with model.session() as plain, model.session() as session:
        for draft in (twin, other, twin, "prompt", twin):
            done = plain.generate(prompt, **GREEDY)
            assert facts(session.generate(prompt, speculate=draft, **GREEDY)) == facts(done)
            assert (session.ids, session.n_past) == (plain.ids, plain.n_past)
            prompt = np.array([*plain.ids, 7, 8], np.int32)[: 400 - 40]
    assert "goes on without" not in caplog.text  # where the twin's context ends it just says nothing


def test_short_steps_and_windows(load_tiny, free_rows, caplog):  # noqa: F811
    model, twin = load_tiny(name="gemma3", n_ctx=400), load_tiny(name="gemma3", n_batch=3, n_ctx=400)
    (prompt,) = prompts_of((50,))
    done = model.generate(prompt, speculate=twin, **GREEDY)
    assert facts(done) == facts(model.generate(prompt, **GREEDY)) and 0 < counts(done)[1] == counts(done)[0]
    for length in range(250, 262, 2):  # the window leaves a block behind
        (longer,) = prompts_of((length,))
        done = model.generate(longer, speculate=twin, **GREEDY | SAMPLED)
        assert facts(done) == facts(model.generate(longer, **GREEDY | SAMPLED))
    assert "goes on without" not in caplog.text
    done = twin.generate(prompt, speculate=model, **GREEDY)
    assert facts(done) == facts(model.generate(prompt, **GREEDY)) and 0 < counts(done)[1] == counts(done)[0]


def test_what_cannot_draft(load_tiny, monkeypatch):
    model, gemma, twin = load_tiny(), load_tiny(name="gemma3"), load_tiny()
    for given in (model.generate, model.stream, lambda p, **kw: model.generate([p], **kw), model.session().generate):
        with pytest.raises(ValueError, match="the draft is the model .* itself"):
            given("a", speculate=model)
        with pytest.raises(ValueError, match=r"tiny gemma3.* has another vocabulary than tiny llama.*: token 0 is '<pad>', not '<\|endof"):
            given("a", speculate=gemma)
        with monkeypatch.context() as patch:
            patch.setattr(Layout, "rewinds", False)
            with pytest.raises(ValueError, match="the draft tiny llama.* has recurrent layers"):
                given("a", speculate=twin)
    twin.close()
    with pytest.raises(ni.ModelClosed):
        model.generate("a", speculate=twin)


def test_more_tokens_are_another_vocabulary(tiny_model, other_path, monkeypatch):
    with ni.load(other_path) as other:
        monkeypatch.setattr(other.tokenizer, "n_vocab", other.tokenizer.n_vocab - 1)
        with pytest.raises(ValueError, match="another vocabulary than .*: 284 tokens, not 285; wanted the same"):
            tiny_model.generate("a", speculate=other)


def test_a_draft_that_is_closed_meanwhile(load_tiny, free_rows, caplog):  # noqa: F811
    model = load_tiny()
    (prompt,) = prompts_of((30,))
    twin = load_tiny()

    def process(token_ids, logits):
        if len(token_ids) == 20:
            twin.close()
        return shout(token_ids, logits)

    wanted = facts(model.generate(prompt, logits_processor=shout, **GREEDY))
    assert facts(model.generate(prompt, speculate=twin, logits_processor=process, **GREEDY)) == wanted
    assert "an answer goes on without its draft" in caplog.text


def test_no_memory_for_a_drafts_cache(load_tiny, free_rows, monkeypatch, caplog):  # noqa: F811
    model, twin = load_tiny(), load_tiny()
    monkeypatch.setattr(drafts, "kv_budget", lambda runtime, lane: 1000)
    done = model.generate("abc", speculate=twin, **GREEDY)
    assert facts(done) == facts(model.generate("abc", **GREEDY)) and counts(done) == (0, 0)
    assert "no memory for its cache" in caplog.text


def test_everybody_at_once(load_tiny, other, free_rows):  # noqa: F811
    """Each drafts for the other, and both have callers of their own."""
    model, twin = load_tiny(2), load_tiny()
    prompts = prompts_of((20, 60, 33, 9, 80, 41))
    models = {"model": model, "twin": twin, "other": other}
    ways = [("model", "twin"), ("twin", "model"), ("model", "other"), ("other", "model"), ("twin", None), ("model", "prompt")]
    sampling = GREEDY | SAMPLED
    wanted = [facts(models[name].generate(p, **sampling)) for p, (name, _) in zip(prompts, ways)]
    found = [[] for _ in ways]

    def work(i):
        name, draft = ways[i]
        for _ in range(4):
            found[i].append(facts(models[name].generate(prompts[i], speculate=models.get(draft, draft), **sampling)))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(ways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert found == [[w] * 4 for w in wanted]


@pytest.mark.parametrize("every", [2, 3, 5, 7])
def test_steps_that_are_broken_off(load_tiny, free_rows, monkeypatch, every):  # noqa: F811
    model, twin, turns = load_tiny(), load_tiny(), itertools.count()
    prompts = prompts_of((30, 11))
    wanted = [facts(model.generate(p, **GREEDY)) for p in prompts]

    def break_off(lane, segments):
        if next(turns) % every == 1:
            raise Cancelled("for once")

    spy_steps(monkeypatch, break_off)
    assert [facts(d) for d in model.generate(prompts, speculate=twin, **GREEDY)] == wanted
    assert [facts(d) for d in model.generate(prompts, speculate="prompt", **GREEDY)] == wanted


def test_cancelled_while_it_drafts(load_tiny, free_rows):  # noqa: F811
    model, twin = load_tiny(), load_tiny()
    (prompt,) = prompts_of((30,))
    whole = model.generate(prompt, max_tokens=200, ignore_eos=True).token_ids
    for n in range(3):
        stream = model.stream(prompt, max_tokens=200, ignore_eos=True, speculate=twin)
        for _ in range(n + 1):
            next(stream)
        stream.cancel()
        found = stream.result()
        assert found.finish_reason == "cancelled" and found.token_ids == whole[: len(found.token_ids)]


def test_a_draft_that_does_not_pay(load_tiny, other, monkeypatch):
    model, took = load_tiny(), Costs.took
    monkeypatch.setattr(Costs, "took", lambda self, rows, _: took(self, rows, 1.0))
    done = model.generate("abc", max_tokens=200, speculate=other, **FEW_LETTERS)
    assert 0 < counts(done)[0] < 120  # at first, and now and then again
    monkeypatch.setattr(drafts.Draft, "cost", property(lambda self: 0.9, lambda self, seconds: None), raising=False)
    done = model.generate("abc", max_tokens=200, speculate=other, **FEW_LETTERS)
    assert counts(done) == (0, 0)


def test_it_says_what_the_small_model_says_whatever_came_before(load_tiny, monkeypatch):
    """Behind proposals that were right, wrong, never checked or broken off."""
    model, ids, run = load_tiny(1, n_ctx=None, n_batch=8), [5, 6, 7], Runtime.run
    draft = drafts.Draft(model.runtime, len(ids), 200, lambda: False)
    draft.extend(ids)
    for k, right in ((4, 0), (5, 2), (3, 3), (8, 1), (1, 0), (2, 2), (6, 5)):
        wanted = list(model.generate(ids, max_tokens=k + 1, temperature=0, ignore_eos=True).token_ids)
        assert 0 < len(draft.chances(MOST)) <= 8  # a step's rows: a window goes back no further
        monkeypatch.setattr(Runtime, "run", broken_off)
        assert draft.propose(k) == []
        monkeypatch.setattr(Runtime, "run", run)
        assert draft.propose(k) == wanted[:k]
        assert draft.propose(k) == wanted[:k]  # the large model's step was broken off: asked again
        new = [*wanted[:right], wanted[right] if right == k else (wanted[right] + 1) % 200 + 3]
        new += [9, 11, 13][: k % 4]  # chosen in steps for which nothing was proposed
        draft.extend(new)
        ids = ids + new
    monkeypatch.setattr(Runtime, "run", no_memory)
    assert draft.propose(3) == [] and draft.chances(MOST) == [] and draft._cache is None
    monkeypatch.setattr(Runtime, "run", run)
    assert draft.chances(MOST) == []


def broken_off(*args, **options):
    raise Cancelled


def no_memory(*args, **options):
    raise ni.OutOfNodeMemory("no block")


def test_it_computes_in_its_turn_and_as_long_as_somebody_wants_it(load_tiny, monkeypatch):
    model, gone, looks, run = load_tiny(1, n_ctx=None), threading.Event(), [], Runtime.run
    monkeypatch.setattr(Runtime, "run", lambda *args, look=None, **options: (looks.append(look), run(*args, look=look, **options))[1])
    draft, found = drafts.Draft(model.runtime, 3, 200, gone.is_set), []
    draft.extend([5, 6, 7])

    def propose():
        thread = threading.Thread(target=lambda: found.append(draft.propose(2)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive() and not looks  # somebody else computes
        return thread

    with model.runtime.turn(None):
        thread = propose()
        gone.set()
        thread.join(10)
        assert found == [[]] and not looks
        gone.clear()
        thread = propose()
    thread.join(10)
    assert tuple(found[1]) == model.generate([5, 6, 7], max_tokens=2, temperature=0, ignore_eos=True).token_ids
    assert looks[:2] == [gone.is_set] * 2
    draft.close()


def test_one_that_is_always_wrong_is_tried_again_after_a_while(load_tiny, monkeypatch):
    monkeypatch.setattr(drafts, "_AGAIN", 20)
    draft = drafts.Draft(load_tiny(1, n_ctx=None).runtime, 1, 200, lambda: False)
    draft.extend([5])
    for _ in range(40):
        draft._proposal = [6, 7]
        draft.extend([7, 7])  # what stood behind a wrong one says nothing
    assert draft.chances(3) == []
    draft.extend([7] * 18)
    assert draft.chances(3) == []
    draft.extend([7])
    assert draft.chances(3) == pytest.approx([0.7, 0.7**2, 0.7**3])
