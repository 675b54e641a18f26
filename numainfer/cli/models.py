"""The command ``numainfer models``: what is here, by the names that load it."""

from .answering import print_json


def add_models(parser):
    """Arguments of ``models``."""
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def models(args):
    """List installed packages, the hub's cache and Ollama's store."""
    from ..gguf.sources import known_sources
    from ..measure.capacity import table
    from ..summary import short_bytes

    found = [_about(source) for source in known_sources()]
    if args.json:
        print_json(found)
        return 0
    rows = [("name", "type", "architecture", "from", "size")]
    rows += [(m["name"], m["type"] or "?", m["architecture"], m["kind"], short_bytes(m["n_bytes"])) for m in found if "n_bytes" in m]
    print("\n".join(table(rows, left=4)) if len(rows) > 1 else "No model is here yet.")
    for model in found:
        if "n_bytes" not in model:
            print(f"{model['name']}: {model.get('error') or model['missing']}")
    print("Besides these: a file or folder by its path, and org/repo:TAG of the Hugging Face hub.")
    return 0


def _about(source):
    """A known source as ``--json`` shows it."""
    from ..errors import NumaInferError
    from ..gguf.file import GGUFFile
    from ..gguf.sources import present
    from ..summary import ModelConfig

    told = {"name": source.name, "kind": source.kind}
    try:
        path = present(source)
        if path is None:
            return told | {"missing": f"not here: {source.where}"}
        told["path"] = str(path)
        with GGUFFile(path) as gguf:
            config = ModelConfig.from_gguf(gguf)
    except NumaInferError as e:
        return told | {"error": str(e)}
    return told | {"architecture": config.architecture, "type": config.main_type, "n_bytes": config.n_bytes,
                   "parameters": config.parameters, "context_length": config.context_length}  # fmt: skip
