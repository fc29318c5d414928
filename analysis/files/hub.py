"""Find a checkpoint on the Hugging Face hub by its name, and fetch the files that are needed.

    org/name                     the repository; org/name/folder a folder in it

Needed are the configs and one set of weights: those of an adapter if there are any, else those of a
model, in safetensors if there are any, else in .bin. Where the folder itself holds none, those of
the folders in it.
"""

import fnmatch
import functools
import glob
import itertools
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from analysis import CheckpointError
from analysis.files import distributed, shards
from analysis.files.tensors import line

NAME = re.compile(r"(?P<repo>[\w-][\w.-]*(/[\w-][\w.-]*)?)(?P<folder>(/[\w-][\w.-]*)*)", re.ASCII)
# Sets of weights, the first that a folder has is fetched; and what belongs to a set.
STEMS = (
    "adapter_model", "delta", "model", "pytorch_model", "diffusion_pytorch_model",
    "adapters", "pytorch_adapter", "pytorch_lora_weights",
)  # fmt: skip
SETS = [f"{stem}{{}}{end}" for stem in STEMS for end in (".safetensors", ".bin")]
# Without such a set, all files of the first of these kinds that there are.
SUFFIXES = (*shards.FILES, distributed.SUFFIX)
SECONDS = 10.0  # for the hub to answer
CONFIGS = re.compile(
    r"(?!tokenizer|vocab|special_tokens|merges|added_tokens).*\.json|.*\.yaml|\.metadata"
)


def directory(path: Path, revision: str | None = None) -> Path:
    """Return the local directory of a model or an adapter: `path`, or the hub's copy of that name.

    revision: branch, tag or commit on the hub; None for the default branch. Raises CheckpointError
    if there is neither.
    """
    if path.exists():
        return path
    match = NAME.fullmatch(path.as_posix())
    if not match:
        raise CheckpointError(f"{path}: no such file or directory")
    return _fetched(str(path), match["repo"], match["folder"].strip("/"), revision)


@functools.lru_cache(maxsize=32)
def _fetched(path: str, repo: str, folder: str, revision: str | None) -> Path:
    """Return the directory of a repository's folder in the local cache, fetched if need be."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError:
        advice = "python -m pip install 'multilora[hub]'"
        raise CheckpointError(
            f"{path}: no such file or directory; to fetch it from the hub by this name: {advice}"
        ) from None

    missing = f"{path}: no such file or directory, and not on the hub"
    at = f" at revision {revision!r}" if revision else ""
    try:
        names = _listed(repo, revision)
        if names is None:
            download = _cached
        else:
            wanted = needed(names, folder)
            if not wanted:
                raise CheckpointError(
                    f"{path}: the repository {repo} on the hub{at} has no weights"
                    f" {f'in {folder}' if folder else 'that can be read'}"
                )
            download = functools.partial(
                huggingface_hub.snapshot_download, allow_patterns=[glob.escape(n) for n in wanted]
            )
        found = Path(download(repo, revision=revision)) / folder
    except CheckpointError:
        raise
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{path}: the repository {repo} on the hub is gated; accept its terms on its page, and"
            " log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{missing}: there is no repository {repo}, or it is private (`hf auth login`)"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"{path}: the repository {repo} on the hub has no revision {revision!r}"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise CheckpointError(
            f"{path}: no such file or directory, and {repo}{at} is not in the hub's local cache;"
            " the hub cannot be reached"
        ) from None
    except Exception as error:  # from the network, the hub or the cache
        raise CheckpointError(f"{missing}: {line(error)}") from None
    if not found.is_dir():
        raise CheckpointError(f"{path}: {folder} is not in the local copy of {repo}{at}")
    return found


def _cached(repo: str, revision: str | None) -> str:
    """Return the directory of a repository in the local cache; LocalEntryNotFoundError if none.

    It holds the files that were needed before, which the hub's client may call incomplete.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True)
    except errors.LocalEntryNotFoundError as error:
        path = getattr(error, "snapshot_path", None)
        if path is None:
            raise
        return str(path)


def _listed(repo: str, revision: str | None) -> list[str] | None:
    """Return the names of a repository's files; None if the hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        # Unlike list_repo_files, this does not try again for half a minute without a network.
        found = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=SECONDS)
    except errors.HfHubHTTPError:  # the hub's answer
        raise
    except Exception:  # no answer: offline, no network, or too slow
        return None
    return [file.rfilename for file in found.siblings or ()]


def needed(names: Collection[str], folder: str = "") -> list[str]:
    """Return those of a repository's files that are needed to read a folder of it.

    >>> needed(["config.json", "model.safetensors", "pytorch_model.bin", "vocab.json"])
    ['config.json', 'model.safetensors']
    """
    below: dict[str, list[str]] = {}
    for name in names:
        below.setdefault(str(PurePosixPath(name).parent).removeprefix("."), []).append(name)
    configs, weights = _of_folder(below.get(folder, []))
    if weights:
        return [*configs, *weights]
    inside = [home for home in below if not folder or home.startswith(f"{folder}/")]
    found = [_of_folder(below[home]) for home in sorted(inside) if home != folder]
    with_weights = [[*inner, *files] for inner, files in found if files]
    return [*configs, *itertools.chain(*with_weights)] if with_weights else []


def _of_folder(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the configs, and one set of weights with its index, of the files in one folder."""
    last = {name: PurePosixPath(name).name for name in names}
    configs = [name for name in names if CONFIGS.fullmatch(last[name])]
    configs = [name for name in configs if not name.endswith(".index.json")]
    for stem in SETS:
        weights = [n for n in names if last[n] == stem.format("") or _is_shard(last[n], stem)]
        index = [n for n in names if last[n] == f"{stem.format('')}.index.json"]
        if weights:
            return configs, [*index, *weights]
    for suffix in SUFFIXES:
        weights = [n for n in names if n.endswith(suffix) and not shards.STATE.match(last[n])]
        if weights:
            return configs, weights
    return configs, []


def _is_shard(name: str, stem: str) -> bool:
    """Return whether a file is one of the pieces of a set, such as model-00001-of-00002."""
    return fnmatch.fnmatchcase(name, stem.format("-*"))
