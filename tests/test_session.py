"""Sessions: reuse of the KV cache must not change a bit."""

import gc
import threading
import weakref

import numpy as np
import pytest

import numainfer as ni

STORY = "Once upon a time, in a small village by the sea, there lived a fisherman who"


def ids_of(model, text):
    return model.tokenizer.encode(text)


def test_continuing_gives_the_same_bits_as_starting_anew(smollm2):
    first = ids_of(smollm2, STORY)
    with smollm2.session() as session:
        a = session.generate(first, max_tokens=12)
        assert a.token_ids == smollm2.generate(first, max_tokens=12).token_ids and a.usage.cached_tokens == 0
        assert session.ids == first + list(a.token_ids) and session.n_past == len(session.ids) - 1
        longer = session.ids + ids_of(smollm2, " And then")
        held = session.n_past
        assert np.array_equal(session.logits(longer), smollm2.logits(longer))
        assert session.n_past == len(longer)
        session.rewind(held)
        b = session.generate(longer, max_tokens=12)
        assert b.usage.cached_tokens == held and b.timings.prompt_tokens == len(longer) - held
        assert b.token_ids == smollm2.generate(longer, max_tokens=12).token_ids


def test_the_same_prompt_again_computes_one_token(smollm2):
    with smollm2.session() as session:
        a = session.generate(STORY, max_tokens=4)
        b = session.generate(STORY, max_tokens=4)
        assert a.token_ids == b.token_ids
        assert b.usage.cached_tokens == b.usage.prompt_tokens - 1 and b.timings.prompt_tokens == 1


def test_a_different_prompt_starts_afresh(smollm2):
    with smollm2.session() as session:
        session.generate(STORY, max_tokens=4)
        done = session.generate("def fibonacci(n):", max_tokens=8)
        assert done.usage.cached_tokens == 0
        assert done.token_ids == smollm2.generate("def fibonacci(n):", max_tokens=8).token_ids


def test_a_shared_beginning_is_computed_once(smollm2):
    questions = [STORY + ending for ending in (" had a dog.", " had a cat.", " was poor.")]
    with smollm2.session() as session:
        done = session.generate(questions, max_tokens=5)
    assert [c.token_ids for c in done] == [c.token_ids for c in smollm2.generate(questions, max_tokens=5)]
    shared = len(ids_of(smollm2, STORY))
    assert done[0].usage.cached_tokens == 0 and all(c.usage.cached_tokens >= shared for c in done[1:])


def test_fork_and_original_go_their_own_ways(smollm2):
    with smollm2.session() as session:
        session.generate(STORY, max_tokens=6)
        at = session.ids
        with session.fork() as twin:
            assert twin.ids == at and twin.n_past == session.n_past
            left, right = at + ids_of(smollm2, " was happy"), at + ids_of(smollm2, " was sad because")
            a, b = session.generate(left, max_tokens=6), twin.generate(right, max_tokens=6)
            assert min(a.usage.cached_tokens, b.usage.cached_tokens) >= len(at) - 1
            assert a.token_ids == smollm2.generate(left, max_tokens=6).token_ids
            assert b.token_ids == smollm2.generate(right, max_tokens=6).token_ids
        assert twin.closed and not session.closed
    with smollm2.session() as empty, empty.fork() as twin:
        assert twin.ids == [] and twin.n_past == 0


def test_rewind_forgets_the_end(smollm2):
    with smollm2.session() as session:
        session.generate(STORY, max_tokens=6)
        ids = session.ids
        session.rewind(5)
        assert session.ids == ids[:5] and session.n_past == 5
        done = session.generate(ids[:5] + ids_of(smollm2, " elephant"), max_tokens=6)
        assert done.usage.cached_tokens == 5
        assert done.token_ids == smollm2.generate(ids[:5] + ids_of(smollm2, " elephant"), max_tokens=6).token_ids
        session.rewind(0)
        assert session.ids == [] and session.n_past == 0


@pytest.mark.parametrize("n, error", [(-1, ValueError), (10**6, ValueError), (1.0, TypeError), (True, TypeError)])
def test_rewind_refuses(smollm2, n, error):
    with smollm2.session() as session:
        session.generate(STORY, max_tokens=1)
        with pytest.raises(error, match="^n"):
            session.rewind(n)


def test_a_conversation_reuses_its_history(smollm2):
    messages = [{"role": "user", "content": "My name is Ada. Remember it."}]
    with smollm2.session() as session:
        first = session.chat(messages, max_tokens=20)
        before = session.n_past
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "What is my name?"}]
        second = session.chat(messages, max_tokens=20)
        assert second.token_ids == smollm2.chat(messages, max_tokens=20).token_ids
        assert second.usage.cached_tokens >= before - 2  # the answer's text may be cut into other tokens at its end
        stream = session.chat(messages, max_tokens=20, stream=True)
        assert "".join(c.text for c in stream) == second.text
        assert not session.closed


def test_logits_of_all_positions_in_a_session(smollm2):
    ids = ids_of(smollm2, STORY)
    with smollm2.session() as session:
        session.generate(ids, max_tokens=3)
        assert np.array_equal(session.logits(ids, all=True), smollm2.logits(ids, all=True))
        assert session.n_past == len(ids)


def test_a_new_call_ends_the_stream_before(smollm2):
    with smollm2.session() as session:
        stream = session.stream(STORY, max_tokens=50)
        for _ in range(3):
            next(stream)
        done = session.generate(STORY, max_tokens=8)
        assert done.token_ids == smollm2.generate(STORY, max_tokens=8).token_ids
        assert stream.result().finish_reason == "cancelled" and done.token_ids[:3] == stream.result().token_ids[:3]
        assert session.ids == ids_of(smollm2, STORY) + list(done.token_ids)


def test_an_ended_stream_leaves_its_answer_in_the_session(smollm2):
    with smollm2.session() as session:
        with session.stream(STORY, max_tokens=50) as stream:
            for _ in range(3):
                next(stream)
        kept = stream.result().token_ids
        assert session.ids == ids_of(smollm2, STORY) + list(kept)
        done = session.generate(session.ids, max_tokens=5)
        assert done.token_ids == smollm2.generate(STORY, max_tokens=len(kept) + 5).token_ids[len(kept):]


def test_a_fork_in_the_midst_of_a_stream(smollm2):
    with smollm2.session() as session:
        stream = session.stream(STORY, max_tokens=12)
        for _ in range(4):
            next(stream)
        with session.fork() as twin:
            ids = twin.ids
            assert twin.n_past == len(ids)
            assert twin.generate(ids, max_tokens=3).token_ids == smollm2.generate(ids, max_tokens=3).token_ids
        rest = [i for chunk in stream for i in chunk.token_ids]
        assert rest and stream.result().token_ids == smollm2.generate(STORY, max_tokens=12).token_ids


def test_a_fork_while_another_thread_streams(smollm2):
    """It has as much as was computed when it was asked for, and can be forked itself."""
    with smollm2.session() as session:
        session.generate(STORY, max_tokens=1)
        stream = session.stream(STORY, max_tokens=60, ignore_eos=True)
        thread = threading.Thread(target=stream.finish)
        thread.start()
        forks = [session.fork() for _ in range(10)]
        assert thread.is_alive(), "it was over before: the test says nothing"
        thread.join()
        for fork in forks:
            assert fork.n_past == fork._sequence._cache.n
            fork.fork().close()
            assert fork.generate(STORY, max_tokens=3).token_ids == stream.result().token_ids[:3]
            fork.close()


def test_a_call_from_inside_the_stream_is_refused(smollm2):
    with smollm2.session() as session:
        def meddle(token_ids, logits):
            session.generate("Hello", max_tokens=1)
            return logits

        with pytest.raises(RuntimeError, match="busy"):
            session.generate(STORY, max_tokens=3, logits_processor=meddle)
        assert session.generate(STORY, max_tokens=3).token_ids == smollm2.generate(STORY, max_tokens=3).token_ids


def test_closing(smollm2):
    session = smollm2.session()
    session.generate(STORY, max_tokens=1)
    session.close()
    session.close()
    assert session.closed and "closed" in repr(session)
    for verb in (lambda: session.generate("x"), lambda: session.stream("x"), lambda: session.chat("x"),
                 lambda: session.logits([1]), session.fork, lambda: session.rewind(0)):  # fmt: skip
        with pytest.raises(ni.ModelClosed, match="session"):
            verb()


def test_a_forgotten_session_frees_its_cache(smollm2):
    session = smollm2.session()
    session.generate(STORY, max_tokens=1)
    kv, gone = session._sequence._cache, weakref.ref(session)
    assert kv.n_blocks
    del session
    gc.collect()
    assert gone() is None and not kv.n_blocks
