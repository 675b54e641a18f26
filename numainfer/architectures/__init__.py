"""Model families: one short file each, named as ``general.architecture`` names them."""

from importlib import import_module

from ..errors import UnsupportedModel

SUPPORTED = ("llama", "gemma3")


def build(plan, catalog):
    """Append the forward pass of the file's architecture to a plan and compile it.

    Raises
    ------
    UnsupportedModel
        The architecture, or something that this file asks of it, is not supported.
    CorruptModel
        A key or tensor is missing or of the wrong kind.
    PlanError
        Shapes do not fit.
    """
    name = catalog.gguf.architecture
    if name not in SUPPORTED:
        raise UnsupportedModel("general.architecture", name, SUPPORTED)
    import_module(f".{name}", __name__).build(plan, catalog)
    catalog.check_all_used()
    return plan.compile()
