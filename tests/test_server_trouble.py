"""Clients that break off, stall, send garbage or half a request: no error of ours, no leak, nobody else held up."""

import contextlib
import gc
import json
import random
import signal
import socket
import threading
import time

import pytest
from server_tools import chat_request, events, eventually, open_files, raw_post, serving

import numainfer as ni

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
FOREVER = {"max_tokens": 40_000, "ignore_eos": True, "temperature": 1, "seed": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with a long context: an answer that fills it takes many seconds."""
    from tiny_models import tiny

    with ni.load(tiny(tmp_path_factory.mktemp("long"), context=100_000), n_ctx=50_000) as found:
        yield found


@pytest.fixture
def served(model, caplog):
    """A server that must have nothing to complain of, and must leave nothing."""
    with serving(model, stall=2) as found:
        served_before(found)
        yield found
        assert found.idle()
        assert eventually(lambda: not in_use(model))
    assert not caplog.records, caplog.text


def served_before(served):
    """One request, so that threads and files that stay are there."""
    assert served.ask(CHAT, chat_request(max_tokens=1))[0] == 200


def in_use(model):
    """Sequences that hold KV memory."""
    return [cache for cache in list(model.runtime.engine.caches.alive) if not cache.closed and cache.n_blocks]


def begun(sock):
    """Read until an event of a stream has come."""
    got = b""
    while b"data: " not in got.partition(b"\r\n\r\n")[2]:
        part = sock.recv(65536)
        assert part, got
        got += part
    return got


def reset(sock):
    """Close a socket so that the other side gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
@pytest.mark.parametrize("stream", [True, False])
def test_who_breaks_off_frees_his_sequence_at_once(served, model, how, stream):
    sock = served.connect()
    sock.sendall(raw_post(CHAT, chat_request(stream=stream) | FOREVER))
    if stream:
        begun(sock)
    assert eventually(lambda: in_use(model) and served.metric("numainfer_running") == (1 if stream else served.metric("numainfer_running")))
    start = time.monotonic()
    if how == "reset":
        reset(sock)
    elif how == "close":
        sock.close()
    else:
        sock.shutdown(socket.SHUT_WR)
    assert eventually(lambda: not in_use(model), 2)
    assert time.monotonic() - start < 1  # 50 ms on a machine that does nothing else
    sock.close()
    assert eventually(lambda: served.metric('numainfer_requests_total{path="/v1/chat/completions",status="499"}') == 1)


def test_who_leaves_while_his_prompt_is_read_is_not_waited_for(served, model):
    sock = served.connect()
    sock.sendall(raw_post(TEXT, {"prompt": [5] * 40_000, "max_tokens": 1}))
    assert eventually(lambda: in_use(model))
    start = time.monotonic()
    sock.close()
    assert eventually(lambda: not in_use(model), 2) and time.monotonic() - start < 1


def test_a_reader_who_stalls_holds_up_nobody_and_is_not_run_away_from(served, model):
    """His answer stops where buffers are full, and his sequence is freed at the limit."""
    sock = served.connect()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(raw_post(TEXT, {"prompt": "a", "stream": True, "logprobs": 20, "n": 4} | FOREVER))
    begun(sock)
    for _ in range(5):
        start = time.monotonic()
        assert served.ask(CHAT, chat_request(max_tokens=10))[0] == 200
        assert time.monotonic() - start < 2
    assert eventually(lambda: len(served.server.service.answers) == 4)  # it is theirs alone
    assert eventually(lambda: not in_use(model), 30)  # buffers are full, and 2 s later it is cut off
    sock.close()


def test_a_long_prompt_holds_up_nobody_while_it_is_tokenized(served):
    waits = []
    sock = served.connect()
    sock.sendall(raw_post(TEXT, {"prompt": "the rain in Spain " * 100_000, "max_tokens": 1}))
    sock.setblocking(False)
    while True:
        start = time.monotonic()
        assert served.ask(CHAT, chat_request(max_tokens=2))[0] == 200
        waits.append(time.monotonic() - start)
        with contextlib.suppress(BlockingIOError):
            assert b"context holds" in sock.recv(65536)
            break
    sock.close()
    assert max(waits) < 1 and len(waits) > 2


def test_a_slow_reader_gets_all_of_it(served, model):
    sock = served.connect()
    sock.sendall(raw_post(CHAT, chat_request(stream=True, max_tokens=300, ignore_eos=True, temperature=1, seed=3)))
    got = b""
    while b"[DONE]" not in got:
        got += sock.recv(700)
        time.sleep(0.002)
    sock.close()
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events(dechunked(got)) if e != "[DONE]")
    messages = chat_request()["messages"]
    assert text == model.chat(messages, ni.SamplingParams(max_tokens=300, ignore_eos=True, temperature=1, seed=3)).text


def dechunked(raw):
    """The body of a response in chunks, as text."""
    rest, body = raw.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        if int(size, 16) == 0:
            break
    return body.decode()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GARBAGE = [
    b"", b"\r\n\r\n", b"GET", b"\x00" * 100, b"\xff\xfe\xfd", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", HEAD, HEAD + b"Content-Length: -5\r\n\r\n",
    HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{", HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20000 + b"\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    raw_post(CHAT, b"{"), raw_post(CHAT, b"{}", 1000), raw_post(CHAT, b"\xff" * 50), raw_post(CHAT, chat_request(n=-1)),
    raw_post(CHAT, chat_request(max_tokens=1)) * 5,  # one behind the other
    raw_post(CHAT, chat_request(max_tokens=3, stream=True)) + b"garbage",
]  # fmt: skip


def test_garbage_is_answered_or_dropped(served):
    for raw in GARBAGE:
        with contextlib.suppress(ConnectionError), served.connect() as sock:
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(20)
            got = b""
            while part := sock.recv(65536):
                got += part
            assert got[:9] in (b"", b"HTTP/1.1 "), raw[:80]
            assert not got.startswith(b"HTTP/1.1 500"), raw[:80]
        assert served.ask("/health")[0] == 200


def test_mutated_requests_never_fail_in_us(served):
    """Any bytes of a good request changed, cut or doubled: an answer or a refusal, never a 500."""
    rng = random.Random(1)
    good = raw_post(CHAT, chat_request(max_tokens=2, stop=["x"], n=2, tools=None, logprobs=True, top_logprobs=2, logit_bias={"5": 1}))
    for i in range(150):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw))
            kind = rng.randrange(3)
            if kind == 0:
                raw[at] = rng.randrange(256)
            elif kind == 1:
                del raw[at : at + rng.randint(1, 20)]
            else:
                raw[at:at] = raw[rng.randrange(len(raw)) :][: rng.randint(1, 20)]
        with contextlib.suppress(ConnectionError), served.connect() as sock:
            sock.sendall(bytes(raw))
            sock.shutdown(socket.SHUT_WR)
            got = sock.recv(65536)
            assert not got.startswith(b"HTTP/1.1 5"), (i, bytes(raw), got)
    assert served.ask(CHAT, chat_request(max_tokens=1))[0] == 200


def test_mutated_json_never_fails_in_us(served):
    """Any value of a request replaced by a value of another kind."""
    strange = [None, True, 0, -1, 1.5, 1e308, 10**40, "", "x", "\ud800", [], [[]], [None], {}, {"a": {}}, [1, "a"]]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    good = chat_request(max_tokens=1, stop=["x"], n=1, logprobs=True, top_logprobs=2, logit_bias={"5": 1}, tools=[tool], tool_choice="none",
                        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}, stream_options=None,
                        chat_template_kwargs={}, parallel_tool_calls=True, seed=1, top_p=1, user="me")  # fmt: skip
    rng = random.Random(2)
    for i in range(250):
        body = json.loads(json.dumps(good))
        for _ in range(rng.randint(1, 3)):
            here, key = body, rng.choice(list(body))
            while isinstance(here[key], (dict, list)) and here[key] and rng.random() < 0.7:
                here = here[key]
                key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
            here[key] = rng.choice(strange)
        if isinstance(body.get("n"), int) and body["n"] > 4 or body.get("max_tokens") is None:
            body |= {"n": 1, "max_tokens": 1}
        status, _, reply = served.ask(rng.choice([CHAT, TEXT, "/v1/embeddings"]), body)
        assert status in (200, 400, 404), (i, body, reply)


def test_half_a_request_is_given_up(model, caplog):
    with serving(model, stall=1) as served:
        socks = [served.connect() for _ in range(5)]
        for sock in socks:
            sock.sendall(raw_post(CHAT, b'{"messages"', 500))
        assert served.ask(CHAT, chat_request(max_tokens=1))[0] == 200
        for sock in socks:
            sock.settimeout(10)
            assert sock.recv(65536).startswith(b"HTTP/1.1 408")
            sock.close()
    assert not caplog.records


def trickle(sock, data):
    """Send a byte now and then, until the other side has had enough; the seconds that took."""
    start = time.monotonic()
    sock.settimeout(0.1)
    for i in range(150):
        with contextlib.suppress(TimeoutError):
            sock.sendall(data[i : i + 1])
            if not sock.recv(65536):
                break
    return time.monotonic() - start


def health(sock):
    """A whole request, whose connection is kept."""
    sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    got = b""
    while b"ok" not in got.partition(b"\r\n\r\n")[2]:
        part = sock.recv(65536)
        assert part, got
        got += part


def test_who_sends_nothing_or_a_byte_now_and_then_is_given_up(model, caplog):
    """Before a request, after one, in its head, and behind an answer that came before the body; connections that are kept stay."""
    head, found = HEAD + b"X: " + b"a" * 1000, {}
    with serving(model, stall=1, api_key="k") as served:
        kept, again = served.connect(), served.connect()
        for sock in (kept, again):
            health(sock)
        refused = served.connect()
        refused.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        got = b""
        while b"}}" not in got:
            got += refused.recv(65536)
        assert got.startswith(b"HTTP/1.1 401")
        sent = {served.connect(): b"", served.connect(): head, again: head, refused: b" " * 1000}

        def send(sock, data):
            with contextlib.suppress(ConnectionError):
                found[sock] = trickle(sock, data)

        threads = [threading.Thread(target=send, args=one) for one in sent.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert all(0.7 < seconds < 5 for seconds in found.values()), found
        assert len(served.server._uvicorn.server_state.connections) == 1
        health(kept)  # more than a second later
        for sock in (kept, *sent):
            sock.close()
    assert not caplog.records


def test_32_streams_while_others_come_break_off_stall_and_send_garbage(served, model):
    """The streams are complete and right, and afterwards there are as many threads, files and blocks as before."""
    expected = model.generate("a", ni.SamplingParams(max_tokens=40, ignore_eos=True, temperature=1, seed=1)).text
    gc.collect()
    threads, files, stop, problems = threading.active_count(), open_files(), threading.Event(), []

    def stream():
        status, _, text = served.ask(TEXT, {"prompt": "a", "stream": True} | FOREVER | {"max_tokens": 40})
        found = events(text)
        if status != 200 or found[-1] != "[DONE]" or "".join(e["choices"][0]["text"] for e in found[:-1]) != expected:
            problems.append((status, text[-300:]))

    def disturb(seed):
        rng, kept = random.Random(seed), []
        while not stop.is_set():
            sock = served.connect()
            with contextlib.suppress(OSError):
                kind = rng.randrange(5)
                if kind == 0:
                    sock.sendall(rng.choice(GARBAGE))
                elif kind == 1:
                    sock.sendall(raw_post(CHAT, chat_request(stream=True) | FOREVER))
                    begun(sock)
                    reset(sock)
                elif kind == 2:
                    sock.sendall(raw_post(CHAT, chat_request() | FOREVER))
                    time.sleep(0.01)
                elif kind == 3:
                    sock.sendall(raw_post(CHAT, chat_request(stream=True) | FOREVER))
                    kept.append(sock)  # it stalls
                    continue
                else:
                    sock.sendall(raw_post(CHAT, chat_request())[: rng.randrange(200)])
            sock.close()
            time.sleep(0.02)
            if len(kept) > 4:
                kept.pop(0).close()
        for sock in kept:
            sock.close()

    disturbers = [threading.Thread(target=disturb, args=(i,)) for i in range(3)]
    streams = [threading.Thread(target=stream) for _ in range(32)]
    for thread in [*disturbers, *streams]:
        thread.start()
    for thread in streams:
        thread.join(120)
        assert not thread.is_alive()
    stop.set()
    for thread in disturbers:
        thread.join(30)
        assert not thread.is_alive()
    assert problems == []
    assert served.idle() and eventually(lambda: not in_use(model))
    gc.collect()
    # asyncio's pool of threads, which tokenizes, may have grown to its size
    assert eventually(lambda: threading.active_count() <= threads + 8 and open_files() <= files + 2), (threading.enumerate(), files)


def test_the_end_lets_answers_finish_and_takes_no_new_ones(model, caplog):
    with serving(model, grace=20) as served:
        sock = served.connect()
        idle = served.connect()
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        sock.sendall(raw_post(TEXT, {"prompt": "a", "stream": True} | FOREVER | {"max_tokens": 2000}))
        got = begun(sock)
        served.server.end()
        assert eventually(lambda: served.server.service.ending)
        with pytest.raises(OSError):  # nobody listens any more; who is connected is sent away
            while True:
                with served.connect() as late:
                    late.sendall(raw_post(TEXT, {"prompt": "a"}))
                    assert late.recv(65536).startswith((b"HTTP/1.1 503", b""))
                time.sleep(0.05)
        while b"[DONE]" not in got:
            part = sock.recv(65536)
            assert part
            got += part
        assert len(events(dechunked(got))) > 100
        idle.close()
        sock.close()
    assert not caplog.records


@pytest.mark.parametrize("stream", [True, False])
def test_the_end_cuts_what_takes_longer_than_its_grace(model, stream):
    with serving(model, grace=1) as served:
        sock = served.connect()
        sock.sendall(raw_post(TEXT, {"prompt": "a", "stream": stream} | FOREVER))
        assert eventually(lambda: served.server.service.answers and in_use(model))
        served.server.end()
        start, got = time.monotonic(), b""
        while part := sock.recv(65536):
            got += part
        assert 0.5 < time.monotonic() - start < 5 and b"shutting_down" in got
        assert stream or got.startswith(b"HTTP/1.1 503")
        sock.close()
    assert not in_use(model)


def test_signals_are_pythons_own_again(model):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with serving(model):
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
