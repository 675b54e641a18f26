"""What a notebook shows of each object."""

import copy
import html.parser
import math
import pickle
import subprocess
import sys
import time
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from api_tools import forced

import numainfer as ni
from numainfer import looks
from numainfer.machine.placement import NodePlacement, Placement
from numainfer.machine.topology import Node, Topology
from numainfer.progress import progress_bar

matplotlib.use("Agg")
JOINER = "\u2060"


class Tags(html.parser.HTMLParser):
    """Tags that are closed in order; the text outside of them all."""

    def __init__(self, markup):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        assert not any(name.startswith("on") for name, _ in attributes)
        styles = [part.split(":")[0].strip() for name, value in attributes if name == "style" for part in value.split(";")]
        assert "color" not in styles  # the theme's
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def completion(text, reason="stop", **more):
    return ni.Completion(text, (1, 2, 3), reason, None, ni.Usage(4, 3), ni.Timings(4, 0.1, 2, 0.05, 0.1), **more)


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_markdown_and_a_quiet_line():
    shown = completion("| a | b |\n|---|---|\n| 1 | **2** |")._repr_markdown_()
    assert shown.startswith("| a | b |\n|---|---|\n| 1 | **2** |\n\n") and shown.endswith(">3 tokens · 40.0 tokens/s · stop</small>")
    assert "(no text)" in completion(" ")._repr_markdown_()
    error = completion("", "error", error=ValueError("<b>bad</b>\n![x](y)"))._repr_markdown_()
    assert f"error: ValueError: &lt;b&gt;bad&lt;/b&gt; !{JOINER}[x](y)</small>" in error
    assert not hasattr(completion("x"), "_repr_html_")  # notebooks would prefer it


NASTY = "a\n\n</details><b>\t![x](y) `$x$ \\(y\\) | ~~~\n```\n# *c*_d_ &lt; é \u2028\"'"


def test_thinking_is_folded_and_calls_are_readable():
    shown = completion("So.", reasoning="Hm.\n\nIt is <b>.\n", tool_calls=(ni.ToolCall("1", "f", {"n": 1, "s": "é"}),))._repr_markdown_()
    thoughts, text, call, line = shown.split("\n\n")
    assert text == "So." and line.startswith("<small") and "<details>" in thoughts and "open" not in thoughts
    assert Tags(thoughts).text == "thinking, 4 wordsHm.\n\nIt is <b>." and Tags(call).text == 'calls f(n=1, s="é")'
    assert "thinking" not in completion("x", reasoning=" \n")._repr_markdown_()
    assert completion("", None, reasoning="Hm")._repr_markdown_().startswith("<details open>")
    for later in (completion("x", None, reasoning="Hm"), completion("", reasoning="Hm"), completion("x", reasoning="Hm")):
        assert later._repr_markdown_().startswith("<details><summary") and "(no text)" not in later._repr_markdown_()
    only = completion("", reasoning=None, tool_calls=(ni.ToolCall("1", "f", {}),))
    assert only._repr_markdown_().startswith("<div>calls <code>f()") and "calls f()" in ni.Completions([only])._repr_html_()
    long = completion("", tool_calls=(ni.ToolCall("1", "f", {"code": "x = 1\n" * 99, "n": {"a": 2}}),))
    shown, line = long._repr_markdown_().split("\n\n")
    assert shown.startswith("<details><summary") and Tags(shown).text == "calls f(…)code = " + "x = 1\n" * 99 + '\nn = {\n  "a": 2\n}'
    assert "…" in ni.Completions([long])._repr_html_()
    assert long.tool_calls[0]._repr_markdown_() == shown
    assert ni.ToolCall("1", "f", {"n": 1})._repr_markdown_().startswith("<div>calls <code>f(")
    cut = ni.Completions([completion("", "length", reasoning="Hm, so"), completion("", reasoning="Hm", tool_calls=only.tool_calls)])
    assert "(thinking, 2 words)" in cut._repr_html_() and "(thinking, 1 word)\ncalls f()" in cut._repr_html_()


def test_usage_and_timings_are_small_tables():
    usage = Tags(ni.Usage(40, 1, 16)._repr_html_())
    assert "prompt40 tokens, 16 of them foundanswer1 token" in usage.text and "found" not in ni.Usage(4, 1)._repr_html_()
    timings = Tags(ni.Timings(4, 0.1, 2, 0.05, 0.1234, "latency", 6, 3)._repr_html_())
    assert timings.text == ("Timingsfirst tokenafter 0.123 sprompt4 tokens in 0.100 s, 40.0 tokens/s"
                            "after the first2 tokens in 0.050 s, 40.0 tokens/smodelatencyproposed6, accepted 3")  # fmt: skip
    none = Tags(ni.Timings(0, 0.0, 0, 0.0, None)._repr_html_())
    assert none.text == "Timingsfirst tokennoneprompt0 tokens in 0.000 safter the first0 tokens in 0.000 s"


def test_thinking_and_calls_say_what_they_say_and_do_nothing():
    """Whatever they hold is one line of HTML without a mark of Markdown or mathematics."""
    calls = tuple(ni.ToolCall("1", "f", {NASTY: [value]}) for value in (NASTY, NASTY * 20))
    shown = completion("So.", reasoning=NASTY, tool_calls=calls)._repr_markdown_()
    thoughts, text, *lines, _ = shown.split("\n\n")
    assert text == "So." and len(lines) == 2 and not any(mark in "".join((thoughts, *lines)) for mark in "\n\t`$\\*[]|~\u2028")
    assert NASTY in Tags(thoughts).text and NASTY in Tags(lines[0]).text and NASTY in Tags(lines[1]).text
    assert set(Tags("".join((thoughts, *lines))).seen) == {"details", "summary", "div", "code", "pre"}


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a <b>", "</b>", "<!-- -->", "<?x?>", "![x](http://x/y.png)", "`<b>`"])
def test_markup_of_a_model_is_shown_and_not_obeyed(text):
    shown = looks.markdown(text)
    assert shown != text and shown.replace(JOINER, "") == text
    assert not looks._RAW.search(shown)


CODE = "```python\nif a < b: x[0]; print('<b>', vec![1])\n```"


def test_code_can_be_copied():
    assert looks.markdown(f"So:\n\n{CODE}\n\nDone: 1 < 2") == f"So:\n\n{CODE}\n\nDone: 1 < 2"
    assert looks.markdown(f"{CODE}\n<b>\n{CODE}") == f"{CODE}\n<{JOINER}b>\n{CODE}"
    assert looks.markdown("~~~~\n<b>\n~~~\n")[5:8] == "<b>"


def test_an_open_fence_is_closed_before_the_line():
    """An answer that was cut."""
    assert completion("````\n<b>")._repr_markdown_().startswith("````\n<b>\n````\n\n<small")


@pytest.mark.parametrize("text", [
    "```\nx\n```~~~\n{}",  # a closing fence for some
    "```\nx\n    ```\n{}\n```\n{}",
    "- a\n  ```\n  x\n```\n{}",  # opened in an item, closed outside
    "> ```\n> x\n```\n{}",
    "$$\n```\n$$\n{}",  # mathematics is taken out first
    "`a ``` b`\n```\n{}",
    "``` a`b\n{}",
    "```\r\n```\r{}\r```",
    "```\nx $\n```\ny $\n```\n{}",
])  # fmt: skip
def test_what_may_be_no_code_counts_as_none(text):
    shown = looks.markdown(text.replace("{}", "<script>"))
    assert f"<{JOINER}script>" in shown
    if text.count("{}") == 1 and "\r" not in text:
        assert "<script>" not in shown


def test_a_list_of_answers_is_a_list_and_a_table(tiny_model):
    done = tiny_model.generate([[5], [6]], max_tokens=3)
    assert type(done) is ni.Completions and isinstance(done, list) and done == list(done)
    for other in (pickle.loads(pickle.dumps(done)), copy.deepcopy(done)):
        assert type(other) is ni.Completions and other == done
    with tiny_model.session() as session:
        assert type(session.generate([[5], [6]], max_tokens=3)) is ni.Completions
    shown = ni.Completions([completion("<i>x</i>"), completion("y" * 1000, None), completion("", "error", error=ValueError("bad"))])
    tags = Tags(shown._repr_html_())
    assert tags.seen.count("tr") == 4 and "i" not in tags.seen and "<i>x</i>" in tags.text
    assert "y" * 300 + "…" in tags.text and "y" * 301 not in tags.text and "ValueError: bad" in tags.text and "unfinished" in tags.text
    many = Tags(ni.Completions([completion(f"text {i}.") for i in range(60)])._repr_html_())
    assert "text 49." in many.text and "text 50." not in many.text and "… and 10 more answers" in many.text
    assert Tags(ni.Completions()._repr_html_()).seen.count("tr") == 1


def test_an_interrupted_list_keeps_its_form():
    error = pickle.loads(pickle.dumps(ni.Interrupted("x", ni.Completions([completion("a")]))))
    assert type(error.completions) is ni.Completions
    assert ni.Interrupted("x", iter([1])).completions == [1]


def test_logprobs_are_a_tuple_and_a_table(tiny_model):
    done = tiny_model.generate([5, 6], max_tokens=3, logprobs=2)
    found = done.logprobs
    assert type(found) is ni.Logprobs and found == tuple(found) and type(pickle.loads(pickle.dumps(found))) is ni.Logprobs
    assert done.to_dict()["logprobs"][0]["top"]
    tags = Tags(found._repr_html_())
    assert tags.seen.count("tr") == 4 and tags.seen.count("span") == 9 and f"{math.exp(found[0].logprob):.1%}" in tags.text
    single = ni.Logprob(1, " <b>\n", math.log(0.5), 1)
    assert "<td>-0.693</td>" in single._repr_html_() and "&lt;b&gt;\n 50.0%" in single._repr_html_() and "0.38" in single._repr_html_()
    assert "␣⏎" in ni.Logprob(1, " \n", 0.0, 1)._repr_html_()
    with tiny_model.stream([5, 6], max_tokens=3, logprobs=0) as stream:
        assert all(type(chunk.logprobs) is ni.Logprobs for chunk in stream)


def test_a_score_shades_the_text(smollm2):
    text = "Ein Käse ☃ <b>"
    score = smollm2.score(text)
    assert len(score.texts) == len(score.token_ids) and "".join(score.texts) == text and "" in score.texts
    tags = Tags(score._repr_html_())
    assert text in tags.text and "b" not in tags.seen and "perplexity" in tags.text
    assert tags.seen.count("span") == sum(map(bool, score.texts[1:]))
    shown = ni.Score(np.arange(4), np.log([0.5, 0.5, 1.0]), ("a", "", "b", "c"))._repr_html_()
    assert 'title="25.00%" style="background:rgba(228,87,86,0.56)">b<' in shown and 'title="100.00%"' in shown and "0.00)" in shown
    assert Tags(ni.Score(np.arange(2), np.zeros(1))._repr_html_()).seen == ["p"]
    long = Tags(ni.Score(np.arange(2500), np.zeros(2499), tuple("x" * 2500))._repr_html_())
    assert long.text.count("x") == 2000 + "perplexity".count("x") and "500 more tokens" in long.text


# ---- a model and its parts -------------------------------------------------------------------------------------------


def test_parameters_show_what_differs():
    assert repr(ni.SamplingParams()) == "SamplingParams()"
    params = ni.SamplingParams(temperature=0.5, stop=["<b>"])
    assert repr(params) == "SamplingParams(temperature=0.5, stop=('<b>',))"
    assert eval(repr(params), {"SamplingParams": ni.SamplingParams}) == params
    tags = Tags(params._repr_html_())
    assert tags.seen.count("tr") == 2 and "<b>" in tags.text and "max_tokens" not in tags.text
    assert "the defaults" in ni.SamplingParams()._repr_html_()


def test_config_session_stream_and_model(tiny_model):
    config = Tags(tiny_model.config._repr_html_())
    assert tiny_model.config.architecture in config.text and "Q8_0" in config.text and "block_count" in config.text
    session = tiny_model.session()
    session.generate([5, 6, 7], max_tokens=4, ignore_eos=True)
    shown = Tags(session._repr_html_())
    assert shown.seen[:2] == ["details", "summary"] and "7 tokens, 6 of them in the KV cache" in shown.text
    session.close()
    assert "(closed)" in session._repr_html_()
    stream = tiny_model.stream([5], **forced(tiny_model, "ab" * 20))
    next(stream)
    assert "unfinished" in stream._repr_markdown_()
    assert "stop" in stream.finish()._repr_markdown_() or "length" in stream._repr_markdown_()
    assert {"table", "div"} <= set(Tags(tiny_model._repr_html_()).seen)
    tiny_model.close()
    assert "closed" in Tags(tiny_model._repr_html_()).text


def test_plan_and_bench(tiny_model):
    plan = tiny_model.plan
    tags = Tags(plan._repr_html_())
    assert tags.seen[:2] == ["details", "summary"] and tags.seen.count("tr") == len(plan.ops) + 1
    lines = str(plan).splitlines()[2:]
    starts = {line.index(op.weights[0].name) for line, op in zip(lines, plan.ops) if op.weights and op.weights[0] is not None}
    assert len(starts) == 1  # in columns
    tags = Tags(ni.bench(tiny_model, 4, 3, 2)._repr_html_())
    assert tags.seen.count("tr") == 3 and "prompt" in tags.text and "decode" in tags.text and "tokens/s" in tags.text


def test_a_stream_is_printed_where_no_notebook_is(tiny_model, capsys):
    stream = tiny_model.stream([5], **forced(tiny_model, "hello there"))
    assert stream.display() is None
    assert capsys.readouterr().out == "hello there\n" and stream.result().text == "hello there"


@pytest.fixture
def notebook(monkeypatch):
    """A notebook's display handle, whose ``update`` a test may set. The real one: tests/test_notebooks.py."""
    handle = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(Markdown=str, display=lambda first, display_id: handle))
    return handle


def test_ctrl_c_while_a_notebook_draws(tiny_model, notebook):
    shown = []

    def update(stream):
        shown.append(stream._repr_markdown_())
        if len(shown) == 1:
            raise KeyboardInterrupt

    notebook.update = update
    stream = tiny_model.stream([5], **forced(tiny_model, "abcd" * 20))
    with pytest.raises(KeyboardInterrupt):
        stream.display()
    assert "unfinished" in shown[0] and "cancelled" in shown[1] and len(shown) == 2
    assert 0 < len(stream.result().text) < 80 and ("abcd" * 20).startswith(stream.result().text)


@pytest.mark.parametrize(("apart", "last_alone"), [(0, False), (1e12, True)])
def test_a_notebook_s_display_is_changed_at_most_so_often(tiny_model, notebook, monkeypatch, capsys, apart, last_alone):
    shown = []
    notebook.update = lambda stream: shown.append(stream._repr_markdown_())
    monkeypatch.setattr("numainfer.stream._REDRAW", apart)
    own = forced(tiny_model, "abcd")
    process = own["logits_processor"]
    stream = tiny_model.stream([5], **own | {"logits_processor": lambda ids, logits: time.sleep(0.02) or process(ids, logits)})
    assert stream.display() is None and capsys.readouterr().out == ""
    assert shown[-1].startswith("abcd\n")
    assert len(set(shown)) == 1 if last_alone else 1 < len(set(shown)) <= len(stream.result().token_ids)


def test_looks_are_loaded_when_something_is_shown():
    code = ("import sys, numainfer as ni; ni.load, ni.SamplingParams(), ni.topology()\n"
            "print([m for m in ('numainfer.looks', 'IPython', 'matplotlib', 'tqdm') if m in sys.modules])")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# ---- the machine -----------------------------------------------------------------------------------------------------

GB = 10**9
TWO = Topology((Node(0, (0, 1), 100 * GB, 60 * GB), Node(3, (2, 3), 100 * GB, 90 * GB)), distances=((10, 21), (21, 10)))
MEASURED = Topology(TWO.nodes, distances=TWO.distances, bandwidth=((100e9, 40e9), (50e9, 100e9)))


def test_topology_shows_bars_and_maps():
    shown = TWO._repr_html_()
    tags = Tags(shown)
    assert "width:40.00%" in shown and "width:10.00%" in shown and "60.0 GB free" in tags.text
    assert "<td" in shown and ">21</td>" in shown and "rgba(228,87,86,0.39)" in shown and "GB/s" not in tags.text  # 0.75 * (1 - 10 / 21)
    tags = Tags(MEASURED._repr_html_())
    assert "40.0" in tags.text and "rgba(228,87,86,0.45)" in MEASURED._repr_html_()  # 0.75 * 0.6
    assert Tags(Topology((Node(0, (0,), None, None),))._repr_html_()).seen.count("div") == 0


def test_topology_is_drawn():
    ax = TWO.plot()
    assert [text.get_text() for text in ax.texts] == ["10", "21", "21", "10"]
    assert MEASURED.plot(ax) is ax and "21\n40.0 GB/s" in [text.get_text() for text in ax.texts]
    assert np.asarray(ax.images[-1].get_array())[0] == pytest.approx([0, 0.6]) and "read bandwidth" in ax.get_title()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["node 0", "node 3"]
    with pytest.raises(ValueError, match="measure=True"):
        Topology(TWO.nodes).plot()


def test_topology_of_this_machine_is_measured(monkeypatch):
    found = ni.topology(measure=True)
    assert found.nodes and len(found.bandwidth) == len(found.nodes) and all(rate > 1e8 for row in found.bandwidth for rate in row)
    assert all(found.distances[i][i] == 10 for i in range(len(found.distances))) and ni.topology().bandwidth == ()
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    assert ni.topology().distances in ((), ((10, 10), (10, 10)))
    with pytest.raises(TypeError, match="measure"):
        ni.topology(measure=1)


def test_placement_shows_bars(load_tiny, monkeypatch):
    model = load_tiny(2, placement="replicate")
    model.generate([5] * 100, max_tokens=2)
    nodes = model.placement.nodes
    tags = Tags(model.placement._repr_html_())
    assert "100.0% of the weights verified here" in tags.text and "weights" in tags.text and "node 1" in tags.text
    monkeypatch.setattr("numainfer.machine.placement.node_memory", lambda number, memory=None: (100 * GB, 70 * GB))
    then = model.placement._bars()
    other = pickle.loads(pickle.dumps(model.placement))
    monkeypatch.setattr("numainfer.machine.placement.node_memory", lambda number, memory=None: (100 * GB, 50 * GB))
    assert other._bars() == then != model.placement._bars()  # a copy says what was so
    ax = model.placement.plot()
    assert [label.get_text().split("\n")[0] for label in ax.get_yticklabels()] == ["node 0", "node 1"]
    assert {"weights", "scratch"} <= {text.get_text() for text in ax.get_legend().get_texts()}
    widths = [bar.get_width() for group in ax.containers if group.get_label() == "weights" for bar in group]
    assert widths == pytest.approx([node.weights / 1e9 for node in nodes])


def test_what_others_use_is_told_apart(monkeypatch):
    monkeypatch.setattr("numainfer.machine.placement.node_memory", lambda number, memory=None: (1000, 300))
    own = Placement("replicate", "", [NodePlacement(0, (0,), 100, 20, 1.0, pretend=i) for i in range(2)], 1)
    assert [row[1]["others"] for row in own._bars()] == [1000 - 300 - 240] * 2  # both pretend nodes are one's
    real = Placement("replicate", "", [NodePlacement(i, (0,), 100, 20) for i in range(2)], 1)
    assert [row[1]["others"] for row in real._bars()] == [1000 - 300 - 120] * 2 and "not checked" in real._bars()[0][3]


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'numainfer\[plot\]'"):
        TWO.plot()


# ---- progress --------------------------------------------------------------------------------------------------------


def test_a_bar_moves_within_prompts(monkeypatch, capfd):
    made = []
    import tqdm.auto

    class Bar(tqdm.auto.tqdm):
        def __init__(self, *a, **k):
            super().__init__(*a, **k | {"delay": 0, "mininterval": 0})
            made.append(self)

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    with progress_bar(True, "Generating", unit="prompts") as report:
        for done, part, n in ((0, 0.5, 0.5), (0, 0.25, 0.5), (1, 0.0, 1), (4, 0.0, 4)):
            report(done, 4, f"{done + 1} tokens", part)
            assert made[0].n == n
            assert f"{done}/4 prompts, {done + 1} tokens" in capfd.readouterr().err
    assert made[0].leave is False  # a terminal's goes; a notebook's stays: tests/test_notebooks.py


def test_callables_get_whole_prompts(load_tiny):
    seen = []
    load_tiny(1).generate([[5], [6]], max_tokens=9, progress=lambda *told: seen.append(told))
    assert all(len(told) == 2 and told[0] in (0, 1, 2) and told[1] == 2 for told in seen) and seen[-1] == (2, 2)
