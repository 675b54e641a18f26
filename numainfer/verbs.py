"""What a model and a session both do: the checks of a call's arguments, then its requests."""

from collections.abc import Iterable, Mapping

import numpy as np

from ._core import in_default_floats
from .prompts import split_prompts, to_ids
from .results import Completions
from .serving.answer import Answer
from .serving.requests import Rows
from .serving.params import check_sampling
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
# Keywords of `chat` besides those of sampling.
CHAT_PARAMETERS = ("messages", "params", "tools", "template", "chat_template_kwargs", "response_format", "stream")


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


def generate(runtime, prompt, params, sequence=None):
    """Completion of a prompt, or Completions of a list of them, each continuing from what the one before has in common with it.

    Parameters
    ----------
    runtime : Runtime
    prompt : str, token ids, or a list of those
        A list only for a sequence.
    params : SamplingParams
    sequence : Sequence, optional
    """
    prompts, is_list = split_prompts("prompt", prompt)
    names = [f"prompt[{i}]" if is_list else "prompt" for i in range(len(prompts))]
    batch = [ids_of(runtime, name, p) for name, p in zip(names, prompts)]
    done = [answer(runtime, ids, params, sequence) for ids in batch]
    return Completions(done) if is_list else done[0]


def answer(runtime, ids, params, sequence=None, reader=None):
    """Completion of ids."""
    request = Answer(runtime, ids, params, sequence=sequence, reader=reader)
    request.finish()
    return request.completion()


def stream(runtime, prompt, params, sequence=None):
    """TokenStream of one prompt."""
    prompts, is_list = split_prompts("prompt", prompt)
    if is_list:
        raise TypeError("prompt: found a list of prompts, wanted one: a str or token ids (generate takes lists)")
    return TokenStream(runtime, ids_of(runtime, "prompt", prompts[0]), params, sequence=sequence)


def chat(runtime, messages, params, stream, written, sequence=None):
    """Completion of a conversation, or TokenStream if ``stream``; ``written``: keywords of `conversation`."""
    if not isinstance(stream, bool):
        raise TypeError(f"stream = {stream!r}: found {type(stream).__name__}, wanted True or False")
    ids, reader = conversation(runtime, messages, **written)
    if stream:
        return TokenStream(runtime, ids, params, sequence=sequence, reader=reader)
    return answer(runtime, ids, params, sequence, reader)


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


def logits(runtime, ids, all, sequence=None):
    """Logits after the last of the ids, float32 (n_vocab,), or after each (n, n_vocab)."""
    ids = ids_of(runtime, "ids", ids)
    request = Rows(runtime, ids, all=all, sequence=sequence)
    if not all:
        return request.last()
    out = np.empty((len(ids), runtime.n_vocab), np.float32)
    for at, rows in request.parts():
        out[at : at + len(rows)] = rows
    return out


@in_default_floats
def logprobs(runtime, ids):
    """Log-probabilities of ids[1:], float64 (n - 1,)."""
    found = np.empty(len(ids) - 1)
    for at, rows in Rows(runtime, ids, all=True).parts():
        for i, row in enumerate(rows[: len(found) - at]):
            found[at + i] = _log_softmax_at(row, ids[at + i + 1])
    return found


def _log_softmax_at(row, i):
    """Log-probability of token i, float; overwrites the logits."""
    top, wanted = row.max(), float(row[i])
    row -= top
    np.exp(row, out=row)
    return wanted - float(top) - float(np.log(row.sum(dtype=np.float64)))


def add_rows(total, rows):
    """Add rows one by one, so that the parts in which they come, which depend on who else computes, are not seen in the sum."""
    for row in rows:
        total += row


@in_default_floats
def embeddings(runtime, batch, pooling):
    """Hidden states over the ids of each of a list of texts, (n, n_embd) float32: their "mean", or the "last"."""
    out, requests = np.empty((len(batch), runtime.n_embd), np.float32), []
    try:
        for ids in batch:
            requests.append(Rows(runtime, ids, all=pooling == "mean", hidden=True))
        runtime.submit(*requests)
        for i, request in enumerate(requests):
            if pooling == "last":
                out[i] = request.last()
                continue
            total = np.zeros(runtime.n_embd)
            for _, rows in request.parts():
                add_rows(total, rows)
            out[i] = total / len(batch[i])
    except BaseException:
        for request in requests:
            request.cancel()
        raise
    return out
