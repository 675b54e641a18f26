"""Beginnings that requests of all kinds share, in the loop: computed once, found later, given up for whoever needs the memory."""

import gc
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from test_mixture_models import model as edited
from tiny_models import tiny

import numainfer as ni
from numainfer import _core
from numainfer.cli.main import main
from numainfer.engine.cache import Cache
from numainfer.engine.engine import Engine
from numainfer.serving import loop as loop_module
from numainfer.serving.answer import Answer

CHUNK = _core.CHUNK
COMMON = {"context": 1024, "heads": 4, "kv_heads": 2, "width": 64, "feed_forward": 96, "head_width": 16}
IDS = np.random.default_rng(8).integers(6, 120, 1000).tolist()
PARAMS = ni.SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharing")
    found = {"all": tiny(folder, "llama", "Q8_0", name="all", **COMMON)}
    found["some windows"] = tiny(folder, "gemma3", "Q8_0", window=100, name="some", **COMMON)
    found["windows"] = tiny(folder, "llama", "Q8_0", window=270, name="windows", **COMMON)
    (folder / "latent").mkdir()
    found["latent"] = edited(folder / "latent", "deepseek2", {"context_length": 1024})
    return found


def load(paths, name="all", **options):
    return ni.load(paths[name], **{"n_batch": 128} | options)


def family(at, n=6, more=10):
    """Prompts that begin with the same so many ids."""
    return [IDS[:at] + [6 + i] + IDS[500 + 20 * i : 500 + 20 * i + more + i] for i in range(n)]


def tokens(done):
    return [d.token_ids for d in done]


def cached(done):
    return [d.usage.cached_tokens for d in done]


def alone(paths, prompts, name="all", **options):
    """Each computed from its first token on."""
    with load(paths, name, prefix_cache=0, **options) as model:
        return [model.generate(prompt, PARAMS).token_ids for prompt in prompts]


def out(model):
    return sum(pool.n_out for pool in model.runtime.engine.caches.pools)


class Counted:
    """Rows that a model's steps compute from now on."""

    def __init__(self, model, monkeypatch):
        self.rows, run = 0, model.runtime.run

        def counting(lane, segments, *args, **more):
            done = run(lane, segments, *args, **more)
            self.rows += sum(len(ids) for _, ids, _ in segments)
            return done

        monkeypatch.setattr(model.runtime, "run", counting)


# ---- at the same time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["auto", 0])
def test_a_list_computes_its_beginning_once(paths, monkeypatch, bound):
    prompts = family(377)
    right = alone(paths, prompts)
    with load(paths, prefix_cache=bound) as model:
        counted = Counted(model, monkeypatch)
        done = model.generate(prompts, PARAMS)
        assert tokens(done) == right and cached(done) == [0] + [377] * 5
        assert counted.rows == sum(map(len, prompts)) - 5 * 377 + 6 * 5
        again = model.generate(prompts, PARAMS)
        assert tokens(again) == right
        if bound:
            assert cached(again) == [len(prompt) - 1 for prompt in prompts]
        else:
            assert cached(again) == [0] + [377] * 5 and out(model) == 0


def test_threads_that_come_at_the_same_time(paths, monkeypatch):
    prompts = family(377)
    right = alone(paths, prompts)
    with load(paths, prefix_cache=0) as model:
        counted, found, start = Counted(model, monkeypatch), {}, threading.Barrier(6)

        def work(i):
            start.wait()
            found[i] = model.generate(prompts[i], PARAMS)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tokens([found[i] for i in range(6)]) == right
        assert counted.rows < 2.2 * 377 + sum(len(prompt) - 377 + 5 for prompt in prompts)  # who comes a step late may find one ended


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("name", ["all", "some windows", "windows", "latent"])
def test_every_kind_of_layer(paths, monkeypatch, name, kv_type):
    """Lists of mixed beginnings, twice: what is found, and in which order, changes nothing."""
    prompts = family(300, 3) + family(40, 2) + family(530, 2, 40) + family(256, 2)
    ways = [(1, "auto", {}), (2, "latency", {"placement": "replicate"}), (2, "throughput", {"placement": "replicate"}),
            (2, "auto", {"placement": "shard"}), (3, "auto", {"n_batch": 33})]  # fmt: skip
    if name == "latent":  # whose kernels are slow for models so small
        prompts, ways = prompts[1:5], ways[:2]
    right = alone(paths, prompts, name, kv_type=kv_type)
    for nodes, mode, options in ways:
        monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
        with load(paths, name, kv_type=kv_type, **options) as model:
            first, second = (model.generate(prompts, PARAMS, mode=mode) for _ in range(2))
            assert tokens(first) == right and tokens(second) == right
            assert sum(cached(first)) > (0 if nodes > 1 else 250) and sum(cached(second)) > sum(cached(first))
            assert tokens(model.generate(prompts[::-1], PARAMS, mode=mode)) == right[::-1]


def test_one_that_is_waited_for_ends_early(paths, monkeypatch):
    """It is cancelled in the midst of its prompt, while the steps have room for more: who waited goes on, with what there is."""
    next_ids = Answer.next_ids
    monkeypatch.setattr(Answer, "next_ids", lambda self, most: next_ids(self, min(most, 8)))
    prompts = family(900, 3)
    right = alone(paths, prompts, n_batch=16)
    for bound in (0, "auto"):
        with load(paths, n_batch=16, prefix_cache=bound) as model:
            streams, found, go_on = [model.stream(prompt, PARAMS) for prompt in prompts], {}, threading.Event()
            step = model.runtime.engine.lane.step

            def held(*args, step=step, streams=streams, go_on=go_on, **more):
                """In the midst of the prompt, steps wait until it is cancelled."""
                if streams[0]._request.at >= 100:
                    go_on.wait(20)
                return step(*args, **more)

            def read(i, streams=streams, found=found):
                found[i] = streams[i].finish()

            monkeypatch.setattr(model.runtime.engine.lane, "step", held)
            threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
            deadline = time.monotonic() + 20
            for thread, stream in zip(threads, streams):
                thread.start()
                while stream._request.lane is None and time.monotonic() < deadline:
                    time.sleep(0.0005)
            while streams[0]._request.at < 100 and time.monotonic() < deadline:
                time.sleep(0.001)
            waits, was = streams[1]._request.at, streams[0]._request.at
            go_on.set()
            streams[0].cancel()
            assert waits == 0 and 100 <= was < 900
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
            assert found[0].finish_reason == "cancelled" and tokens([found[1], found[2]]) == right[1:]
            assert cached([found[1]])[0] in range(64, 900) if bound else cached([found[1]]) == [0]
            assert cached([found[2]]) == [900]


def test_one_whose_reader_does_not_come(paths):
    """Rows that nobody takes hold nobody up who begins in the same way."""
    from numainfer.serving.requests import Rows

    with load(paths, n_batch=64) as model:
        rows = Rows(model.runtime, np.array(IDS[:600], np.int32), all=True)
        rows._size = 64
        model.runtime.submit(rows)
        deadline = time.monotonic() + 20
        while not rows.paused and time.monotonic() < deadline:
            time.sleep(0.001)
        prompt = IDS[:600] + [7]
        done = model.generate(prompt, PARAMS)
        assert [done.token_ids] == alone(paths, [prompt]) and rows.paused and done.usage.cached_tokens < 600
        rows.cancel()
        rows.join()


def test_a_session_that_is_closed_when_its_turn_comes(paths, monkeypatch):
    """It ends alone: those beside it go on."""
    with load(paths) as model, model.session() as session:
        model.generate(IDS[:300], PARAMS)
        attach = model.runtime.prefixes.attach

        def closing(cache, *args):
            session.close()
            return attach(cache, *args)

        monkeypatch.setattr(model.runtime.prefixes, "attach", closing)
        with pytest.raises(ni.ModelClosed, match="the session was closed"):
            session.generate(IDS[:310], PARAMS)
        assert [model.generate(IDS[:310], PARAMS).token_ids] == alone(paths, [IDS[:310]])


def test_hidden_states_and_answers_do_not_wait_for_each_other(paths):
    """Their steps alternate: either may go on only when the other does."""
    with load(paths, n_batch=32) as model:
        found, texts = {}, [IDS[:400] + [9], IDS[:400] + [8]]
        wanted = model.embed(texts[:1])

        def work(i):
            found[i] = model.embed([texts[i]] * 2) if i < 2 else model.generate(texts[i - 2], PARAMS)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert np.array_equal(found[0][:1], wanted) and tokens([found[2], found[3]]) == alone(paths, texts)


# ---- one after the other ---------------------------------------------------------------------------------------------


def test_conversations_and_sessions_find_each_other(paths):
    """A turn's prompt and answer are the next one's beginning, with a session or without; sessions give and take."""
    with load(paths) as model, load(paths, prefix_cache=0) as other:
        ids, last = IDS[:50], 0
        for i in range(4):
            done = model.generate(ids, max_tokens=30, ignore_eos=True)
            assert done.token_ids == other.generate(ids, max_tokens=30, ignore_eos=True).token_ids
            assert done.usage.cached_tokens == last
            last, ids = len(ids) + 29, [*ids, *done.token_ids, *IDS[200 + i : 210 + i]]  # the last token was not fed back
        with model.session() as session:
            done = session.generate([*ids, 7], PARAMS)
            assert done.usage.cached_tokens == last and session.n_past == len(ids) + 1 + 5
            assert done.token_ids == other.generate([*ids, 7], PARAMS).token_ids
            assert session.generate([*ids, 8], PARAMS).usage.cached_tokens == len(ids)  # its own
            done = model.generate([*ids, 7, *session.ids[:3]], PARAMS)
            assert done.usage.cached_tokens == len(ids) + 1
            long = IDS[300:700]
            model.generate(long, PARAMS)
            done = session.generate(long, PARAMS)
            assert done.usage.cached_tokens == len(long) - 1 and session.ids == [*long, *done.token_ids]
            with session.fork() as twin:
                session.rewind(100)
                assert np.array_equal(session.logits([*long[:100], 9]), other.logits([*long[:100], 9]))
                assert np.array_equal(twin.logits([*long, *done.token_ids, 9]), other.logits([*long, *done.token_ids, 9]))
        assert np.array_equal(model.logits(long), other.logits(long))
        assert np.array_equal(model.logits(long, all=True), other.logits(long, all=True))
        assert np.array_equal(model.score(long).logprobs, other.score(long).logprobs)
        assert np.array_equal(model.embed(long), other.embed(long))


def test_what_scores_and_embeddings_computed_serves_answers(paths):
    with load(paths) as model:
        model.score(IDS[:300])
        assert model.generate(IDS[:310], PARAMS).usage.cached_tokens == 300
        model.embed([IDS[400:700]])
        assert model.generate(IDS[400:710], PARAMS).usage.cached_tokens == 300
        model.logits(IDS[700:800])
        done = model.generate(IDS[700:810], PARAMS)
        assert done.usage.cached_tokens == 100 and done.timings.prompt_tokens == 10
        found = model.stats().prefixes
        assert (found.sequences, found.hits, found.tokens) == (4, 3, 700) and 0 < found.bytes <= found.most_bytes
        assert "found by 3 of 4 sequences" in repr(model.stats())


def test_cancelled_streams_leave_what_they_computed(paths):
    with load(paths) as model:
        with model.stream(IDS[:300], max_tokens=300, ignore_eos=True) as stream:
            next(stream)
        ids = [*IDS[:300], *stream.result().token_ids]
        assert model.generate([*ids, 7], PARAMS).usage.cached_tokens in (len(ids) - 1, len(ids))


def test_lanes_copy_what_others_computed(paths, monkeypatch):
    """From all nodes together to a node by itself, and back: nothing is computed twice, and each reads its own copy."""
    prompts, settled = family(377), []
    right = alone(paths, prompts)
    settle = Cache.settle
    monkeypatch.setattr(Cache, "settle", lambda self, lane: (settled.append(lane.nodes), settle(self, lane)))
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with load(paths, placement="replicate") as model:
        first = model.generate(prompts[:2], PARAMS, mode="latency")
        assert cached(first) == [0, 377] and settled == []
        apart = model.generate(prompts, PARAMS, mode="throughput")
        assert tokens(apart) == right and min(cached(apart)) >= 377 and 1 <= len(settled) <= 4 and [0, 1] not in settled
        settled.clear()
        model.generate([IDS[800:]] * 2, PARAMS, mode="throughput")
        together = model.generate(IDS[800:], PARAMS)
        assert together.usage.cached_tokens == 199 and settled[-1:] == [[0, 1]]
        assert [together.token_ids] == alone(paths, [IDS[800:]])


# ---- n answers -------------------------------------------------------------------------------------------------------


def test_n_answers_to_a_prompt_that_is_computed_once(paths, monkeypatch):
    hot = {"temperature": 1.5, "seed": 2**64 - 2, "max_tokens": 8, "ignore_eos": True}
    with load(paths, prefix_cache=0) as model:
        right = [model.generate(IDS[:300], **hot | {"seed": seed}) for seed in (2**64 - 2, 2**64 - 1, 0)]
        counted = Counted(model, monkeypatch)
        done = model.generate(IDS[:300], n=3, **hot)
        assert isinstance(done, ni.Completions) and tokens(done) == tokens(right) and len(set(tokens(done))) == 3
        assert counted.rows == 300 + 2 + 3 * 7 and cached(done) == [0, 299, 299]
        lists = model.generate([IDS[:30], IDS[:300]], n=3, **hot)
        assert len(lists) == 6 and tokens(lists[3:]) == tokens(done) and isinstance(lists, ni.Completions)
        each = [ni.SamplingParams(**hot, n=2), ni.SamplingParams(**hot)]
        mixed = model.generate([IDS[:300], IDS[:30]], each)
        assert tokens(mixed) == [*tokens(done[:2]), lists[0].token_ids]
        free = model.generate(IDS[:300], n=4, temperature=1.5, max_tokens=8, ignore_eos=True)
        assert len(set(tokens(free))) > 1
        assert isinstance(model.generate(IDS[:30], n=1, max_tokens=2), ni.Completion)
        assert tokens(model.generate(IDS[:300], n=2, max_tokens=4)) == 2 * tokens([model.generate(IDS[:300], max_tokens=4)])


def test_n_answers_to_a_conversation(tiny_model):
    messages = [{"role": "user", "content": "count"}]
    one = tiny_model.chat(messages, max_tokens=5, seed=3, temperature=1)
    done = tiny_model.chat(messages, max_tokens=5, seed=3, temperature=1, n=2)
    assert isinstance(done, ni.Completions) and len(done) == 2 and done[0].text == one.text
    assert len(tiny_model.chat([messages, messages], max_tokens=5, n=2)) == 4


def test_n_where_there_is_one_answer(tiny_model):
    says = "n = 2: a stream and a session have one answer each"
    with tiny_model.session() as session:
        for refused in (lambda: tiny_model.stream("a", n=2), lambda: session.generate("a", n=2), lambda: session.stream("a", n=2),
                        lambda: session.chat("a", n=2), lambda: tiny_model.chat("a", n=2, stream=True)):  # fmt: skip
            with pytest.raises(ValueError, match=says):
                refused()
    for prompt, error in (("", ValueError), (3, TypeError), ([7] * 300, ni.ContextOverflow)):
        with pytest.raises(error, match="prompt"):
            tiny_model.generate(prompt, n=2)
    with pytest.raises(TypeError, match="messages"):
        tiny_model.chat(3, n=2)


def test_n_answers_that_fail_or_are_cancelled(tiny_model):
    def broken(ids, logits):
        if len(ids) == 2:
            raise KeyError("mine")
        return logits

    done = tiny_model.generate("abc", n=2, logits_processor=broken)
    assert [d.finish_reason for d in done] == ["error"] * 2 and all(isinstance(d.error, KeyError) for d in done)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_nobody_waits_for_memory_that_is_kept(paths, monkeypatch):
    """What is kept is not there for admission, and is given up, the least recently used first, as far as it is needed."""
    monkeypatch.setattr(loop_module, "_SMALL", 0)
    with load(paths) as model:
        kinds = model.runtime.engine.plan.kv.kinds
        block, prefixes = kinds[0].block_bytes, model.runtime.prefixes
        model.generate([IDS[i : i + 250] for i in range(0, 600, 60)], PARAMS)  # a block each
        assert prefixes.bytes == prefixes.reclaimable == 10 * block
        total = 12 * block
        monkeypatch.setattr(loop_module, "kv_budget", lambda *_: total - out(model) * block)
        most = []
        run = model.runtime.run

        def watching(*args, **more):
            most.append(out(model))
            return run(*args, **more)

        monkeypatch.setattr(model.runtime, "run", watching)
        prompts = [IDS[400 + i : 650 + i] for i in range(0, 300, 25)]
        done = model.generate(prompts, PARAMS)
        assert tokens(done) == alone(paths, prompts)
        assert max(most) <= 12 and prefixes.bytes <= total
        large = model.generate(IDS[:900], max_tokens=100, ignore_eos=True)
        assert large.finish_reason == "length" and max(most) <= 12


def test_another_model_takes_what_is_kept(paths, monkeypatch):
    """Where it would not find room else; what sequences hold stays, and then there is none."""
    real, tries = Engine._open, []

    def full(*args):
        tries.append(1)
        if out(first):
            raise ni.OutOfNodeMemory("no room")
        return real(*args)

    with load(paths) as first:
        first.generate(IDS[:300], PARAMS)
        assert out(first) == 2
        monkeypatch.setattr(Engine, "_open", full)
        with load(paths, "windows") as second:
            assert second.generate([5], max_tokens=1).token_ids and len(tries) == 2
        assert first.generate(IDS[:300], PARAMS).usage.cached_tokens == 0
        with first.session() as session:
            session.generate(IDS[:300], PARAMS)
            with pytest.raises(ni.OutOfNodeMemory, match="no room"):
                load(paths, "windows")


def test_the_bound_and_the_end(paths):
    """An idle model keeps no more than it may, sessions included, and nothing once it is closed."""
    block = 2 * 2 * 2 * 2 * 16 * 256  # two layers, two heads, keys and values, halves
    with load(paths, prefix_cache=5 * block) as model:
        for i in range(12):
            model.generate(IDS[i * 40 : i * 40 + 300], PARAMS)
            with model.session() as session:
                session.generate(IDS[i * 40 + 5 : i * 40 + 100], PARAMS)
        assert out(model) == 5 and model.runtime.prefixes.bytes == 5 * block == model.placement.prefix_bytes()[0]
        assert model.placement.prefix_bytes()[1] == 5 * block
        assert f"{5 * block / 1000:.0f} KB of at most {5 * block / 1000:.0f} KB for prefixes" in str(model.placement)
        assert 3 * block < sum(model.placement.kv_bytes().values()) <= 5 * block  # pages that were touched
        pools = model.runtime.engine.caches.pools
    gc.collect()
    assert [pool.n_out for pool in pools] == [0] and all(pool.slabs() == [] for pool in pools)


def test_ten_thousand_prompts_of_a_byte(tiny_path):
    """Many short sequences from many threads: never more than the bound, and every answer right."""
    with ni.load(tiny_path, prefix_cache=600_000, n_ctx=128) as model:
        prompts = [[7 + i % 5] * 20 + [9 + i % 30, 6 + i % 7] for i in range(60)]
        right = tokens([model.generate(prompt, max_tokens=3) for prompt in prompts])
        errors = []

        def work(me):
            rng = np.random.default_rng(me)
            for i in rng.integers(0, 60, 60):
                if rng.random() < 0.3:
                    stream = model.stream(prompts[i], max_tokens=30)
                    next(stream)
                    stream.cancel()
                elif model.generate(prompts[i], max_tokens=3).token_ids != right[i]:
                    errors.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and model.runtime.prefixes.bytes <= 600_000
        model.runtime.prefixes.reclaim()
        assert out(model) == 0


def test_what_load_takes(tiny_path):
    for given, bytes_ in ((0, 0), ("0", 0), (10**9, 10**9), ("2GB", 2 * 10**9), ("1.5 MiB", 3 << 19), ("7k", 7000), ("12b", 12)):
        with ni.load(tiny_path, prefix_cache=given) as model:
            assert model.runtime.prefixes.most == bytes_
            assert ("for prefixes" in str(model.placement)) == (bytes_ > 0)
    with ni.load(tiny_path) as model:
        assert 0 < model.runtime.prefixes.most <= 64 * model.plan.kv_bytes
    for given, error, says in ((-1, ValueError, "prefix_cache = -1: must be from 0"), ("much", ValueError, "wanted bytes, such as 512MB"),
                               (True, TypeError, "found a bool"), (None, TypeError, "found NoneType"), ("-2GB", ValueError, "wanted bytes"),
                               (1e9, TypeError, "found float"), ("1e9", ValueError, "wanted bytes")):  # fmt: skip
        with pytest.raises(error, match=says):
            ni.load(tiny_path, prefix_cache=given)
    with pytest.raises(TypeError, match="unknown parameter of load 'enable_prefix_caching': it is called prefix_cache here"):
        ni.load(tiny_path, enable_prefix_caching=True)


def test_the_command_takes_it(tiny_path, capsys):
    assert main(["run", str(tiny_path), "abc", "-n", "2", "-q", "--prefix-cache", "1MB"]) == 0
    assert main(["run", str(tiny_path), "abc", "-n", "2", "-q", "--prefix-cache", "much"]) == 2
    assert "prefix_cache = 'much': wanted bytes, such as 512MB" in capsys.readouterr().err


def test_who_is_waited_for(paths):
    """The one that will have most of the beginning; nobody where as much of it is known."""
    with load(paths) as model:
        nowhere = SimpleNamespace(ident=None)

        def answer(ids):
            made = Answer(model.runtime, np.array(ids, np.int32), PARAMS)
            made.start(nowhere, "latency")
            return made

        some, most, least, other = (answer(IDS[:n] + IDS[500:520]) for n in (60, 120, 40, 0))
        waits = answer(IDS[:200])
        assert not waits.begins([0], [some, most, least, other]) and waits._behind == (most, 120)
        assert not waits.begins([0], [some, most, least, other])  # most stands where it stood
        most.end()
        assert not waits.begins([0], [some, least, other]) and waits._behind == (some, 60)
        model.generate(IDS[:200], PARAMS)  # meanwhile somebody else has computed it
        some.end()
        assert waits.begins([0], [answer(IDS[:150] + IDS[500:520]), least, other]) and waits.at == waits.cached == 199
