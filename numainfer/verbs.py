"""What a model and a session both do with a sequence: the checks of a call's arguments, then the steps."""

from collections.abc import Iterable, Mapping

import numpy as np

from .prompts import split_prompts, to_ids
from .results import Completions
from .serving.sampling import check_sampling
from .text.answers import reader_for
from .text.messages import check_messages
from .stream import TokenStream

ELSEWHERE = {  # names of other packages' models, and what stands for them here
    "create_chat_completion": "model.chat(messages)",
    "create_completion": "model.generate(prompt)",
    "apply_chat_template": "model.tokenizer.apply_chat_template(messages)",
    "complete": "model.generate(prompt)",
    "completion": "model.generate(prompt)",
    "create_embedding": "model.embed(texts)",
    "encode": "model.tokenizer.encode(text), or model.embed(texts)",
    "decode": "model.tokenizer.decode(ids)",
    "tokenize": "model.tokenizer.encode(text)",
    "detokenize": "model.tokenizer.decode(ids)",
    "from_pretrained": "numainfer.load(source)",
    "get_tokenizer": "model.tokenizer",
    "forward": "model.logits(ids)",
    "n_ctx_train": "model.config.context_length",
    "perplexity": "model.score(text).perplexity",
}
CHAT_PARAMETERS = ("tools", "template", "chat_template_kwargs", "response_format", "stream")  # keywords of `chat` besides those of sampling


LIST_PARAMETERS = ("mode", "progress", "on_interrupt")  # keywords of a model's `generate` and `chat`, for lists


def check_generate(sampling: Iterable[str], owner: str, own: tuple[str, ...] = ()) -> None:
    """Refuse unknown keywords of ``generate``; one that other libraries have leads to the verb it stands for."""
    if "stream" in sampling:
        raise TypeError(f"unknown parameter 'stream': {owner}.stream(prompt) gives the answer piece by piece")
    if "messages" in sampling:
        raise TypeError(f"unknown parameter 'messages': {owner}.chat(messages) answers a conversation")
    check_sampling(sampling, (*own, "prompt", "params"))


def ids_of(runtime, name, prompt):
    """A prompt's ids for this model, int32 (n,); raises as `to_ids`."""
    return to_ids(name, prompt, runtime.tokenizer, runtime.n_vocab, runtime.n_ctx)


def generate(sequence, prompt, params, reuse):
    """Completion of a prompt, or Completions of a list of them, each continuing from what the one before has in common with it.

    Parameters
    ----------
    sequence : Sequence
    prompt : str, token ids, or a list of those
    params : SamplingParams
    reuse : bool
        Whether what the cache holds counts.
    """
    sequence.check()
    prompts, is_list = split_prompts("prompt", prompt)
    names = [f"prompt[{i}]" if is_list else "prompt" for i in range(len(prompts))]
    batch = [ids_of(sequence.runtime, name, p) for name, p in zip(names, prompts)]
    done = [TokenStream(sequence, ids, params, reuse=reuse).finish() for ids in batch]
    return Completions(done) if is_list else done[0]


def stream(sequence, prompt, params, owned):
    """TokenStream of one prompt; ``owned``: the sequence ends with it."""
    sequence.check()
    prompts, is_list = split_prompts("prompt", prompt)
    if is_list:
        raise TypeError("prompt: found a list of prompts, wanted one: a str or token ids (generate takes lists)")
    return TokenStream(sequence, ids_of(sequence.runtime, "prompt", prompts[0]), params, owns_sequence=owned)


def chat(sequence, messages, params, stream, owned, written):
    """Completion of a conversation, or TokenStream if ``stream``; ``written``: keywords of `conversation`."""
    sequence.check()
    if not isinstance(stream, bool):
        raise TypeError(f"stream = {stream!r}: found {type(stream).__name__}, wanted True or False")
    ids, reader = conversation(sequence.runtime, messages, **written)
    answer = TokenStream(sequence, ids, params, owns_sequence=owned, reader=reader)
    return answer if stream else answer.finish()


def chat_sampling(runtime, params, sampling):
    """Keywords of sampling with, below them, what the file recommends if the caller gave no ``params``."""
    return runtime.chat_sampling | sampling if params is None else sampling


def conversation(runtime, messages, *, name="messages", tools=None, template=None, chat_template_kwargs=None):
    """What to compute for a conversation; parameters and errors as those of ``Model.chat``.

    Returns
    -------
    int32 array (n,), Reader or None
        Its ids as the chat template writes it, and who reads the answer.
    """
    messages = check_messages(messages, tools, name)
    if chat_template_kwargs is None:
        chat_template_kwargs = {}
    if not isinstance(chat_template_kwargs, Mapping):
        raise TypeError(f"chat_template_kwargs: found {type(chat_template_kwargs).__name__}, wanted a dict such as "
                        '{"enable_thinking": False}')  # fmt: skip
    ids, text, source = runtime.tokenizer.chat_prompt(messages, tools=tools, template=template, **chat_template_kwargs)
    ids = ids_of(runtime, name, ids)
    return ids, reader_for(source, text, tools, ids.tobytes())


def logits(sequence, ids, all):
    """Logits after the last of the ids, float32 (n_vocab,), or after each (n, n_vocab)."""
    sequence.check()
    ids = ids_of(sequence.runtime, "ids", ids)
    start = sequence.begin(ids, reuse=not all)
    if not all:
        for rows in sequence.prefill(ids, start):
            pass
        return rows
    out = np.empty((len(ids), sequence.runtime.n_vocab), np.float32)
    for at, rows in sequence.rows(ids):
        out[at : at + len(rows)] = rows
    return out
