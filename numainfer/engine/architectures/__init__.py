"""Model families: one short file each, named as ``general.architecture`` names them."""

from importlib import import_module

from ...errors import UnsupportedModel
from .blocks import Hyperparameters
from .nextn import check

SUPPORTED = (
    "afmoe", "apertus", "arcee", "bailingmoe", "bailingmoe2", "bailingmoe3", "cohere2", "cohere2moe", "command-r", "dbrx", "deepseek",
    "deepseek2", "deepseek32", "deepseek4", "dots1", "dots3note", "ernie4_5", "ernie4_5-moe", "exaone-moe", "exaone4", "falcon",
    "falcon-h1", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "glm-dsa", "glm4", "glm4moe", "glm5-next", "gpt-oss", "gpt2",
    "gptneox", "granite", "granitehybrid", "granitemoe", "grok", "grovemoe", "hunyuan-dense", "hunyuan-moe", "hy_v3", "hy_v4",
    "internlm2", "jamba", "kimi-k3", "kimi-linear", "laguna", "lfm2", "lfm2moe", "llama", "llama4", "mamba", "mamba2", "mimo2",
    "minicpm", "minicpm3", "minimax-01", "minimax-m2", "minimax-m3", "mistral3", "mistral4", "nemotron", "nemotron_h", "nemotron_h_moe",
    "olmo2", "olmoe", "phi2", "phi3", "phimoe", "plamo2", "qwen2", "qwen2moe", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next",
    "seed_oss", "smallthinker", "smollm3", "stablelm", "starcoder2", "step35",
)  # fmt: skip


WITH_HEAD = ("deepseek2", "glm4moe", "mimo2", "qwen35", "qwen35moe", "qwen3next")
"""Of these the layer that predicts a further token (MTP) can be had, where their file has it."""


def context_length(gguf):
    """Positions that the file's model was trained for; raises as `build`."""
    _check(gguf)
    return Hyperparameters(gguf).int("context_length")


def build(plan, catalog):
    """Append the forward pass of the file's architecture to a plan and compile it; its head's, where it is wanted (`Catalog.mtp`), too.

    Raises
    ------
    UnsupportedModel
        The architecture, or something that this file asks of it, is not supported.
    CorruptModel
        A key or tensor is missing or of the wrong kind, or tensors do not fit each other.
    PlanError
        The architecture leaves a tensor unread, or the KV memory would be too large to be named.
    """
    _check(catalog.gguf)
    try:
        if catalog.mtp:
            _check_head(catalog)
        import_module("." + catalog.gguf.architecture.replace("-", "_"), __name__).build(plan, catalog)
        if plan.head is not None:
            plan.take(plan.head)
        catalog.check_all_used([*plan.weights, *plan.spared])
    except UnsupportedModel as error:
        where = f"The file is {catalog.gguf.path}"
        if where in error.detail:
            raise
        raise UnsupportedModel(error.key, error.value, error.supported, ". ".join(filter(None, [error.detail, where]))) from None
    plan.compile()
    if plan.head is not None:
        plan.head.compile()
    return plan


def _check(gguf):
    if gguf.architecture not in SUPPORTED:
        raise UnsupportedModel("general.architecture", gguf.architecture, SUPPORTED, f"The file is {gguf.path}")


def _check_head(catalog):
    if catalog.gguf.architecture not in WITH_HEAD:
        raise UnsupportedModel("general.architecture", catalog.gguf.architecture, WITH_HEAD,
                               "mtp=True asks for the layer that predicts a further token (MTP); load the model without it")  # fmt: skip
    check(Hyperparameters(catalog.gguf), catalog)
