"""numainfer: GGUF language models on the CPUs of multi-socket servers, at the memory bandwidth of every socket.

>>> import numainfer as ni
>>> with ni.load("smollm2") as model:
...     print(model.generate("The capital of France is", max_tokens=16))
"""

import importlib
from typing import TYPE_CHECKING

from . import errors
from .errors import (
    CancelledWarning,
    ChatTemplateMissing,
    ChatTemplateWarning,
    ContextOverflow,
    CorruptModel,
    ContextWarning,
    ForkedProcess,
    Interrupted,
    KeepError,
    ModelClosed,
    ModelNotFound,
    NumaInferError,
    OutOfNodeMemory,
    PlacementError,
    PlacementWarning,
    PlanError,
    SavedSessionError,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from .aio import AsyncTokenStream as AsyncTokenStream
    from .machine.topology import Node as Node
    from .machine.placement import NodePlacement as NodePlacement
    from .machine.placement import Placement as Placement
    from .machine.topology import Topology as Topology
    from .measure.benchmark import Bench as Bench
    from .measure.benchmark import Speed as Speed
    from .measure.benchmark import bench as bench
    from .measure.links import topology as topology
    from .model import Model as Model
    from .model import load as load
    from .results import Chunk as Chunk
    from .results import Completion as Completion
    from .results import Completions as Completions
    from .results import Logprob as Logprob
    from .results import Logprobs as Logprobs
    from .results import Score as Score
    from .results import Stats as Stats
    from .results import Timings as Timings
    from .results import ToolCall as ToolCall
    from .results import Usage as Usage
    from .serving.params import SamplingParams as SamplingParams
    from .session import Session as Session
    from .stream import TokenStream as TokenStream
    from .summary import ModelConfig as ModelConfig
    from .text.tokenizer import TokenDecoder as TokenDecoder
    from .text.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"

# Found on first use: importing NumPy, the core and the tokenizer libraries takes a while.
_LAZY = {
    "AsyncTokenStream": "aio",
    "Node": "machine.topology",
    "NodePlacement": "machine.placement",
    "Placement": "machine.placement",
    "Topology": "machine.topology",
    "topology": "measure.links",
    "Bench": "measure.benchmark",
    "Speed": "measure.benchmark",
    "bench": "measure.benchmark",
    "Model": "model",
    "load": "model",
    "Chunk": "results",
    "Completion": "results",
    "Completions": "results",
    "Logprob": "results",
    "Logprobs": "results",
    "Score": "results",
    "Stats": "results",
    "Timings": "results",
    "ToolCall": "results",
    "Usage": "results",
    "SamplingParams": "serving.params",
    "Session": "session",
    "TokenStream": "stream",
    "ModelConfig": "summary",
    "TokenDecoder": "text.tokenizer",
    "Tokenizer": "text.tokenizer",
}

# Names that people know from other packages, and what stands for them here.
_ELSEWHERE = {
    "LLM": "numainfer.load(source) gives a Model",
    "Llama": "numainfer.load(source) gives a Model",
    "AutoModelForCausalLM": "numainfer.load(source) gives a Model",
    "AutoTokenizer": "model.tokenizer, or numainfer.Tokenizer.from_gguf(path)",
    "from_pretrained": "numainfer.load(source) gives a Model",
    "generate": "numainfer.load(source).generate(prompt)",
    "chat": "numainfer.load(source).chat(messages)",
}

__all__ = [
    "AsyncTokenStream",
    "Bench",
    "CancelledWarning",
    "ChatTemplateMissing",
    "ChatTemplateWarning",
    "Chunk",
    "Completion",
    "Completions",
    "ContextOverflow",
    "CorruptModel",
    "ContextWarning",
    "ForkedProcess",
    "Interrupted",
    "KeepError",
    "Logprob",
    "Logprobs",
    "Model",
    "ModelClosed",
    "ModelConfig",
    "ModelNotFound",
    "Node",
    "NodePlacement",
    "NumaInferError",
    "OutOfNodeMemory",
    "Placement",
    "PlacementError",
    "PlacementWarning",
    "PlanError",
    "SamplingParams",
    "SavedSessionError",
    "Score",
    "Stats",
    "Session",
    "Speed",
    "Timings",
    "TokenDecoder",
    "TokenStream",
    "Tokenizer",
    "ToolCall",
    "Topology",
    "UnsupportedModel",
    "Usage",
    "__version__",
    "bench",
    "errors",
    "load",
    "topology",
]


if not TYPE_CHECKING:  # a checker that saw it would take any name for known

    def __getattr__(name):
        if name not in _LAZY:
            hint = _ELSEWHERE.get(name)
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{': ' + hint if hint else ''}")
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
