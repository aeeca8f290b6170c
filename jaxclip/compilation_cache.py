"""Compiled programs kept on disk, so that a process compiles only what none before it has."""

import os
from pathlib import Path

import jax
from filelock import FileLock, Timeout

# A program of a full-size model takes a tenth of a megabyte on a CPU and some megabytes on a GPU.
_LARGEST = 1 << 30

# Everything is kept, however small and fast to compile: seven of the nine programs of a search are. (What else JAX can
# keep, autotuning results on GPUs, it keeps by default.)
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Turns JAX's persistent compilation cache on for this process, for every program however small.

    `folder` is by default the one that JAX is already set to use (by JAX_COMPILATION_CACHE_DIR, say), or else
    `jaxclip/compiled` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache). There, or in `folder`, the programs
    that were used least recently make room beyond 1 GiB, and those without a time of use (half written, or kept by JAX
    without a bound) are removed; a folder that JAX is set to use is left as it is. What an environment variable of
    JAX's sets stays, too.

    Compiled programs are code: let nobody else write to the folder. Returns it. Raises OSError where it can't be
    written to, and changes nothing then.
    """
    settings = dict(_SETTINGS)
    configured = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None and configured:
        path = Path(configured)
    else:
        path = Path(folder) if folder is not None else _user_cache() / "jaxclip" / "compiled"
        _prepare(path)
        settings |= {"jax_compilation_cache_dir": str(path), "jax_compilation_cache_max_size": _LARGEST}
    for name, value in settings.items():
        if name.upper() not in os.environ or name == "jax_compilation_cache_dir":
            jax.config.update(name, value)
    if configured and str(path) != configured:
        # JAX opens its folder once, and would stay with the one before. (Documented, but of
        # `jax.experimental`: imported where it is needed, so that a JAX without it keeps programs all the same.)
        from jax.experimental.compilation_cache.compilation_cache import reset_cache

        reset_cache()
    return path


def _user_cache() -> Path:
    """As the Hub's client has it, on every system."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise FileNotFoundError("this user has no home folder; set XDG_CACHE_HOME") from error


def _prepare(folder: Path) -> None:
    """Makes the folder, sees that it can be written to, and removes what a killed process left half written.

    JAX writes a program and then its time of use. Where the second is missing, JAX could neither use the first, nor
    replace it, nor make room.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{str(folder)!r} can't be written to")
    try:
        with FileLock(folder / ".lockfile", timeout=0):  # JAX's own.
            for program in folder.glob("*-cache"):
                if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                    program.unlink()
    except Timeout:
        pass  # Another process is at it this moment.
    except NotImplementedError as error:
        raise OSError(f"{str(folder)!r} is on a file system without locks") from error
