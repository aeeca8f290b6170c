"""Where a checkpoint's files come from: a local folder, or the Hugging Face Hub through its own client and cache."""

import errno
import json
import os
import re
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jaxclip.bundled import model_folder
from jaxclip.checkpoints.errors import CheckpointError, quoted
from jaxclip.checkpoints.tensors import INDEX_SUFFIX, read_index

# In the order of preference. A safetensors file, even in shards, is read with less ado than a pickle.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# What else weights are kept in, and what can be done with it. The first that fits a file's name holds.
OTHER_WEIGHTS = {
    r"open_clip_(pytorch_)?model.*": "is in open_clip's own naming: look for the same model's transformers version",
    r"flax_model.*\.msgpack": "is read by transformers < 5: CLIPModel.from_pretrained(..., from_flax=True), then save",
    r"tf_model.*\.h5": "is read by transformers < 5: CLIPModel.from_pretrained(..., from_tf=True), then save",
    r".*\.(ckpt|pt|pth)": "is a training checkpoint or TorchScript: save its model with transformers' save_pretrained",
    r"adapter_model\..*": "is an adapter (LoRA): merge it into its base model with peft first",
    r".*\.(safetensors|bin)": "is not under a name that transformers loads: rename it if it is the whole model",
    r".*\.(msgpack|h5|onnx|gguf|tflite|npz)": "is of another format: save its model with transformers' save_pretrained",
}

# huggingface_hub.utils.validate_repo_id, which takes a second to import.
HUB_ID = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]*/)?\w([\w.-]{0,94}\w)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


class Files(ABC):
    """The files of one checkpoint.

    Attributes:
        source: the folder or Hub id, as it was given.
        revision: for the Hub, what was asked for, and from the first file on the commit that all files come from.
        uncached: names that were looked for in vain where the Hub was out of reach: they may be there.
    """

    source: str
    revision: str | None
    uncached: set[str]

    @abstractmethod
    def find(self, name: str) -> Path | None:
        """Return the local path of the file `name`, fetching it if need be, or None where there is none.

        Raises:
            CheckpointError: the Hub refused, or fetching failed. A Hub that is merely out of reach (offline) means
                None for what is not in its cache; `missing` then says so.
        """

    def require(self, name: str) -> Path:
        """Return the local path of the file `name`.

        Raises:
            CheckpointError: there is no such file; the message says where was looked and what to do.
        """
        if (path := self.find(name)) is None:
            raise self.missing(name)
        return path

    @abstractmethod
    def missing(self, *names: str) -> CheckpointError:
        """Return the error to raise where none of the files `names` was found."""

    @abstractmethod
    def listing(self) -> list[str]:
        """Return the names of the files that are there, those of subfolders after a slash, as far as can be told."""


class Folder(Files):
    """A local folder's files."""

    def __init__(self, source: str, folder: Path) -> None:
        self.source, self.revision, self.uncached, self.folder = source, None, set(), folder

    def find(self, name: str) -> Path | None:
        path = self.folder / name
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{path}: is a link to {os.readlink(path)!r}, which is not there. Fetch it again.")
        return path if path.exists() else None

    def missing(self, *names: str) -> CheckpointError:
        return CheckpointError(f"the folder {str(self.folder)!r} has no {' or '.join(names)}.")

    def listing(self) -> list[str]:
        paths = [*self.folder.glob("*"), *self.folder.glob("*/*")]
        return sorted(path.relative_to(self.folder).as_posix() for path in paths if path.is_file())


class Repository(Files):
    """A Hub repository's files, each fetched when first asked for, all from one commit."""

    def __init__(self, source: str, revision: str | None, subfolder: str) -> None:
        self.source, self.revision, self.subfolder = source, revision, subfolder
        self.found: dict[str, Path | None] = {}
        self.uncached: set[str] = set()
        self.unreachable: str | None = None

    def find(self, name: str) -> Path | None:
        if name not in self.found:
            self.found[name] = self.fetch(name)
        return self.found[name]

    def fetch(self, name: str) -> Path | None:
        """Return the path of the file in the Hub client's cache, or None. See `find`."""
        from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

        filename = str(PurePosixPath(self.subfolder, name))
        try:
            # The client waits and retries for half a minute where the network is down: once is enough.
            offline = self.unreachable is not None
            path = Path(hf_hub_download(self.source, filename, revision=self.revision, local_files_only=offline))
        except errors.LocalEntryNotFoundError as error:
            reason = error.__cause__
            if isinstance(reason, errors.HfHubHTTPError | errors.FileMetadataError):
                raise self.failure(filename, reason) from error
            if isinstance(reason, errors.OfflineModeIsEnabled):
                self.unreachable = "HF_HUB_OFFLINE is set"
            elif self.unreachable is None:
                self.unreachable = f"{_endpoint()} is out of reach ({_one_line(reason)})"
            if try_to_load_from_cache(self.source, filename, revision=self.revision) is not _CACHED_NO_EXIST:
                self.uncached.add(name)
            return None
        except errors.EntryNotFoundError:
            return None
        except Exception as error:  # The client lets its HTTP library's errors through, and that library has changed.
            raise self.failure(filename, error) from error
        commit = path.parents[filename.count("/")].name
        if COMMIT.fullmatch(commit):
            self.revision = commit
        return path

    def failure(self, filename: str, error: Exception) -> CheckpointError:
        """Return what to tell the user about an error of the Hub's client."""
        from huggingface_hub import constants, errors

        page = f"{_endpoint()}/{self.source}"
        match error:
            case errors.GatedRepoError():
                mend = f"it is gated: ask for access at {page}, then log in with `hf auth login` or HF_TOKEN"
            case errors.RepositoryNotFoundError():
                mend = (
                    f"{_endpoint()} has no such model, and there is no such local folder: check the name,"
                    " or if the model is private, log in with `hf auth login` or HF_TOKEN"
                )
            case errors.RevisionNotFoundError():
                mend = f"it has no revision {self.revision!r}: see {page}/commits/main, or leave the revision out"
            case OSError(errno=errno.ENOSPC):
                mend = f"the disk of {constants.HF_HUB_CACHE} is full: make room, or set HF_HOME to a folder elsewhere"
            case _:
                mend = (
                    f"{_endpoint()} gave {type(error).__name__}: {_one_line(error)}. Check the connection, and"
                    " HF_ENDPOINT and HF_TOKEN where they are set, or pass a local folder"
                )
        return CheckpointError(f"{self.source!r}: {filename} cannot be fetched: {mend}.")

    def missing(self, *names: str) -> CheckpointError:
        from huggingface_hub import constants

        what = " or ".join(names)
        if self.uncached.isdisjoint(names):
            inside = f" in its folder {self.subfolder!r}" if self.subfolder else ""
            return CheckpointError(f"{self.source!r} ({self.revision or 'main'}) has no {what}{inside}.")
        return CheckpointError(
            f"{self.source!r}: {what} is not in the cache {constants.HF_HUB_CACHE}, and {self.unreachable}."
            f" Connect once (with HF_HUB_OFFLINE unset), run `hf download {self.source}` where there is a network,"
            " or pass a local folder."
        )

    def listing(self) -> list[str]:
        from huggingface_hub import HfApi

        if self.unreachable is not None:
            return []
        try:
            paths = [PurePosixPath(path) for path in HfApi().list_repo_files(self.source, revision=self.revision)]
        except Exception:  # The list only embellishes another error, which must not be lost.
            return []
        folder = PurePosixPath(self.subfolder)
        return sorted(str(path.relative_to(folder)) for path in paths if path.is_relative_to(folder))


def locate(source: str | os.PathLike[str], *, revision: str | None = None, subfolder: str | None = None) -> Files:
    """Return the files of a checkpoint: a bundled model's, a local folder's if there is one, else the Hub's. Nothing is
    fetched yet.

    Args:
        source: a bundled model's name, a local folder, or a Hub id ("owner/name" or "name").
        revision: a branch, tag or commit of the Hub; for the conversion that waits in a pull request, "refs/pr/N".
        subfolder: the folder within, as "text_encoder".

    Raises:
        CheckpointError: `source` is neither, or `revision` or `subfolder` makes no sense for it.
    """
    name = os.fspath(source)
    for argument, value in {"subfolder": subfolder, "revision": revision}.items():
        if value is not None and not _stays_inside(value):
            raise CheckpointError(f"{argument} must be a plain name such as 'a' or 'a/b', not {value!r}.")
    bundled = model_folder(source)
    if bundled is not None or os.path.isdir(name):
        folder = Path(bundled or name, subfolder or "")
        if revision is not None:
            raise CheckpointError(f"{name!r} is a local folder, which has no revisions: leave out {revision!r}.")
        if not folder.is_dir():
            raise CheckpointError(f"the folder {name!r} has no subfolder {subfolder!r}.")
        return Folder(name, folder)
    if os.path.exists(name):
        raise CheckpointError(f"{name!r} is a file: pass the folder that holds it and its config.json.")
    if not isinstance(source, str) or not HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"there is no folder {name!r}, and it is no Hub id either: pass an existing folder, 'owner/name' or 'name'."
        )
    return Repository(name, revision, subfolder or "")


def weight_files(files: Files) -> list[Path]:
    """Return a checkpoint's weights, as `open_tensors` takes them: one file, or an index and its shards.

    The first of `WEIGHTS` that is there holds.

    Raises:
        CheckpointError: none is there (the message says what is, and what to do with it), or shards are missing.
    """
    for name in WEIGHTS:
        if (path := files.find(name)) is None:
            continue
        if not name.endswith(INDEX_SUFFIX):
            return [path]
        shards = {shard: files.find(shard) for shard in sorted(set(read_index(path).values()))}
        if absent := [shard for shard, found in shards.items() if found is None]:
            raise CheckpointError(f"{path} names {len(shards)} shards: {files.missing(*absent)}")
        return [path, *(found for found in shards.values() if found is not None)]
    raise CheckpointError(f"{files.missing(*WEIGHTS)}{_advice(files.listing())}")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file of settings holds.

    Raises:
        CheckpointError: it cannot be read, is not JSON, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, but {error}. Download the file again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {content!r:.80}. Download the file again.")
    return content


def _advice(listing: list[str]) -> str:
    advice = ""
    if folders := sorted({path.rpartition("/")[0] for path in listing if path.rpartition("/")[2] in WEIGHTS}):
        advice += f" There are weights in the subfolders {quoted(folders)}: pass one as subfolder."
    for name in (path for path in listing if "/" not in path):
        for pattern, mend in OTHER_WEIGHTS.items():
            if re.fullmatch(pattern, name):
                advice += f" {name} {mend}."
                break
    return advice


def _stays_inside(path: str) -> bool:
    windows = PureWindowsPath(path)
    return path.isprintable() and not windows.anchor and ".." not in windows.parts and "\\" not in path


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split()).rstrip(".")
