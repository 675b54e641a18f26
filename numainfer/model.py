"""Model: a loaded GGUF file and the verbs on it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload


from . import verbs
from .aio import AsyncVerbs
from .arguments import byte_count, cpu_numbers, integer, names_near_misses, node_numbers, one_of, progress_way, unknown_attribute
from .errors import ContextWarning, OutOfNodeMemory
from .prompts import split_prompts
from .results import Completion, Completions, Score, Stats
from .serving.forms import response_form
from .serving.prefix import Prefixes, bytes_to_keep
from .serving.params import SamplingParams, check_sampling, resolve_params, sampling_of_file
from .serving.runtime import Runtime, free_prefixes
from .serving.lists import ON_INTERRUPT, generate_list
from .serving.modes import MODES
from .serving.sequence import Sequence as KeptSequence
from .session import Session
from .signatures import Conversations, FloatArray, Messages, Progress, Prompt, Prompts, ResponseFormat, SamplingOptions, Tools
from .text.messages import split_conversations
from .summary import ModelConfig, short_bytes, short_count

if TYPE_CHECKING:
    from .machine.placement import Placement
    from .engine.plan import Plan
    from .stream import TokenStream

POOLINGS = ("mean", "last")


@names_near_misses(model="source", path="source", model_path="source", repo_id="source", model_name="source", max_model_len="n_ctx",
                   max_length="n_ctx", context_length="n_ctx", n_threads="threads", num_threads="threads", tensor_parallel_size="nodes",
                   numa="placement", type_k="kv_type", type_v="kv_type", cache_type="kv_type", kv_cache_dtype="kv_type",
                   enable_prefix_caching="prefix_cache", cache_prompt="prefix_cache", enable_prefix_cache="prefix_cache",
                   dtype="none: weights keep the file's types (kv_type is for the KV cache)",
                   quantization="none: weights keep the file's types", n_gpu_layers="none: everything runs on the CPUs",
                   device="none: everything runs on the CPUs (nodes and cpus say which)")  # fmt: skip
def load(
    source: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    n_batch: int = 512,
    threads: int | Sequence[int] | None = None,
    nodes: Sequence[int] | None = None,
    cpus: Sequence[int] | None = None,
    placement: str | Mapping[str, str] = "auto",
    kv_type: str = "f16",
    progress: Progress = None,
    verify: bool | Literal["warn"] = True,
    keep: str | None = None,
    prefix_cache: int | str = "auto",
    mtp: bool = False,
) -> Model:
    """Open a GGUF model and place its weights on the NUMA nodes.

    Parameters
    ----------
    source : str or os.PathLike
        A path of a file or folder; ``"smollm2"``, ``"gemma3"`` (models of installed packages); ``"org/repo"``,
        ``"org/repo:Q4_K_M"``, ``"org/repo/file.gguf"`` (Hugging Face hub; before a download the header is read alone, and what cannot
        be loaded is refused); ``"name:tag"`` (Ollama).
    n_ctx : int or None
        Most tokens of a sequence, prompt and answer together; None: the context that the model was trained with. Memory
        for it is used only as it fills, but a number given here must fit: OutOfNodeMemory names the largest that does.
    n_batch : int
        Most tokens per step; limits the memory for activations. Results do not depend on it.
    threads : int, sequence of int, or None
        Worker threads over all nodes, or a number for each node; None: one per physical core that this process may use.
    nodes : sequence of int, or None
        NUMA nodes to use, by the system's numbers; None: all with CPUs and memory.
    cpus : sequence of int, or None
        Exactly these CPUs, a worker on each; None: those of the nodes' cores that no other model holds come first, of this
        process or of another; ``print(model.placement)`` says which were taken and why.
    placement : {"auto", "replicate", "shard", "interleave", "local"} or mapping
        Where the weights go: a copy on every node; one copy, each node holding its rows of every matrix; one copy page by
        page over all nodes; or one copy on one node. Or replicate or shard for each group of weights, those of the experts that a
        router chooses among and all others: ``{"experts": "shard", "*": "replicate"}``, which may be written
        ``"experts=shard,*=replicate"``. auto: replicate if every node has room; else, with experts, that mixture if it fits; else shard;
        ``print(model.placement)`` says why.
    kv_type : {"f16", "bf16", "q8_0", "f32"}
        Number format of the KV cache. q8_0, 8 bits with a scale for 32 values, takes 17/32 of the memory of f16; bf16 takes as much
        and holds larger numbers, less precisely; f32 takes twice as much and rounds nothing.
    progress : None, bool or callable
        A progress bar: None decides by whether someone is watching; a callable gets (done_bytes, total_bytes).
    verify : bool or "warn"
        Look up the node of each page, move those that lie elsewhere, and raise (or only warn) if that fails.
    keep : str or None
        A name: the packed weights lie in shared memory under it, and stay there when this process ends. Whoever of this user loads the
        same file with that name next attaches to them, at once and without a copy. ``numainfer keep --list`` shows what is kept,
        ``--drop NAME`` removes it.
    prefix_cache : int or str
        Most bytes of the KV cache in which beginnings of sequences are kept after their end, for whoever begins in the same way: a number,
        or ``"2GB"``; 0: none is. "auto": an eighth of the memory that the nodes have free once the weights are placed, and no more than
        64 whole contexts take. Those that were used least recently leave first, and all of it leaves for sequences that need the
        memory; ``model.placement`` says how much it is. Results are the same bits.
    mtp : bool
        Load the layer that predicts a further token, which some files have behind the model's own (DeepSeek's, GLM's, MiMo's, Qwen3.5's),
        for ``speculate="mtp"``. It takes about as much memory as another layer, of weights and of the KV cache; ``model.placement`` says
        how much. UnsupportedModel if the file has none, or numainfer cannot use it.

    Returns
    -------
    Model

    Raises
    ------
    TypeError, ValueError
        An argument; the message names it.
    ModelNotFound, CorruptModel, UnsupportedModel
        The file.
    OutOfNodeMemory, PlacementError
        The machine.
    KeepError
        The name holds another model, or this one in another placement; or there is no shared memory of this user's own.

    Warns
    -----
    ContextWarning
        ``n_ctx`` is beyond what the model was trained with.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: found {type(source).__name__}, wanted a str or a path")
    n_ctx = None if n_ctx is None else integer("n_ctx", n_ctx, 1)
    n_batch = integer("n_batch", n_batch, 1)
    if isinstance(threads, (list, tuple)):
        threads = [integer(f"threads[{i}]", n, 1) for i, n in enumerate(threads)]
    else:
        threads = None if threads is None else integer("threads", threads, 1)
    nodes = None if nodes is None else node_numbers("nodes", nodes)
    cpus = None if cpus is None else cpu_numbers("cpus", cpus)
    progress_way("progress", progress)
    if prefix_cache != "auto":
        prefix_cache = byte_count("prefix_cache", prefix_cache)
    if not isinstance(mtp, bool):
        raise TypeError(f"mtp = {mtp!r}: found {type(mtp).__name__}, wanted True or False")
    if not isinstance(verify, bool) and verify != "warn":
        error = ValueError if isinstance(verify, str) else TypeError
        raise error(f"verify = {verify!r}: wanted True, False or 'warn'")

    from .engine.engine import KV_TYPES, Engine
    from .gguf.file import GGUFFile
    from .machine.policies import canonical
    from .machine.shared import check_name
    from .progress import progress_bar
    from .gguf.sources import resolve
    from .text.tokenizer import Tokenizer

    placement = canonical(placement)
    keep = None if keep is None else check_name(keep)
    one_of("kv_type", kv_type, KV_TYPES)
    path = resolve(source, lambda gguf: _refuse_before_download(gguf, n_ctx, n_batch, kv_type, mtp))
    with GGUFFile(path) as gguf:
        config = ModelConfig.from_gguf(gguf)
        tokenizer = Tokenizer(gguf.metadata, path)
        with progress_bar(progress, f"Loading {path.name}") as report:
            if n_ctx is not None and n_ctx > (config.context_length or n_ctx):
                warnings.warn(f"n_ctx = {n_ctx}: beyond the {config.context_length} positions that the model was trained with, where its "
                              "answers may make no sense", ContextWarning, stacklevel=3)  # fmt: skip
            options = {"n_ctx": n_ctx, "n_batch": n_batch, "threads": threads, "nodes": nodes, "cpus": cpus, "placement": placement,
                       "kv_type": kv_type, "progress": report, "verify": verify, "keep": keep, "mtp": mtp}  # fmt: skip
            try:
                engine = Engine(gguf, **options)
            except OutOfNodeMemory:
                if not free_prefixes():  # what other models of this process could do without
                    raise
                engine = Engine(gguf, **options)
        Prefixes(engine.caches, bytes_to_keep(engine, prefix_cache))
        return Model(Runtime(engine, tokenizer, config.name or path.name, sampling_of_file(gguf.metadata)), config, gguf.metadata, path)


def _refuse_before_download(gguf, n_ctx, n_batch, kv_type, mtp):
    """Raise what loading would raise for a model whose header is all that is here, as far as the header tells."""
    from .engine.architectures import build, context_length
    from .engine.plan import Plan
    from .engine.weights import Catalog
    from .machine.topology import topology
    from .text.tokenizer import Tokenizer

    Tokenizer(gguf.metadata, gguf.path)
    n_ctx = n_ctx or context_length(gguf)
    plan = build(Plan(1, min(n_batch, n_ctx), n_ctx, kv_type=kv_type), Catalog(gguf, mtp))
    need, memory = sum(weight.packed_bytes for weight in plan.weights), [node.total for node in topology().nodes]
    if None not in memory and need > sum(memory):
        raise OutOfNodeMemory(f"{gguf.path}: the weights take {short_bytes(need)}, but this machine has {short_bytes(sum(memory))} of "
                              "memory; nothing was downloaded")  # fmt: skip


class Model(AsyncVerbs):
    """A loaded model. Made by `load`; close it, or use it in a ``with`` block, to free its memory at once.

    A prompt is a str (the model's special tokens, such as BOS, are put around it) or a sequence of token ids (taken as
    they are). Methods may be called from several threads: what they compute shares the steps.

    Attributes
    ----------
    tokenizer : Tokenizer
    config : ModelConfig
        The file's header in a few numbers.
    metadata : mapping
        All of the file's key-value pairs.
    path : pathlib.Path
    n_ctx, n_vocab, n_batch : int
    chat_sampling : mapping
        Sampling that the file recommends, fields of SamplingParams; `chat` uses it, `generate` does not.
    runtime : Runtime
        Its steps, for tools that measure or drive them one by one.
    """

    def __init__(self, runtime: Runtime, config: ModelConfig, metadata: Mapping[str, Any], path: Path) -> None:
        self.runtime, self.tokenizer = runtime, runtime.tokenizer
        self.config, self.metadata, self.path = config, metadata, path
        self.n_ctx: int = runtime.n_ctx
        self.n_vocab: int = runtime.n_vocab
        self.n_batch: int = runtime.n_batch
        self.chat_sampling: Mapping[str, Any] = MappingProxyType(runtime.chat_sampling)

    # ---- verbs -----------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: SamplingParams | None = None, *, mode: str = "auto", progress: Progress = None,
        on_interrupt: str = "raise", **sampling: Unpack[SamplingOptions]
    ) -> Completion: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Prompts, params: SamplingParams | Sequence[SamplingParams] | None = None, *, mode: str = "auto",
        progress: Progress = None, on_interrupt: str = "raise", **sampling: Unpack[SamplingOptions]
    ) -> Completions: ...  # fmt: skip

    def generate(
        self, prompt: Prompt | Prompts, params: SamplingParams | Sequence[SamplingParams] | None = None, *,
        mode: str = "auto", progress: Progress = None, on_interrupt: str = "raise", **sampling: Unpack[SamplingOptions]
    ) -> Completion | Completions:  # fmt: skip
        """Continue a prompt, or each of a list of prompts.

        Parameters
        ----------
        prompt : str, token ids, or a list of those
        params : SamplingParams or None
            For a list also a list of SamplingParams, one for each prompt.
        mode : {"auto", "latency", "throughput"}
            How a list is computed: "latency" on all nodes together; "throughput" on every node by itself, each with its own
            sequences, which takes a copy of the weights on each. "auto", and a single prompt, goes by the number of all that is to be
            computed just then, and a measurement of a few steps, made once: one alone has all nodes. ``timings.mode`` of an answer
            tells what was chosen. Results are the same bits.
        progress : None, bool or callable
            A progress bar for a list: None decides by whether someone is watching; a callable gets (done, total).
        on_interrupt : {"raise", "return"}
            What Ctrl-C does to a list: "raise" Interrupted, whose ``completions`` are what there is; or "return" them, with a
            warning.
        **sampling
            Fields of SamplingParams, laid over ``params``.

        Returns
        -------
        Completion
            For a list, and with ``n`` of SamplingParams above 1: Completions, a list of them in order, all of a prompt's before those of
            the next. What is wrong with one of the prompts (it is empty or too long, of
            a wrong kind, an id is out of range), and what goes wrong with its answer (a logits processor raises), does not
            lose the others: its ``finish_reason`` is "error" and ``error`` the exception, which names its place.

        Raises
        ------
        TypeError, ValueError
            A prompt of the wrong kind, an empty one, an id out of range, a sampling parameter; "throughput" where the
            weights are one copy on several nodes; the message says which.
        ContextOverflow
            A prompt longer than ``n_ctx``. (An answer that fills the context just ends, with finish_reason "length".)
        ModelClosed, ForkedProcess
            The model cannot be used any more, or not in this process.
        KeyboardInterrupt
            Within 50 ms of Ctrl-C; the model stays usable. Of a list it is Interrupted, which has what was finished; pressed
            again, before the steps have ended, a plain one.

        Warns
        -----
        CancelledWarning
            With ``on_interrupt="return"``: "interrupted: 3 of 8 prompts were cancelled".

        Notes
        -----
        Whatever threads and tasks ask a model for shares its steps: up to 64 sequences, as far as nodes have memory for the KV cache of
        each one's prompt and ``max_tokens`` (None: the whole context); the others wait, in order. A logits processor is called from
        another thread than the caller's, for which all others wait; it may itself use the model.
        """
        verbs.check_generate(sampling, "model", verbs.LIST_PARAMETERS)
        one_of("mode", mode, MODES)
        one_of("on_interrupt", on_interrupt, ON_INTERRUPT)
        progress_way("progress", progress)
        self.runtime.check()
        prompts, is_list = split_prompts("prompt", prompt)
        if is_list:

            def prompt_of(i):
                return verbs.ids_of(self.runtime, f"prompt[{i}]", prompts[i]), None

            return generate_list(self.runtime, len(prompts), prompt_of, params, mode, progress, on_interrupt, sampling)
        own = resolve_params(params, **sampling)  # type: ignore[arg-type]  # it refuses a list
        if own.n == 1:
            return verbs.generate(self.runtime, prompt, own)
        ids = verbs.ids_of(self.runtime, "prompt", prompts[0])
        return generate_list(self.runtime, 1, lambda _: (ids, None), own, mode, progress, on_interrupt, {})

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[SamplingOptions]
    ) -> TokenStream:
        """Continue one prompt, piece by piece; parameters and errors as for `generate`.

        Returns
        -------
        TokenStream
            Iterates Chunk. Several streams may be used in turns.
        """
        own = resolve_params(params, **sampling)
        self.runtime.check()
        return verbs.stream(self.runtime, prompt, own)

    @overload
    def chat(  # type: ignore[overload-overlap]
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: Literal[False] = False,
        mode: str = "auto", progress: Progress = None, on_interrupt: str = "raise", **sampling: Unpack[SamplingOptions]
    ) -> Completion: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: Literal[True],
        **sampling: Unpack[SamplingOptions]
    ) -> TokenStream: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: bool,
        **sampling: Unpack[SamplingOptions]
    ) -> Completion | TokenStream: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Conversations, params: SamplingParams | Sequence[SamplingParams] | None = None, *, tools: Tools | None = None,
        template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: Literal[False] = False,
        mode: str = "auto", progress: Progress = None, on_interrupt: str = "raise", **sampling: Unpack[SamplingOptions]
    ) -> Completions: ...  # fmt: skip

    def chat(
        self, messages: Messages | Conversations, params: SamplingParams | Sequence[SamplingParams] | None = None, *,
        tools: Tools | None = None, template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
        response_format: ResponseFormat | None = None, stream: bool = False, mode: str = "auto", progress: Progress = None,
        on_interrupt: str = "raise", **sampling: Unpack[SamplingOptions]
    ) -> Completion | TokenStream | Completions:  # fmt: skip
        """Answer a conversation, or each of a list of conversations, with the chat template of the file.

        Parameters
        ----------
        messages : list of dict, or str; or a list of those, or a column of a table
            Each message with ``role`` and ``content``: a str, or a list of text parts as OpenAI's clients send them, which are
            joined by line feeds where the template reads no parts. A str is one message of the user.
        params, mode, progress, on_interrupt, **sampling
            As for `generate`; but without ``params`` the file's own recommendation is the default of what no keyword says
            (``chat_sampling``; keys ``general.sampling.*``). ``params=SamplingParams()`` is greedy in any case.
        tools : list of dict, or None
            JSON schemas for the template. With them, calls that the answer makes are ``tool_calls`` of the result; what does not
            parse as a call stays in its text.
        template : str or None
            Another template: the name of one of the file's (``tokenizer.chat_templates``), or its source.
        chat_template_kwargs : dict or None
            Variables of the template, such as ``{"enable_thinking": False}``.
        response_format : pydantic class, dict or None
            The form of the answer: a class, a JSON schema, or as OpenAI's clients write it (``{"type": "json_schema",
            "json_schema": {"schema": ...}}``, ``{"type": "json_object"}``). The same as ``json_schema`` of SamplingParams.
        stream : bool
            Of one conversation.

        Returns
        -------
        Completion, or TokenStream if ``stream``; Completions, a list of them, for a list of conversations or for ``n`` above 1
            ``text`` is what the user reads, ``reasoning`` what the model thought before, where its template has marks for that.
            ``to_message()`` makes a message of it for the next call.

        Raises
        ------
        ChatTemplateMissing
            The file has no template.
        TypeError, ValueError, ContextOverflow, ModelClosed, ForkedProcess
            As for `generate`; ValueError also where the template refuses the messages, for a role that looks misspelt, and for
            parts that are no text.

        Warns
        -----
        ChatTemplateWarning
            A role other than system, user, assistant and tool that the template does not name; tools or a variable that it
            does not use.
        """
        check_sampling(sampling, (*verbs.CHAT_PARAMETERS, *verbs.LIST_PARAMETERS))
        one_of("mode", mode, MODES)
        one_of("on_interrupt", on_interrupt, ON_INTERRUPT)
        progress_way("progress", progress)
        sampling = verbs.chat_sampling(self.runtime, params, sampling)
        written = {"tools": tools, "template": template, "chat_template_kwargs": chat_template_kwargs}
        sampling = response_form(response_format, sampling)
        conversations, is_list = split_conversations(messages)
        if not is_list:
            own = resolve_params(params, **sampling)  # type: ignore[arg-type]  # it refuses a list
            self.runtime.check()
            if own.n == 1 or stream is not False:
                return verbs.chat(self.runtime, conversations[0], own, stream, written)
            first = [verbs.conversation(self.runtime, conversations[0], **written)]  # what is wrong with it is raised

            def of_one(_):
                return first.pop() if first else verbs.conversation(self.runtime, conversations[0], **written)  # each has its own reader

            return generate_list(self.runtime, 1, of_one, own, mode, progress, on_interrupt, {})
        if stream is not False:
            raise TypeError("stream: found a list of conversations, wanted one; a list gives a list of Completion")
        self.runtime.check()

        def prompt_of(i):
            return verbs.conversation(self.runtime, conversations[i], name=f"messages[{i}]", **written)

        return generate_list(self.runtime, len(conversations), prompt_of, params, mode, progress, on_interrupt, sampling)

    def logits(self, ids: Prompt, *, all: bool = False) -> FloatArray:
        """Logits of the token after ``ids``.

        Parameters
        ----------
        ids : str or token ids
        all : bool
            Logits after each of the ids, not only the last.

        Returns
        -------
        float32 array (n_vocab,), or (n, n_vocab)
        """
        self.runtime.check()
        return verbs.logits(self.runtime, ids, all)

    def score(self, text: Prompt) -> Score:
        """How probable a text is.

        Parameters
        ----------
        text : str or token ids
            Two tokens at least (BOS included), since the first has no probability.

        Returns
        -------
        Score
            Memory does not grow with length times vocabulary.
        """
        self.runtime.check()
        if split_prompts("text", text)[1]:
            raise TypeError("text: found a list of texts, wanted one: a str or token ids; [model.score(text) for text in texts]")
        ids = verbs.ids_of(self.runtime, "text", text)
        if len(ids) < 2:
            raise ValueError("text: found 1 token, wanted at least 2: the first has no probability")
        logprobs, decoder = verbs.logprobs(self.runtime, ids), self.tokenizer.stream(skip_special_tokens=False)
        return Score(ids, logprobs, tuple(decoder.put(int(i)) for i in ids))

    def embed(self, texts: Prompt | Prompts, *, pooling: str = "mean") -> FloatArray:
        """The model's last hidden states (after its last norm), pooled over each text.

        Parameters
        ----------
        texts : str, token ids, or a list of those
        pooling : {"mean", "last"}
            Mean over all tokens, special ones included, or the state of the last one.

        Returns
        -------
        float32 array (n, n_embd); (n_embd,) for a single text
            Not normalised.
        """
        one_of("pooling", pooling, POOLINGS)
        self.runtime.check()
        texts, is_list = split_prompts("texts", texts)
        names = [f"texts[{i}]" if is_list else "texts" for i in range(len(texts))]
        batch = [verbs.ids_of(self.runtime, name, t) for name, t in zip(names, texts)]
        out = verbs.embeddings(self.runtime, batch, pooling)
        return out if is_list else out[0]

    def session(self) -> Session:
        """A sequence whose KV cache is kept between calls.

        Returns
        -------
        Session
        """
        self.runtime.check()
        return Session(KeptSequence(self.runtime))

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """A session that goes on where one stood when it was saved (``Session.save``), with the same bits.

        Parameters
        ----------
        path : str or os.PathLike

        Returns
        -------
        Session

        Raises
        ------
        OSError
            The file cannot be read.
        SavedSessionError
            It is no saved session, is damaged, or is of another model file, another ``kv_type`` or another version of numainfer; the
            message tells the byte.
        ContextOverflow
            It holds more tokens than ``n_ctx``.
        ModelClosed, ForkedProcess
        """
        from .serving import saved

        self.runtime.check()
        with self.runtime.turn():
            cache, ids = saved.restore(path, self.runtime.engine)
        return Session(KeptSequence(self.runtime, cache, ids, cache.n))

    def stats(self) -> Stats:
        """What runs where just now.

        Returns
        -------
        Stats
            Of each lane: sequences, tokens per second, KV memory; and how many wait.
        """
        self.runtime.check()
        return self.runtime.loop.stats()

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def placement(self) -> Placement:
        """Where the weights and caches lie, node by node; print it."""
        return self.runtime.engine.placement

    @property
    def plan(self) -> Plan:
        """The forward pass as a list of ops with their barriers; print it."""
        return self.runtime.engine.plan

    if not TYPE_CHECKING:  # a checker that saw it would take any name for known

        def __getattr__(self, name):
            unknown_attribute(self, name, verbs.ELSEWHERE)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a Model is not called: model.generate(prompt) continues a text, model.chat(messages) answers")

    @property
    def closed(self) -> bool:
        return self.runtime.closed

    def close(self) -> None:
        """Free weights, caches and threads; sessions and streams that still exist raise ModelClosed from then on."""
        self.runtime.close()

    def __enter__(self) -> Model:
        self.runtime.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        return self.runtime.__reduce_ex__(protocol)

    def _facts(self):
        c = self.config
        facts = [
            ("architecture", c.architecture),
            ("parameters", short_count(c.parameters)),
            ("weights", f"{short_bytes(c.n_bytes)}, mostly {c.main_type}"),
            ("n_ctx", str(self.n_ctx)),
        ]
        return facts + [("state", "closed") if self.closed else ("threads", str(self.runtime.engine.threads))]

    def __repr__(self) -> str:
        return f"<Model {self.runtime.name}: {', '.join(f'{name} {value}' for name, value in self._facts())}>"

    def _repr_html_(self) -> str:
        from . import looks

        return looks.facts(self.runtime.name, self._facts()) + ("" if self.closed else self.placement._repr_html_())
