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
    ForkedProcess,
    ModelClosed,
    ModelNotFound,
    NumaInferError,
    OutOfNodeMemory,
    PlacementError,
    PlacementWarning,
    PlanError,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from .measure.benchmark import bench as bench
    from .model import Model as Model
    from .model import load as load
    from .machine.placement import topology as topology
    from .serving.sampling import SamplingParams as SamplingParams
    from .text.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"

# Found on first use: importing NumPy, the core and the tokenizer libraries takes a while.
_LAZY = {
    "load": "model",
    "Model": "model",
    "Tokenizer": "text.tokenizer",
    "SamplingParams": "serving.sampling",
    "topology": "machine.placement",
    "bench": "measure.benchmark",
}

__all__ = [
    "CancelledWarning",
    "ChatTemplateMissing",
    "ChatTemplateWarning",
    "ContextOverflow",
    "CorruptModel",
    "ForkedProcess",
    "Model",
    "ModelClosed",
    "ModelNotFound",
    "NumaInferError",
    "OutOfNodeMemory",
    "PlacementError",
    "PlacementWarning",
    "PlanError",
    "SamplingParams",
    "Tokenizer",
    "UnsupportedModel",
    "__version__",
    "bench",
    "errors",
    "load",
    "topology",
]


if not TYPE_CHECKING:  # a checker that saw it would take any name for known

    def __getattr__(name):
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
