"""By JAX's own counters, in processes of their own: what is compiled once is not compiled again."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cases import FOLDER, photos
from PIL import Image

# Runs `body`, then prints how often JAX's counters were touched, on the last line.
COUNTING = """
import collections, json, sys
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
{body}
print(json.dumps({{name: counts[name] for name in ("cache_hits", "cache_misses")}}), file=sys.stderr)
"""
SEARCH = "from jaxclip.cli import main\nassert main() == 0"
ENABLE = "import jaxclip\nprint(jaxclip.enable_compilation_cache({folder}))\njax.jit(lambda x: x + 1)(1)"


@pytest.fixture
def home(tmp_path):
    """An environment whose user has nothing yet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
    return kept | {"HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu"}


def run(body: str, environment: dict[str, str], *arguments: str) -> tuple[str, str, dict[str, int]]:
    """What it printed, on the streams and as counts."""
    command = [sys.executable, "-c", COUNTING.format(body=body), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    *errors, counts = done.stderr.splitlines()
    return done.stdout, "\n".join(errors), json.loads(counts)


def ours(errors: str) -> list[str]:
    """The lines that jaxclip or Python printed: JAX and XLA may say there what they think of the machine."""
    return [
        line
        for line in errors.splitlines()
        if line.startswith(("jaxclip", "skipped: ", "Traceback", "Exception ignored"))
    ]


def programs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*-cache"))


def test_the_second_start_of_a_command_compiles_nothing(tmp_path, home):
    (tmp_path / "photos").mkdir()
    for i, photo in enumerate(photos()):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{i}.png")
    arguments = ["search", "a cat", str(tmp_path / "photos"), "--model", str(FOLDER / "whole")]
    first, first_errors, counts = run(SEARCH, home, *arguments)
    folder = tmp_path / "home/.cache/jaxclip/compiled"
    assert counts["cache_hits"] == 0
    assert counts["cache_misses"] == len(programs(folder)) >= 2
    second, second_errors, again = run(SEARCH, home, *arguments)
    assert again == {"cache_hits": counts["cache_misses"], "cache_misses": 0}
    assert second == first
    assert not ours(f"{first_errors}\n{second_errors}")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # Programs are code.

    # What a killed process left half written is compiled once more, and no more than that.
    victim = folder / programs(folder)[0]
    victim.write_bytes(victim.read_bytes()[:100])
    victim.with_name(victim.name.replace("-cache", "-atime")).unlink()
    for misses in (1, 0):
        output, errors, counts = run(SEARCH, home, *arguments)
        assert (output, ours(errors), counts["cache_misses"]) == (first, [], misses)


def test_the_library_writes_nothing_unless_asked(tmp_path, home):
    body = f"import jaxclip\njaxclip.load({str(FOLDER / 'whole')!r}).encode_text('a cat')"
    assert run(body, home)[2] == {"cache_hits": 0, "cache_misses": 0}
    in_process = f"from jaxclip.cli import main\nmain(['search', 'a', {str(tmp_path)!r}, '--model', 'nowhere'])"
    run(in_process, home | {"HF_HUB_OFFLINE": "1"})
    assert not list(tmp_path.rglob("*-cache"))
    assert not (tmp_path / "home/.cache/jaxclip").exists()


def test_folders(tmp_path, home):
    """Where it is: as given, as JAX was told, as the user's cache folder is set."""
    given, set_, cache = (tmp_path / name for name in ("given", "set", "cache"))
    body = ENABLE.format(folder=repr(str(given)))
    for environment in (home, home | {"JAX_COMPILATION_CACHE_DIR": str(set_)}):
        assert run(body, environment)[0] == f"{given}\n"
    assert run(body, home)[2]["cache_misses"] == 0
    assert not set_.exists()

    body = ENABLE.format(folder="")
    assert run(body, home | {"JAX_COMPILATION_CACHE_DIR": str(set_)})[0] == f"{set_}\n"
    assert programs(set_)
    in_python = f"jax.config.update('jax_compilation_cache_dir', {str(set_)!r})\n{body}"
    output, _, counts = run(in_python, home)
    assert (output, counts["cache_misses"]) == (f"{set_}\n", 0)

    assert run(body, home | {"XDG_CACHE_HOME": str(cache)})[0] == f"{cache / 'jaxclip/compiled'}\n"
    assert programs(cache / "jaxclip/compiled")


def test_another_folder_later(tmp_path, home):
    body = "\n".join(ENABLE.format(folder=repr(str(tmp_path / name))) for name in ("a", "b"))
    run(body, home)
    assert programs(tmp_path / "a")
    assert programs(tmp_path / "b")


def test_jax_variables_of_the_user_stay(tmp_path, home):
    environment = home | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000", "JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    body = ENABLE.format(folder="") + "\nprint(jax.config.jax_compilation_cache_max_size)"
    output, _, counts = run(body, environment)
    assert output.splitlines()[1] == "-1"
    assert counts["cache_misses"] == 0
    assert not programs(tmp_path)


def test_the_folder_does_not_grow_without_end(tmp_path, home):
    body = ENABLE.format(folder=repr(str(tmp_path / "cache"))) + "\nprint(jax.config.jax_compilation_cache_max_size)"
    assert run(body, home)[0].splitlines()[1] == str(2**30)


@pytest.mark.parametrize("obstacle", ["file", "locked", "lockless", "homeless"])
def test_a_folder_that_can_not_be_written_to_stops_no_command(tmp_path, home, obstacle):
    (tmp_path / "photos").mkdir()
    Image.fromarray(photos()[0]).save(tmp_path / "photos" / "cat.png")
    cache = tmp_path / "home/.cache"
    if obstacle == "file":
        cache.parent.mkdir()
        cache.write_text("no folder")
    elif obstacle == "locked":
        (cache / "jaxclip/compiled/.lockfile").mkdir(parents=True)
    before = {
        "lockless": "import filelock\ndef fail(*_): raise NotImplementedError\nfilelock.FileLock._acquire = fail\n",
        "homeless": "import pathlib\ndef fail(): raise RuntimeError\npathlib.Path.home = fail\n",
    }.get(obstacle, "")
    output, errors, _ = run(
        before + SEARCH, home, "search", "a cat", str(tmp_path / "photos"), "--model", str(FOLDER / "whole")
    )
    assert len(output.splitlines()) == 1
    (error,) = ours(errors)
    assert error.startswith("jaxclip search: programs are compiled anew each time: no cache folder (")
    body = f"{before}import jaxclip\ntry: print(jaxclip.enable_compilation_cache())\nexcept OSError: pass\n"
    assert run(body + "print(jax.config.jax_compilation_cache_dir)", home)[0] == "None\n"
