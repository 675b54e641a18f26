"""Answers in a form: every one has it, wherever it is computed, and nothing else about it changes."""

import gc
import json
import re
import sys
import threading
import time

import numpy as np
import pytest
from _sampler import philox_uniform
from test_tokenizer import SPM

import numainfer as ni
from numainfer import NumaInferError, SamplingParams, Tokenizer
from numainfer.serving.generation import Generation
from numainfer.serving.masks import Form, make_form
from numainfer.serving.sampling import Sampler

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["friend", "foe", "día"]},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["city", "zip"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "home", "tags"],
    "additionalProperties": False,
}
WORDS = ["foo", "foobar", "foo bar", "fée", 'q"\\\n\x00.*', "日本", "日曜"]
# A grammar that a parser cannot see to be hopeless: after "x" nothing can come.
DEAD = 'start: "x" rest | "z"\nrest: REST\nREST: /[ab]/ & /c/\n'
PROMPT = "Tell me about Bob."


def is_person(text):
    found = json.loads(text)
    assert list(found) == ["name", "age", "kind", "home", "tags"]
    assert isinstance(found["name"], str) and len(found["name"]) <= 12
    assert isinstance(found["age"], int) and 0 <= found["age"] <= 130 and found["kind"] in ("friend", "foe", "día")
    assert list(found["home"]) == ["city", "zip"] and re.fullmatch("[0-9]{5}", found["home"]["zip"])
    assert 1 <= len(found["tags"]) <= 3 and set(found["tags"]) <= {"a", "b"}
    return True


FORMS = {
    "schema": ({"json_schema": PERSON}, is_person),
    "regex": ({"regex": "[а-яё]{3,8}, (日本|語){2}[^a-z]?"}, re.compile("[а-яё]{3,8}, (日本|語){2}[^a-z]?").fullmatch),
    "choice": ({"choice": WORDS}, WORDS.__contains__),
    "grammar": (
        {"grammar": 'start: sum\nsum: N ("+" N){1,4}\nN: /[0-9]{1,3}/ | "é"\n'},
        re.compile(r"([0-9]{1,3}|é)(\+([0-9]{1,3}|é)){1,4}").fullmatch,
    ),
}
each_form = pytest.mark.parametrize("form, fits", FORMS.values(), ids=FORMS)


def allowed_of(form, n):
    return np.unpackbits(form.mask().view(np.uint8), bitorder="little")[:n].astype(bool)


def ids_of(form, n):
    return np.flatnonzero(allowed_of(form, n)).tolist()


# ---- the bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_bits_are_those_of_an_exhaustive_search(tiny_pair, name):
    """Every token whose bytes keep the text a beginning of a choice, and the ends where it is one; byte tokens too."""
    tok = Tokenizer.from_gguf(tiny_pair[name])
    n, ends = tok.n_vocab, {5, 280}
    known = [tok.token_bytes(i) for i in range(n)]
    banned = tok.control_token_ids | tok.stop_token_ids | ends
    assert banned > ends
    wanted = [word.encode() for word in WORDS]
    for word in WORDS:
        form = make_form(tok, n, SamplingParams(choice=WORDS), ends)
        text = b""
        while True:
            expected = {i for i in range(n) if known[i] and i not in banned and any(w.startswith(text + known[i]) for w in wanted)}
            if text in wanted:
                expected |= ends
            assert set(ids_of(form, n)) == expected
            assert [form.allows(i) for i in range(n)] == [i in expected for i in range(n)]
            assert not form.complete
            rest = word.encode()[len(text) :]
            token = max((i for i in expected - ends if rest.startswith(known[i])), key=lambda i: len(known[i]), default=None)
            if token is None:
                break
            text += known[token]
            form.accept(token)
            if form.complete:
                break
        assert text == word.encode() and form.complete == (word != "foo")


@pytest.mark.parametrize("sampling", [
    {}, {"temperature": 0.7, "top_k": 5}, {"temperature": 1.5, "top_p": 0.8}, {"temperature": 1.0, "min_p": 0.05},
    {"repetition_penalty": 1.8, "presence_penalty": 1.5, "logit_bias": {40: 5.0, 41: -5.0}}, {"min_tokens": 6},
])  # fmt: skip
def test_a_mask_is_minus_infinity(smollm2, sampling):
    """The same tokens, with the same log-probabilities, as a logits processor gives that writes -inf."""
    tok, n, ends, rng = smollm2.tokenizer, smollm2.n_vocab, sorted(smollm2.tokenizer.stop_token_ids), np.random.default_rng(1)
    params = SamplingParams(seed=7, regex="[a-f ]{2,9}(x|é)?", logprobs=3, **sampling)
    one = make_form(tok, n, params, ends)
    other = make_form(tok, n, params, ends)

    def process(ids, logits):
        logits[~allowed_of(other, n)] = -np.inf
        return logits

    a = Sampler(params, n, (40, 41), ends, one)
    b = Sampler(params.replace(regex=None, logits_processor=process), n, (40, 41), ends)
    for _ in range(8):
        logits = rng.normal(scale=4, size=n).astype(np.float32)
        logits[rng.integers(0, n, 20)] = np.inf if rng.random() < 0.2 else 9.0  # ties
        before = logits.tobytes()
        ids, probs = a.distribution(logits)
        assert allowed_of(one, n)[ids].all() and abs(probs.sum() - 1) < 1e-9
        own, logprob = a.sample(logits)
        assert (own, logprob) == b.sample(logits) and logits.tobytes() == before
        if own in ends or one.complete:
            break
        other.accept(own, ahead=False)
    assert len(a.token_ids) > 1


class Only:
    """A form that allows some of 512 tokens, always."""

    complete = False

    def __init__(self, share):
        self.allowed, self.masks, self.ahead = np.random.default_rng(5).random(512) < share, 0, []

    def allows(self, token):
        return self.allowed[token]

    def mask(self):
        self.masks += 1
        return np.packbits(self.allowed, bitorder="little").view(np.uint32)

    def accept(self, token, ahead=True):
        self.ahead.append(ahead)


@pytest.mark.parametrize("share", [0.9, 0.1])
def test_a_token_is_drawn_from_all_and_if_it_is_refused_from_the_allowed_ones(share):
    logits, form = np.random.default_rng(4).standard_normal(512).astype(np.float32), Only(share)
    sampler = Sampler(SamplingParams(temperature=1, seed=9), 512, form=form)
    every, chances = Sampler(SamplingParams(temperature=1), 512).distribution(logits)
    allowed, own = sampler.distribution(logits)
    assert allowed.tolist() == np.flatnonzero(form.allowed).tolist()
    form.masks, refused = 0, []
    for position in range(100):
        wanted = every[np.searchsorted(np.cumsum(chances), philox_uniform(9, position), side="right")]
        refused.append(not form.allowed[wanted])
        if refused[-1]:
            wanted = allowed[np.searchsorted(np.cumsum(own), philox_uniform(9, position | 1 << 63), side="right")]
        assert sampler.sample(logits)[0] == wanted
    assert form.masks == sum(refused) and form.ahead == refused and 0 < sum(refused) < 100


@pytest.mark.parametrize("cut", [{"top_k": 100}, {"top_p": 0.9}, {"min_p": 0.01}])
def test_what_is_cut_depends_on_the_mask(cut):
    form = Only(0.5)
    sampler = Sampler(SamplingParams(temperature=1, seed=9, **cut), 512, form=form)
    for _ in range(5):
        sampler.sample(np.random.default_rng(4).standard_normal(512).astype(np.float32))
    assert form.masks == 5 and form.ahead == [True] * 5


def test_nan_is_not_hidden(smollm2):
    form = make_form(smollm2.tokenizer, smollm2.n_vocab, SamplingParams(choice=["a"]), ())
    for temperature in (0.0, 1.0):
        sampler = Sampler(SamplingParams(temperature=temperature), smollm2.n_vocab, form=form)
        with pytest.raises(NumaInferError, match="found NaN"):
            sampler.sample(np.full(smollm2.n_vocab, np.nan, np.float32))


def test_answers_of_the_same_form_are_apart(smollm2):
    tok, n, params = smollm2.tokenizer, smollm2.n_vocab, SamplingParams(choice=["7q", "9x"])
    a, b, c = (make_form(tok, n, params, {2}) for _ in range(3))
    first = ids_of(a, n)
    for form, start, then in ((a, "7", "q"), (b, "9", "x")):
        assert ids_of(form, n) == first
        form.accept(*tok.encode(start))
        assert ids_of(form, n) == tok.encode(then)
    assert ids_of(c, n) == ids_of(make_form(tok, n, params, {2}), n) == first


def test_masks_are_computed_in_other_threads_and_waited_for(smollm2, monkeypatch):
    compute, where = Form.compute, []

    def slow(form):
        where.append(threading.current_thread().name)
        time.sleep(0.02)
        compute(form)

    own = {"regex": "[a-z]{8}", "max_tokens": 4, "seed": 5}
    cut = {"temperature": 1.0, "top_p": 0.99}
    quick = [smollm2.generate(PROMPT, **own, **sampling).token_ids for sampling in (cut, {"temperature": 1.0})]
    monkeypatch.setattr(Form, "compute", slow)
    assert smollm2.generate(PROMPT, **own, **cut).token_ids == quick[0]
    assert len(where) >= 2 and set(where) == {"numainfer-masks"}
    where.clear()
    assert smollm2.generate(PROMPT, **own, temperature=1.0).token_ids == quick[1]
    assert len(where) < 4
    where.clear()
    smollm2.generate("aaaa", **own)  # greedy: at most where the most probable token is not allowed
    assert len(where) < 4 and set(where) <= {"numainfer-lane-0"}


# ---- answers ---------------------------------------------------------------------------------------------------------


@each_form
def test_every_answer_has_its_form(smollm2, form, fits):
    for sampling in ({}, *({"temperature": 1.3, "seed": seed} for seed in range(6))):
        done = smollm2.chat(PROMPT, max_tokens=300, **form, **sampling)
        assert done.finish_reason == "stop" and fits(done.text)
        assert done.text == smollm2.tokenizer.decode(done.token_ids)


@each_form
def test_random_weights_keep_to_it(tiny_model, form, fits):
    """Byte tokens, and a model that makes no sense."""
    no_space = dict.fromkeys(tiny_model.tokenizer.encode(" \n"), -100.0)  # the context is short
    for seed in range(8):
        done = tiny_model.generate("x", max_tokens=None, logit_bias=no_space, temperature=1.0, seed=seed, **form)
        assert done.finish_reason == "stop" and fits(done.text)


@each_form
def test_the_same_bits_everywhere(smollm2, form, fits):
    for sampling in ({}, {"temperature": 1.2, "seed": 3}):
        own = {"max_tokens": 60, "logprobs": 2, **form, **sampling}
        alone = smollm2.generate(PROMPT, **own)
        what = (alone.text, alone.token_ids, alone.logprobs, alone.finish_reason)
        in_list = smollm2.generate(["Another.", PROMPT, "A third one, which is longer."], **own)
        with smollm2.stream(PROMPT, **own) as stream:
            pieces = "".join(chunk.text for chunk in stream)
        with smollm2.session() as session:
            session.generate("Tell me all about it.", max_tokens=3)
            kept = session.generate(PROMPT, **own)
            assert kept.usage.cached_tokens
        for done in (in_list[1], stream.result(), kept):
            assert (done.text, done.token_ids, done.logprobs, done.finish_reason) == what
        assert pieces == alone.text


def test_chunked_prompts_and_lanes(load_tiny):
    form = {"json_schema": PERSON, "max_tokens": 120, "temperature": 1.0}
    prompts = ["in the " * i for i in range(1, 7)]
    params = [SamplingParams(seed=i, **form) for i in range(len(prompts))]
    wanted = [load_tiny().generate(p, own).token_ids for p, own in zip(prompts, params)]
    for nodes, n_batch, mode in ((1, 3, "latency"), (2, 512, "throughput"), (2, 5, "throughput")):
        done = load_tiny(nodes, n_batch=n_batch).generate(prompts, params, mode=mode)
        assert [d.token_ids for d in done] == wanted and all(d.error is None for d in done)


def test_a_list_of_many_forms(smollm2):
    """One for each prompt, more than are kept compiled."""
    params = [SamplingParams(choice=[f"answer {i}", f"reply {i}"]) for i in range(40)]
    done = smollm2.generate([PROMPT] * 40, params)
    assert all(d.text in own.choice and d.finish_reason == "stop" for d, own in zip(done, params))


# ---- where it ends ---------------------------------------------------------------------------------------------------


def test_end_tokens_come_exactly_where_the_form_may_end(smollm2):
    end = smollm2.tokenizer.eos_token_id
    for bias, length, ended in ((100.0, 3, True), (-100.0, 5, False)):
        for temperature in (0.0, 1.0):
            done = smollm2.generate(PROMPT, regex="[ab]{3,5}", logit_bias={end: bias}, temperature=temperature, seed=1)
            assert re.fullmatch("[ab]{3,5}", done.text) and len(done.text) == length
            assert (done.token_ids[-1] == end) is ended and done.finish_reason == "stop"


def test_ignore_eos_and_min_tokens(smollm2):
    end = smollm2.tokenizer.eos_token_id
    push = {"regex": "(a ){1,9}", "logit_bias": {end: 100.0}}
    assert smollm2.generate(PROMPT, **push).text == "a "
    assert smollm2.generate(PROMPT, ignore_eos=True, **push).text == "a " * 9
    for n in (2, 4, 6):
        done = smollm2.generate(PROMPT, min_tokens=n, **push)
        assert len(done.token_ids) == n + 1 and done.token_ids[-1] == end and re.fullmatch("(a ){1,9}", done.text + " ") or done.text
    done = smollm2.generate(PROMPT, min_tokens=50, choice=["yes"])  # whole, and nothing can follow
    assert (done.text, done.finish_reason) == ("yes", "stop")


def test_stop_tokens_end_the_form_and_are_no_text(smollm2):
    (letter,) = smollm2.tokenizer.encode("b")
    for bias, length in ((100.0, 4), (-100.0, 7)):
        done = smollm2.generate(PROMPT, regex="7[bc]{2}7[b-d]{0,3}", stop_token_ids=[letter], temperature=1.0, seed=1,
                                logit_bias=dict.fromkeys(smollm2.tokenizer.stop_token_ids, -100.0) | {letter: bias})  # fmt: skip
        assert re.fullmatch("7[bc]{2}7[b-d]{0,3}", done.text) and len(done.text) == length and done.finish_reason == "stop"
        assert (done.token_ids[-1] == letter) is (bias > 0) and letter not in done.token_ids[:-1]


def test_stop_strings_cut_as_ever(smollm2):
    done = smollm2.generate(PROMPT, regex="[0-9]{5}-[0-9]{5}", stop="-")
    assert re.fullmatch("[0-9]{5}", done.text) and done.finish_reason == "stop"


@each_form
def test_max_tokens_cut(smollm2, form, fits):
    whole = smollm2.generate(PROMPT, max_tokens=300, **form)
    n = len(whole.token_ids)
    for most in {1, 2, n // 2, n - 1} - {0}:
        done = smollm2.generate(PROMPT, max_tokens=most, **form)
        if n > most:
            assert done.finish_reason == "length" and done.token_ids == whole.token_ids[:most]
    assert smollm2.generate(PROMPT, max_tokens=n, **form).finish_reason == "stop"


def test_no_step_is_spent_on_an_end_that_must_come(smollm2):
    done = smollm2.generate(PROMPT, choice=["yes", "no"])
    assert done.text in ("yes", "no") and len(done.token_ids) == 1 and done.finish_reason == "stop"


def test_logprobs_are_the_models_own(smollm2):
    plain = smollm2.generate(PROMPT, max_tokens=1, logprobs=5).logprobs[0]
    formed = smollm2.generate(PROMPT, max_tokens=1, logprobs=5, choice=["zebra"]).logprobs[0]
    assert formed.top == plain.top and formed.rank > 5 and formed.token_id not in [p.token_id for p in plain.top]


def test_special_tokens_that_a_grammar_names(smollm2):
    start = smollm2.tokenizer.encode("<|im_start|>")
    done = smollm2.generate(PROMPT, grammar='start: "a" <|im_start|> "b"\n')
    assert done.text == "ab" and [i for i in done.token_ids if i in smollm2.tokenizer.control_token_ids] == start
    done = smollm2.generate(PROMPT, choice=["<|im_start|>"])  # as text, not as the token
    assert done.text == "<|im_start|>" and start[0] not in done.token_ids


def test_a_space_at_the_beginning_stays():
    """Where decoding takes one away, for `encode` puts one there."""
    tok = Tokenizer(SPM)
    for wanted in (" ab", "ab"):
        generation = Generation(tok, tok.n_vocab, np.array([1], np.int32), SamplingParams(choice=[wanted]), 9)
        while generation.finish_reason is None:
            generation.choose(np.zeros(tok.n_vocab, np.float32))
        assert generation.completion(_clock(), 0).text == wanted


def _clock():
    from numainfer.serving.generation import Clock

    return Clock()


def test_a_logits_processor_beside_it(smollm2):
    def not_that(ids, logits):
        seen.append(ids)
        logits[[i for i in range(len(logits)) if smollm2.tokenizer.token_bytes(i).startswith(b"n")]] = -np.inf
        return logits

    seen, form = [], {"choice": ["no", "yes"]}
    assert smollm2.generate("Yes or no? No, no, no, no,", **form).text == "no"
    for temperature in (0.0, 1.0):
        assert smollm2.generate("Yes or no? No, no, no, no,", **form, temperature=temperature, logits_processor=not_that).text == "yes"
    assert seen[0] == ()


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form, words",
    [
        ({"regex": "a("}, "regex: cannot be compiled: .*unclosed group"),
        ({"grammar": "start: nothing"}, 'grammar: cannot be compiled: .*unknown name: "nothing"'),
        ({"grammar": 'start: "a'}, "grammar: cannot be compiled: .*lexer error"),
        ({"json_schema": {"type": "foo"}}, "json_schema: cannot be compiled: Invalid type: foo"),
        ({"json_schema": {"type": "object", "dependentSchemas": {}}}, "json_schema: cannot be compiled: .*dependentSchemas"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 2}}, "json_schema: cannot be compiled: Unsatisfiable"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "json_schema: cannot be compiled: .*nowhere"),
        ({"regex": "[^\\x00-\\U0010ffff]"}, "regex: no text of this model's tokens has this form"),
        ({"grammar": "start: A\nA: /[ab]/ & /c/\n"}, "grammar: no text of this model's tokens has this form"),
        ({"regex": "(" * 5000 + ")" * 5000}, "^regex: cannot be compiled: .{0,600}$"),
    ],
)
def test_what_cannot_be_compiled_is_an_error_before_the_first_token(smollm2, form, words, monkeypatch):
    monkeypatch.setattr(smollm2.runtime, "step", None)  # a step would fail in another way
    with smollm2.session() as session:
        for call in (
            lambda: smollm2.generate(PROMPT, **form),
            lambda: smollm2.generate([PROMPT, PROMPT], **form),
            lambda: smollm2.stream(PROMPT, **form),
            lambda: smollm2.chat(PROMPT, **form),
            lambda: session.generate(PROMPT, **form),
        ):
            with pytest.raises(ValueError, match=words):
                call()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_dead_ends(smollm2, temperature):
    (x,) = smollm2.tokenizer.encode("x")
    own = {"grammar": DEAD, "temperature": temperature, "seed": 1}
    with pytest.raises(NumaInferError, match="grammar: no token can continue this answer"):
        smollm2.generate(PROMPT, logit_bias={x: 100.0}, **own)
    params = [SamplingParams(logit_bias={x: sign * 100.0}, **own) for sign in (1, -1)]
    bad, good = smollm2.generate([PROMPT, PROMPT], params)
    assert isinstance(bad.error, NumaInferError) and bad.finish_reason == "error" and bad.text == "x"
    assert (good.text, good.finish_reason) == ("z", "stop")


def test_nothing_left_but_minus_infinity(smollm2):
    def none(ids, logits):
        return np.full_like(logits, -np.inf)

    with pytest.raises(NumaInferError, match="all that the answer's form allows are -inf"):
        smollm2.generate(PROMPT, choice=["a"], temperature=1.0, logits_processor=none)


def test_a_token_that_is_not_allowed_is_refused(smollm2):
    form = make_form(smollm2.tokenizer, smollm2.n_vocab, SamplingParams(choice=["a"]), {2})
    with pytest.raises(NumaInferError, match="choice: token 900 is not allowed here"):
        form.accept(900)


def test_what_fails_in_the_other_thread_is_told(smollm2):
    form = make_form(smollm2.tokenizer, smollm2.n_vocab, SamplingParams(regex="[a-z]*"), {2})
    form._allow_ends = lambda: 1 / 0
    form.accept(smollm2.tokenizer.encode("a")[0])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            form.mask()


def test_without_the_package(smollm2, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert smollm2.generate(PROMPT, max_tokens=1).token_ids
    params = SamplingParams(regex="a")  # asking for one needs no package
    for call in (lambda: smollm2.generate(PROMPT, params), lambda: smollm2.generate([PROMPT], params)):
        with pytest.raises(ImportError, match=r"^regex: needs the package llguidance .*pip install 'numainfer\[grammar\]'"):
            call()


def threads():
    return [t for t in threading.enumerate() if t.name == "numainfer-masks"]


def test_threads_are_few_and_end_with_the_model(tiny_path):
    gc.collect()
    before = len(threads())
    with ni.load(tiny_path) as model:
        counts = []
        for i in range(5):
            model.generate("x", regex=f"[a-z]{{{i + 1}}}", temperature=1.0)
            counts.append(len(threads()) - before)
    assert len(set(counts)) == 1 and 1 <= counts[0] <= 4
    del model
    gc.collect()
    assert len(threads()) == before


# ---- chat ------------------------------------------------------------------------------------------------------------


class Answer:
    """As pydantic's classes are."""

    @classmethod
    def model_json_schema(cls):
        return {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"], "additionalProperties": False}


@pytest.mark.parametrize("given", [
    Answer, Answer.model_json_schema(), {"type": "json_schema", "json_schema": {"name": "a", "schema": Answer.model_json_schema()}},
])  # fmt: skip
def test_response_format(smollm2, given):
    messages = [{"role": "user", "content": "Is water wet?"}]
    with smollm2.session() as session:
        done = [
            smollm2.chat(messages, response_format=given),
            *smollm2.chat([messages, messages], response_format=given),
            smollm2.chat(messages, response_format=given, stream=True).finish(),
            session.chat(messages, response_format=given),
            session.chat(messages, response_format=given, stream=True).finish(),
            smollm2.chat(messages, json_schema=given if isinstance(given, type) else Answer),
        ]
    assert len({d.token_ids for d in done}) == 1 and list(json.loads(done[0].text)) == ["yes"]


def test_response_format_of_any_object(smollm2):
    done = smollm2.chat("Name a colour.", response_format={"type": "json_object"}, max_tokens=200, temperature=0.8, seed=4)
    assert done.text.startswith("{") and (done.finish_reason == "length" or isinstance(json.loads(done.text), dict))
    assert smollm2.chat("Hi.", response_format={"type": "text"}, max_tokens=4) .text == smollm2.chat("Hi.", max_tokens=4).text


def test_response_format_and_a_form_contradict(smollm2):
    with smollm2.session() as session:
        for chat in (smollm2.chat, session.chat):
            with pytest.raises(ValueError, match="response_format and regex"):
                chat("Hi.", response_format=Answer, regex="a")
            with pytest.raises(ValueError, match="json_schema and regex"):
                chat("Hi.", SamplingParams(regex="a"), response_format=Answer)
            with pytest.raises(TypeError, match="response_format: found int"):
                chat("Hi.", response_format=5)


def test_white_space_is_bounded(smollm2):
    """A model that would write line feeds for ever is led on to the JSON."""
    feed = smollm2.tokenizer.encode("\n")[0]
    done = smollm2.generate(PROMPT, json_schema=PERSON, logit_bias={feed: 100.0}, max_tokens=200)
    assert done.finish_reason == "stop" and is_person(done.text) and "\n" in done.text and "\n\n" not in done.text
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    for options, space in (({}, "\n\t"), ({"whitespace_flexible": False}, ""), ({"whitespace_pattern": "\\t"}, "\t")):
        bias = dict.fromkeys([feed, *smollm2.tokenizer.encode("\t")], 100.0)
        text = smollm2.generate(PROMPT, json_schema=schema | {"x-guidance": options}, logit_bias=bias).text
        assert json.loads(text) == {"a": 1} and set(text) == set(f'{{"a":1}}{space}')
