"""Choosing the tokens of many sequences at once: each gets what it would get alone, whoever shares the step."""

import codecs
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numainfer import _core
from numainfer.errors import NumaInferError
from numainfer.serving.choosing import choose_step
from numainfer.serving.generation import Clock, Generation
from numainfer.serving.params import SamplingParams
from numainfer.serving.sampling import Sampler

N_VOCAB = 70_000  # some of these are more work than one thread does alone
SETTINGS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.95, "seed": 7},
    {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "logprobs": 3},
    {"temperature": 0.9, "min_p": 0.02, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"logit_bias": {5: 3.0, 9: -4.0}, "logprobs": 0, "min_tokens": 4},
    {"temperature": 1.5, "stop": ["ab", "hgh"], "min_tokens": 3},
    {"stop": "zz", "logprobs": 1},
    {"temperature": 1.0, "max_tokens": 5},
    {"temperature": 2.0, "stop_token_ids": list(range(0, N_VOCAB, 9))},
]


class Letters:
    """As much of a tokenizer as an answer needs: token i is a letter, or the half of one character."""

    stop_token_ids = (3,)

    def __init__(self, n_vocab=N_VOCAB):
        self.n_vocab = n_vocab

    def special_parts(self, text):
        return []

    def control_ids(self, texts):
        return frozenset()

    def token_bytes(self, token):
        return ["a", "b", "c", "d", "e", "f", "g", "h", "é", "é"][token % 10].encode()[token % 10 == 9 :][: 2 - (token % 10 == 8)]

    def stream(self, **_):
        return Decoder(self)


class Decoder:
    def __init__(self, tokenizer):
        self.tokenizer, self.utf8 = tokenizer, codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, token):
        return self.utf8.decode(self.tokenizer.token_bytes(token))

    def flush(self):
        return self.utf8.decode(b"", final=True)


def dislike_the_last(token_ids, logits):
    logits[list(token_ids[-2:])] = -np.inf
    return logits


def make(sampling, n_vocab=N_VOCAB, room=1000):
    params = SamplingParams(**{"max_tokens": 12, "seed": 3} | sampling)
    return Generation(Letters(n_vocab), n_vocab, np.array([1, 2, 5], np.int32), params, room)


def rows_of(step, n, n_vocab=N_VOCAB):
    return np.stack([(np.random.default_rng([step, i]).standard_normal(n_vocab) * 4).astype(np.float32) for i in range(n)])


def result(generation):
    done = generation.completion(Clock(), 0)
    return done.text, done.token_ids, done.finish_reason, done.logprobs


@pytest.fixture(scope="module")
def teams():
    made = [_core.Team([0] * n, [0] * n) for n in (1, 2, 5)]
    yield [None, *made]
    for team in made:
        team.close()


@pytest.fixture(scope="module")
def alone():
    """Each setting by itself, a token at a time: results, and the pieces of a stream."""
    found = []
    for i, sampling in enumerate([*SETTINGS, {"temperature": 1.0, "logits_processor": dislike_the_last}]):
        generation, pieces = make(sampling), []
        for step in range(12):
            pieces.append(generation.choose(rows_of(step, len(SETTINGS) + 1)[i]))
            if generation.finish_reason is not None:
                break
        found.append((result(generation), [p for p in pieces if p]))
    return found


def test_company_changes_nothing(teams, alone):
    for team in teams:
        generations = [make(s) for s in [*SETTINGS, {"temperature": 1.0, "logits_processor": dislike_the_last}]]
        for step in range(12):
            logits = rows_of(step, len(generations))
            going = [i for i, g in enumerate(generations) if g.finish_reason is None]
            rows = logits[going]
            before = rows.tobytes()
            assert choose_step(team, [generations[i] for i in going], rows) == [None] * len(going)
            assert rows.tobytes() == before
        assert [result(g) for g in generations] == [wanted for wanted, _ in alone]


def test_the_reasons_and_texts_of_these_settings_differ(alone):
    """What the other tests compare is not all alike."""
    assert {wanted[2] for wanted, _ in alone} == {"stop", "length"} and len({wanted[0] for wanted, _ in alone}) == len(alone)


def test_pieces_add_up_whenever_they_are_taken(alone):
    for i, (wanted, pieces) in enumerate(alone[: len(SETTINGS)]):
        assert "".join(p.text for p in pieces) == wanted[0]
        assert sum((p.token_ids for p in pieces), ()) == wanted[1]
        generation, late = make(SETTINGS[i]), []
        for step in range(len(wanted[1])):
            assert choose_step(None, [generation], rows_of(step, len(SETTINGS) + 1)[i : i + 1]) == [None]
            if step % 3 == 2:
                late.append(generation.take())
        late.append(generation.take())
        late = [p for p in late if p]
        assert "".join(p.text for p in late) == wanted[0] and sum((p.token_ids for p in late), ()) == wanted[1]
        assert late[-1].finish_reason == wanted[2] and generation.take() is None
        if wanted[3] is not None:
            assert sum((p.logprobs for p in late), ()) == wanted[3]


@pytest.mark.parametrize("bad, says", [(np.nan, "token 0: found NaN"), (-np.inf, "token 0: all are -inf")])
def test_an_error_ends_its_row_alone(teams, alone, bad, says):
    def refuse(token_ids, logits):
        raise ZeroDivisionError("of the caller's")

    for team in teams:
        n = len(SETTINGS)
        generations = [make(s) for s in SETTINGS] + [make({"logits_processor": refuse}), make({"temperature": 1.0}), make({})]
        logits = np.concatenate([rows_of(0, n), rows_of(0, 3)])
        logits[-2:] = bad
        logits[-1, 0] = -np.inf
        errors = choose_step(team, generations, logits)
        assert errors[:n] == [None] * n and isinstance(errors[n], ZeroDivisionError)
        assert all(isinstance(e, NumaInferError) and says in str(e) for e in errors[n + 1 :])
        assert [g.token_ids for g in generations[:n]] == [list(wanted[1][:1]) for wanted, _ in alone[:n]]
        assert [(g.token_ids, g.finish_reason) for g in generations[n:]] == [([], None)] * 3


def test_an_error_where_python_looks_at_the_token_ends_its_row_alone():
    generations, logits = [make({}), make({"stop": "zz"}), make({"stop": "zz"})], rows_of(0, 3)
    logits[1, 5] = np.nan
    errors = choose_step(None, generations, logits)
    assert errors[0] is errors[2] is None and isinstance(errors[1], NumaInferError)
    assert [len(g.token_ids) for g in generations] == [1, 0, 1]


def test_a_processors_interrupt_comes_out_as_itself():
    def interrupt(token_ids, logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose_step(None, [make({}), make({"logits_processor": interrupt})], rows_of(0, 2))


def test_more_vocabulary_than_the_tokenizer_has():
    """Padding of the logits is never chosen, wherever the row lies."""
    generations = [make({}, 100), make({"temperature": 1.0, "logits_processor": dislike_the_last}, 100), make({"stop": "q"}, 100)]
    logits = np.zeros((3, 128), np.float32)
    logits[:, 100:], logits[[0, 1, 2], [7, 8, 9]] = np.nan, 50
    assert choose_step(None, generations, logits) == [None] * 3
    assert [g.token_ids for g in generations] == [[7], [8], [9]]


def test_the_team_is_used_in_its_turn_only(teams):
    """Python of a caller's does not run in it: it may wait for other users of the model."""
    log = []

    class Turn:
        def __enter__(self):
            log.append("in")

        def __exit__(self, *_):
            log.append("out")

    def process(token_ids, logits):
        log.append("processor")
        return logits

    many = [make({"temperature": 1.0, "logits_processor": process})] + [make({"temperature": 1.0}) for _ in range(5)]
    assert choose_step(teams[2], many, rows_of(0, 6), turn=Turn) == [None] * 6
    assert log == ["processor", "in", "out"]
    assert choose_step(teams[2], [make({}), make({})], rows_of(0, 2), turn=Turn) == [None] * 2
    assert len(log) == 3, "for so little it is not used"
    assert choose_step(teams[2], [make({"temperature": 1.0}) for _ in range(6)], rows_of(0, 6), turn=Turn) == [None] * 6
    assert log[3:] == ["in", "out"]


# ---- several tokens at once ------------------------------------------------------------------------------------------


SMALL = 50
KINDS = [{"temperature": 1.0}, {}, {"temperature": 1.0, "stop": ["ab", "fe"], "logprobs": 2},
         {"temperature": 1.0, "logits_processor": dislike_the_last}, {"stop_token_ids": [4, 14, 24], "logprobs": 1},
         {"temperature": 0.7, "repetition_penalty": 1.4, "frequency_penalty": 0.5, "top_k": 9}]  # fmt: skip


def model(token_ids):
    """Logits that follow from the tokens, as a model's do."""
    seed = np.random.default_rng([7, *token_ids[-3:]])
    return (seed.standard_normal(SMALL) * 2).astype(np.float32)


def one_by_one(kind, n):
    generation = make(kind, SMALL)
    while len(generation.token_ids) < n and generation.finish_reason is None:
        assert choose_step(None, [generation], model(generation.token_ids)[None]) == [None]
    return generation


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=12, max_size=12), st.booleans())
def test_proposals_change_nothing(plan, shared):
    """Of each step: so many tokens are proposed to the first sequence, of which so many are right; other numbers to the others."""
    generations, wanted = [make(k, SMALL) for k in KINDS], [one_by_one(k, 12) for k in KINDS]
    team = _core.Team([0, 0], [0, 0]) if shared else None
    for most, good in plan:
        going = [i for i, g in enumerate(generations) if g.finish_reason is None]
        if not going:
            break  # after twelve steps at most: a step brings one token at least
        rows, proposals, before = [], [], []
        for i in going:
            have, n, right = list(generations[i].token_ids), (most + i) % 5, (good + i) % 5
            guess = wanted[i].token_ids[len(have) :][: min(n, right)]
            guess += [(t * 7 + 1) % SMALL for t in range(n - len(guess))]
            rows += [model([*have, *guess[:j]]) for j in range(n + 1)]
            proposals.append(np.array(guess, np.int32) if n or i % 2 else None)
            before.append(len(have))
        assert choose_step(team, [generations[i] for i in going], np.stack(rows), proposals) == [None] * len(going)
        for i, had, own in zip(going, before, proposals):
            n, right, made = (most + i) % 5, (good + i) % 5, len(generations[i].token_ids) - had
            assert min(n, right, len(wanted[i].token_ids) - had - 1) < made <= n + 1
    assert [result(g) for g in generations] == [result(w) for w in wanted]
    if team is not None:
        team.close()


def test_an_error_behind_right_proposals_keeps_what_came_before():
    logits = np.zeros((3, SMALL), np.float32)
    logits[0, 7] = logits[1, 8] = 5
    logits[2] = np.nan
    generation = make({}, SMALL)
    (error,) = choose_step(None, [generation], logits, [np.array([7, 8], np.int32)])
    assert generation.token_ids == [7, 8] and generation.finish_reason is None and "output token 2: found NaN" in str(error)


def test_an_error_is_not_gone_on_behind_by_those_that_python_looks_at():
    """Also where the token before it is the one that was proposed in its place."""
    logits = np.zeros((3, SMALL), np.float32)
    logits[0, 7] = logits[2, 8] = 5
    logits[1] = np.nan
    generation = make({"stop": "zz"}, SMALL)
    (error,) = choose_step(None, [generation], logits, [np.array([7, 7], np.int32)])
    assert generation.token_ids == [7] and "output token 1: found NaN" in str(error)


def test_rows_and_proposals_must_fit():
    for n_rows, proposal in ((1, [3]), (3, [3]), (2, None), (0, None)):
        with pytest.raises(ValueError, match="logits: found"):
            choose_step(None, [make({}, SMALL)], np.zeros((n_rows, SMALL), np.float32), [proposal and np.array(proposal, np.int32)])


# ---- Ctrl-C, and other threads ---------------------------------------------------------------------------------------


def say(generation, tokens):
    """Has these tokens chosen."""
    for token in tokens:
        logits = np.zeros((1, SMALL), np.float32)
        logits[0, token] = 5
        assert choose_step(None, [generation], logits) == [None]


@pytest.mark.parametrize("sampling, text", [({}, "éaéb"), ({"stop": ["zz", "ba"]}, "éaéb"), ({"stop": "éb"}, "éa")], ids=str)
def test_ctrl_c_while_text_is_made_loses_nothing(sampling, text, monkeypatch):
    tokens, put, interrupted = [8, 9, 10, 18, 29, 1], Decoder.put, 0
    for at in range(len(tokens)):
        generation, calls = make(sampling | {"max_tokens": 6}, SMALL), []
        say(generation, tokens[:1])
        assert generation.take() is None

        def late(*args, at=at, calls=calls):
            done = put(*args)
            calls.append(done)
            if len(calls) == at + 1:
                raise KeyboardInterrupt  # the decoder has gone on, and nobody has what it gave
            return done

        say(generation, tokens[1:])
        monkeypatch.setattr(Decoder, "put", late)
        try:
            generation.take()
        except KeyboardInterrupt:
            interrupted += 1
        monkeypatch.setattr(Decoder, "put", put)
        assert result(generation)[:2] == (text, tuple(tokens))
    assert interrupted == len(tokens) - 1


@pytest.mark.parametrize("sampling, tokens, text, reason", [
    ({"stop": "bc"}, [0, 1, 2], "a", "stop"),
    ({"stop": ["bcd", "cx"]}, [0, 1, 2, 0, 1, 2, 13], "abca", "stop"),
    ({"stop": "bc", "min_tokens": 3}, [0, 1, 2, 1, 2], "abc", "stop"),  # what stands among the first three is none
    ({"stop": "bc", "min_tokens": 2}, [1, 2, 1, 2], "bc", "stop"),
    ({"stop": "bc", "max_tokens": 3}, [0, 0, 1], "aab", "length"),
    ({"stop": "bc", "stop_token_ids": [12]}, [0, 1, 12], "ab", "stop"),
    ({"stop": "bc", "max_tokens": 2}, [1, 2], "", "stop"),
    ({"stop": "\ufffd", "max_tokens": 2}, [0, 8], "a", "length"),  # half a character at the end: the text knows it, the reason does not
])  # fmt: skip
def test_where_stop_strings_end_an_answer(sampling, tokens, text, reason):
    generation = make(sampling, SMALL)
    for token in tokens:
        assert generation.finish_reason is None
        say(generation, [token])
    assert result(generation)[:3] == (text, tuple(tokens), reason)


def test_another_thread_takes_while_one_chooses():
    generation, taken, seen = make({"temperature": 1.0, "max_tokens": 400, "logprobs": 1}, SMALL), [], []

    def take():
        while not (taken and taken[-1].finish_reason):
            chunk = generation.take()
            if chunk is not None:
                taken.append(chunk)
            seen.append(len(generation.completion(Clock(), 0).token_ids))

    reader = threading.Thread(target=take)
    reader.start()
    while generation.finish_reason is None:
        choose_step(None, [generation], model(generation.token_ids)[None])
    reader.join(20)
    assert not reader.is_alive()
    wanted = result(generation)
    assert "".join(c.text for c in taken) == wanted[0] and sum((c.token_ids for c in taken), ()) == wanted[1]
    assert sum((c.logprobs for c in taken), ()) == wanted[3] and seen == sorted(seen)


def test_text_that_another_thread_has_brought_further_is_not_told_twice():
    """Between a look at the reason and one at the text, an answer may have gone on, and somebody else may have asked for all of it."""
    generation = make({"temperature": 1.0, "max_tokens": 6}, SMALL)
    while generation.finish_reason is None:
        choose_step(None, [generation], model(generation.token_ids)[None])
    wanted, core = result(generation), generation.sampler.core
    rest, core.finish_reason = generation.token_ids[4:], None  # as it looked two tokens earlier
    del generation.token_ids[4:]
    first = generation.take()
    generation.token_ids.extend(rest)
    core.finish_reason = "length"
    second = generation.take()
    assert first.finish_reason is None and second.finish_reason == "length"
    assert (first.text + second.text, first.token_ids + second.token_ids) == wanted[:2]


def test_a_cancelled_answer_lets_go_what_was_held_back():
    generation = make({"stop": ["aZ"], "max_tokens": None}, SMALL)
    say(generation, [10])  # "a", which may begin the stop string
    assert generation.take() is None
    say(generation, [18])  # half a character is no text
    generation.cancel()
    last = generation.take()
    assert (last.text, last.token_ids, last.finish_reason) == ("a", (10, 18), "cancelled") and generation.take() is None


def test_a_reader_is_not_used_up():
    """Its answer can be read again from the beginning."""

    class Reader:
        marks, n_calls = (), 0

        def __init__(self):
            self.seen = ""

        def feed(self, text):
            from numainfer.text.answers import Found

            self.seen += text
            return Found(text.upper())

        def flush(self):
            from numainfer.text.answers import Found

            return Found(f"<{len(self.seen)}>")

    reader = Reader()
    generation = Generation(Letters(SMALL), SMALL, np.array([1], np.int32), SamplingParams(max_tokens=2), 9, reader)
    say(generation, [10, 1])
    assert generation.take().text == result(generation)[0] == "AB<2>" and reader.seen == ""


# ---- every instruction set --------------------------------------------------------------------------------------------


def test_every_table_gives_the_same_bits():
    used, found = _core.isa(), {}
    try:
        for isa in _core.isa_available():
            _core.isa_select(isa)
            for n in (1, 31, 32, 33, 1000, 4097, N_VOCAB):
                rng = np.random.default_rng(n)
                for logits in (rng.standard_normal(n) * 3, np.round(rng.standard_normal(n)), rng.standard_normal(n) * 1e30 - 5):
                    logits = logits.astype(np.float32)
                    for sampling in ({}, {"temperature": 1.0}, {"temperature": 0.3, "top_p": 0.97}, {"temperature": 3.0, "top_k": 30}):
                        sampler = Sampler(SamplingParams(seed=5, logprobs=4, **sampling), n)
                        got = [sampler.sample(logits) for _ in range(3)], *(x.tobytes() for x in sampler.distribution(logits))
                        key = n, logits.tobytes(), str(sampling)
                        assert found.setdefault(key, got) == got, (isa, n, sampling)
    finally:
        _core.isa_select(used)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_what_workers_keep_is_what_is_counted():
    """Flat logits have many candidates, and masks want a copy: that memory goes back at the end of the step."""
    n_vocab, n = 300_032, 6

    def held():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    team = _core.Team([0, 0, 0], [0, 0, 0])
    own = _core.SampleScratch(n_vocab)
    cores = [Sampler(SamplingParams(temperature=1.0, top_p=0.99, seed=i), n_vocab).core for i in range(n)]
    mask, logits = np.full(n_vocab // 32, 0xFFFFFFFF, np.uint32), np.zeros((n, n_vocab), np.float32)
    logits += 1  # its pages are there
    scratches = [_core.SampleScratch(n_vocab, 3) for _ in range(6)]
    before = held()
    for team.scratch in scratches:
        assert _core.choose(team, own, cores, logits, range(n), None, dict.fromkeys(range(n), (None, mask))) == [None] * n
    grown, counted = held() - before, sum(scratch.bytes for scratch in scratches)
    assert grown < counted + (2 << 20) < 6 * 3 * 4 * n_vocab, "less than one array of floats for each worker"
    team.close()
