"""The verbs of Model, on real models."""

import copy
import json
import logging
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from api_tools import force, forced, log_softmax

import numainfer as ni
from numainfer.progress import progress_bar

PROMPT = "The capital of France is"


# ---- generate ------------------------------------------------------------------------------------


def test_generate_continues_the_text(smollm2):
    done = smollm2.generate(PROMPT, max_tokens=8)
    assert "Paris" in done.text
    assert str(done) == done.text == smollm2.tokenizer.decode(done.token_ids)
    assert done.finish_reason == "length" and len(done.token_ids) == 8
    assert done.usage.prompt_tokens == len(smollm2.tokenizer.encode(PROMPT))
    assert done.usage.completion_tokens == 8 and done.usage.cached_tokens == 0
    assert done.usage.total_tokens == done.usage.prompt_tokens + 8
    assert done.logprobs is None


def test_a_model_that_wants_bos_gets_it(gemma3):
    ids = gemma3.tokenizer.encode(PROMPT)
    assert ids[0] == gemma3.tokenizer.bos_token_id
    done = gemma3.generate(PROMPT, max_tokens=6)
    assert done.token_ids == gemma3.generate(ids, max_tokens=6).token_ids
    assert gemma3.generate("", max_tokens=2).usage.prompt_tokens == 1  # BOS alone is a prompt


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: np.array(ids, np.uint16)])
def test_ids_are_as_good_as_text(smollm2, kind):
    ids = kind(smollm2.tokenizer.encode(PROMPT))
    assert smollm2.generate(ids, max_tokens=4).token_ids == smollm2.generate(PROMPT, max_tokens=4).token_ids


def test_a_list_gives_a_list_in_order(smollm2):
    prompts = [PROMPT, "2 + 2 =", "Once upon a time", PROMPT]
    alone = [smollm2.generate(p, max_tokens=5).token_ids for p in prompts]
    assert [c.token_ids for c in smollm2.generate(prompts, max_tokens=5)] == alone
    ids = [smollm2.tokenizer.encode(p) for p in prompts]
    assert [c.token_ids for c in smollm2.generate(ids, max_tokens=5)] == alone
    assert [c.token_ids for c in smollm2.generate((p for p in prompts), max_tokens=5)] == alone
    one = smollm2.generate([PROMPT], max_tokens=5)
    assert isinstance(one, list) and one[0].token_ids == alone[0]
    assert all(c.usage.cached_tokens == 0 for c in smollm2.generate(prompts[::3], max_tokens=2))


def test_sampling_params_and_keywords_add_up(smollm2):
    params = ni.SamplingParams(max_tokens=3)
    assert len(smollm2.generate(PROMPT, params).token_ids) == 3
    assert len(smollm2.generate(PROMPT, params, max_tokens=2).token_ids) == 2


def test_seeds_repeat(smollm2):
    def answer(seed):
        return smollm2.generate(PROMPT, max_tokens=12, temperature=1.5, seed=seed).token_ids

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1
    assert len({answer(None) for _ in range(4)}) > 1


def test_timings_add_up(smollm2):
    t = smollm2.generate(PROMPT, max_tokens=5).timings
    assert t.prompt_tokens == 5 and t.generated_tokens == 4
    assert 0 < t.prompt_seconds <= t.time_to_first_token
    assert t.generation_tokens_per_second == pytest.approx(4 / t.generation_seconds)
    assert smollm2.generate(PROMPT, max_tokens=1).timings.generation_tokens_per_second is None


def test_results_are_short_to_look_at_and_fit_json(smollm2):
    done = smollm2.generate(PROMPT, max_tokens=40, logprobs=2)
    assert len(repr(done)) < 140 and "40 tokens" in repr(done)
    again = json.loads(json.dumps(done.to_dict()))
    assert again["text"] == done.text and again["token_ids"] == list(done.token_ids)
    assert again["logprobs"][0]["top"][0]["token_id"] == done.token_ids[0]


# ---- where it ends -------------------------------------------------------------------------------


def test_the_end_token_ends(smollm2):
    end = smollm2.tokenizer.eos_token_id
    ids = [*smollm2.tokenizer.encode("Hi there"), end, end]
    done = smollm2.generate(PROMPT, logits_processor=force(ids), max_tokens=len(ids))
    assert (done.text, done.finish_reason) == ("Hi there", "stop")
    assert list(done.token_ids) == ids[:-1]  # the end token is among the ids, not in the text
    on = smollm2.generate(PROMPT, logits_processor=force(ids), max_tokens=len(ids), ignore_eos=True)
    assert list(on.token_ids) == ids and on.finish_reason == "length"


def test_min_tokens_puts_the_end_off(smollm2):
    end = smollm2.tokenizer.eos_token_id
    eager = {end: 100.0}
    assert smollm2.generate(PROMPT, max_tokens=5, logit_bias=eager).token_ids == (end,)
    done = smollm2.generate(PROMPT, max_tokens=5, min_tokens=3, logit_bias=eager)
    assert len(done.token_ids) == 4 and done.token_ids[3] == end and end not in done.token_ids[:3]
    text = forced(smollm2, "ab ab ab ab", stop=" ab", min_tokens=4)
    late, early = smollm2.generate(PROMPT, **text).text, smollm2.generate(PROMPT, **text | {"min_tokens": 0}).text
    assert late.count("ab") > early.count("ab")


def test_stop_token_ids(smollm2):
    ids = smollm2.tokenizer.encode("one two three four")
    done = smollm2.generate(PROMPT, logits_processor=force(ids), max_tokens=len(ids), stop_token_ids=[ids[2]])
    assert list(done.token_ids) == ids[:3] and done.finish_reason == "stop"
    assert done.text == smollm2.tokenizer.decode(ids[:2])


@pytest.mark.parametrize("stop, text", [("three", "one two "), (["four", "two"], "one "), ("e t", "on"), ("zzz", None)])
def test_stop_strings(smollm2, stop, text):
    whole = "one two three four"
    done = smollm2.generate(PROMPT, **forced(smollm2, whole, stop=stop))
    assert done.text == (whole if text is None else text)
    assert done.finish_reason == ("length" if text is None else "stop")
    assert smollm2.tokenizer.decode(done.token_ids).startswith(done.text)


def test_a_full_context_ends_the_answer(tiny_path):
    with ni.load(tiny_path, n_ctx=16) as model:
        for n, produced in ((10, 7), (16, 1), (1, 16)):  # the last token is never fed back, so it needs no place
            done = model.generate(list(range(3, 3 + n)), max_tokens=None, ignore_eos=True)
            assert (len(done.token_ids), done.finish_reason) == (produced, "length")
        with pytest.raises(ni.ContextOverflow, match="17 tokens.*n_ctx = 16"):
            model.generate(list(range(17)))


def test_n_ctx_is_the_models_own_by_default(tiny_model):
    assert tiny_model.n_ctx == tiny_model.config.context_length == 256


def test_more_context_than_trained_is_said(tiny_path, caplog):
    with caplog.at_level(logging.WARNING, "numainfer"), ni.load(tiny_path, n_ctx=300) as model:
        assert model.n_ctx == 300
    assert "300" in caplog.text and "256" in caplog.text


# ---- log-probabilities and logits ----------------------------------------------------------------


def test_logprobs_are_the_models_own(smollm2):
    done = smollm2.generate(PROMPT, max_tokens=3, logprobs=4, repetition_penalty=1.3, temperature=0.7, seed=3)
    ids = smollm2.tokenizer.encode(PROMPT)
    for i, entry in enumerate(done.logprobs):
        wanted = log_softmax(smollm2.logits(ids + list(done.token_ids[:i])))
        assert entry.token_id == done.token_ids[i]
        assert entry.logprob == pytest.approx(wanted[entry.token_id], abs=1e-4)
        assert entry.rank == 1 + (wanted > wanted[entry.token_id]).sum()
        assert entry.text == smollm2.tokenizer.decode([entry.token_id])
        assert [t.token_id for t in entry.top] == list(np.argsort(-wanted)[:4])
        assert [t.rank for t in entry.top] == [1, 2, 3, 4]
        assert [t.logprob for t in entry.top] == pytest.approx(list(np.sort(wanted)[::-1][:4]), abs=1e-4)
    bare = smollm2.generate(PROMPT, max_tokens=2, logprobs=0).logprobs
    assert [entry.top for entry in bare] == [(), ()]


def test_logits_of_all_positions_are_those_of_each(smollm2):
    ids = smollm2.tokenizer.encode(PROMPT)
    rows = smollm2.logits(ids, all=True)
    assert rows.shape == (len(ids), smollm2.n_vocab) and rows.dtype == np.float32
    for n in range(1, len(ids) + 1):
        last = smollm2.logits(ids[:n])
        assert last.shape == (smollm2.n_vocab,) and np.array_equal(last, rows[n - 1])


def test_logits_do_not_depend_on_the_chunks(smollm2):
    ids = np.random.default_rng(1).integers(0, smollm2.n_vocab, 100)
    with ni.load("smollm2", n_ctx=256, n_batch=23) as other:
        assert np.array_equal(other.logits(ids), smollm2.logits(ids))
        assert np.array_equal(other.logits(ids, all=True)[::31], smollm2.logits(ids, all=True)[::31])


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_score_is_the_sum_of_logprobs(request, name):
    model = request.getfixturevalue(name)
    text = "The quick brown fox jumps over the lazy dog. " * 4
    ids = model.tokenizer.encode(text)
    wanted = log_softmax(model.logits(ids, all=True)[:-1])[np.arange(len(ids) - 1), ids[1:]]
    score = model.score(text)
    assert list(score.token_ids) == ids
    np.testing.assert_allclose(score.logprobs, wanted, atol=2e-5)
    assert score.nll == pytest.approx(-wanted.mean(), rel=1e-6)
    assert score.perplexity == pytest.approx(np.exp(-wanted.mean()), rel=1e-5)
    assert model.score(ids).nll == score.nll
    assert "perplexity" in repr(score)


def test_score_needs_little_memory(gemma3):
    ids = np.random.default_rng(0).integers(10, 200000, 250)
    gemma3.score(ids[:2])
    tracemalloc.start()
    gemma3.score(ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6 < 4 * len(ids) * gemma3.n_vocab


def test_sense_scores_better_than_nonsense(smollm2):
    assert smollm2.score("The sun rises in the east.").nll < smollm2.score("Sun the in east rises the.").nll


def test_embed(smollm2):
    texts = ["A cat sat on the mat.", "A kitten lay on the rug.", "Interest rates were raised by the central bank."]
    rows = smollm2.embed(texts)
    assert rows.shape == (3, 576) and rows.dtype == np.float32
    assert np.array_equal(smollm2.embed(texts[1]), rows[1])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > unit[0] @ unit[2]
    last = smollm2.embed(texts, pooling="last")
    assert last.shape == rows.shape and not np.allclose(last, rows)
    head = smollm2.embed(smollm2.tokenizer.encode(texts[0])[:1], pooling="mean")
    assert np.allclose(head, smollm2.embed(smollm2.tokenizer.encode(texts[0])[:1], pooling="last"), rtol=1e-6)


# ---- chat ----------------------------------------------------------------------------------------


def test_chat_answers(smollm2):
    messages = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "What is 2 + 2?"}]
    done = smollm2.chat(messages, max_tokens=30)
    ids = smollm2.tokenizer.apply_chat_template(messages, tokenize=True)
    assert done.token_ids == smollm2.generate(ids, max_tokens=30).token_ids
    assert done.usage.prompt_tokens == len(ids)
    assert "<|im" not in done.text and done.text.strip()
    stream = smollm2.chat(messages, max_tokens=30, stream=True)
    assert "".join(chunk.text for chunk in stream) == done.text == stream.result().text


def test_a_str_is_one_message_of_the_user(smollm2):
    assert (smollm2.chat("Hello", max_tokens=5).token_ids
            == smollm2.chat([{"role": "user", "content": "Hello"}], max_tokens=5).token_ids)  # fmt: skip


def test_chat_without_a_template(gemma3):
    with pytest.raises(ni.ChatTemplateMissing):
        gemma3.chat("Hello")


# ---- the model itself ----------------------------------------------------------------------------


def test_threads_take_turns(smollm2):
    prompts = [PROMPT, "2 + 2 =", "Once upon a time"]
    wanted = [smollm2.generate(p, max_tokens=10).token_ids for p in prompts]
    found = [None] * len(prompts)

    def work(i):
        found[i] = smollm2.generate(prompts[i], max_tokens=10).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_it_says_what_it_is(smollm2, tiny_model):
    assert smollm2.config.architecture == "llama" and smollm2.config.parameters == 134515008
    assert smollm2.config.main_type == "Q4_1" and smollm2.config.block_count == 30
    assert "134.5M" in repr(smollm2) and "\n" not in repr(smollm2)
    assert smollm2._repr_html_().startswith("<table>")
    assert smollm2.metadata["general.architecture"] == "llama"
    assert str(smollm2.placement) and str(smollm2.plan)
    tiny_model.close()
    assert "closed" in repr(tiny_model) and tiny_model._repr_html_()


def test_a_closed_model_is_not_entered(tiny_model):
    with tiny_model as same:
        assert same is tiny_model
    with pytest.raises(ni.ModelClosed, match="tiny llama was closed"), tiny_model:
        pass


def test_a_model_stays_in_its_process(tiny_model):
    session = tiny_model.session()
    for call, what in ((copy.copy, tiny_model), (copy.deepcopy, [tiny_model]), (copy.deepcopy, session), (pickle.dumps, tiny_model),
                       (pickle.dumps, {"model": tiny_model}), (pickle.dumps, session)):  # fmt: skip
        says = "a Session can be neither pickled nor copied" if what is session else (
            "tiny llama can be neither pickled nor copied: .* Load it in the other process")
        with pytest.raises(TypeError, match=says):
            call(what)
    assert tiny_model.generate([5], max_tokens=1).token_ids


def test_html_is_escaped(tiny_path, tmp_path):
    path = tmp_path / "<b>&.gguf"
    path.write_bytes(tiny_path.read_bytes().replace(b"tiny llama", b"<i>&llama>"))
    with ni.load(path) as model:
        assert "<i>" not in model._repr_html_() and "&lt;i&gt;" in model._repr_html_()


def test_loading_reports_its_progress(tiny_path):
    seen = []
    ni.load(tiny_path, progress=lambda done, total: seen.append((done, total))).close()
    assert seen and seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0


def test_the_progress_bar_goes_to_stderr_on_request_only(tiny_path, capfd):
    ni.load(tiny_path).close()
    assert capfd.readouterr() == ("", "")
    ni.load(tiny_path, progress=True).close()
    assert capfd.readouterr().out == ""


def test_the_bar_counts_as_the_tables_do(capfd):
    with progress_bar(True, "Loading") as report:
        time.sleep(0.25)  # it appears after 0.2 s
        report(50_000_000, 96_600_000)
        report(96_600_000, 96_600_000)
    assert "/96.6M" in capfd.readouterr().err


def test_bench_measures(tiny_model):
    result = ni.bench(tiny_model, n_prompt=16, n_gen=4, repeats=1)
    plain = json.loads(json.dumps(result.to_dict()))
    assert set(plain) == {"model", "isa", "threads", "nodes", "placement", "pp", "tg", "read_limit_gb_per_second"}
    assert plain["pp"]["n"] == 16 and plain["pp"]["tokens_per_second"] > 0
    tg = plain["tg"]
    assert tg["gb_per_second"] == pytest.approx(tg["tokens_per_second"] * tg["bytes_per_token"] / 1e9)
    assert 0.1 < plain["read_limit_gb_per_second"] < 10000
    assert "tokens/s" in repr(result)


# ---- the package ---------------------------------------------------------------------------------


def test_public_names():
    for name in ni.__all__:
        assert getattr(ni, name) is not None
    import numainfer.measure.benchmark

    assert callable(ni.bench) and ni.bench is numainfer.measure.benchmark.bench
    assert set(dir(ni)) == set(ni.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        ni.Lama  # noqa: B018


def test_import_is_quick_and_loads_little():
    code = ("import sys, time; t = time.perf_counter(); import numainfer; print(time.perf_counter() - t); "
            "print([m for m in ('numpy', 'tokenizers', 'sentencepiece', 'jinja2', 'tqdm') if m in sys.modules])")
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
            for _ in range(3)]  # fmt: skip
    assert all(run[1] == "[]" for run in runs)
    assert min(float(run[0]) for run in runs) < 0.25
