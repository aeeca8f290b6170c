"""Finding a checkpoint's files: in a folder, and on a Hub of our own on localhost."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from safetensors.numpy import save

from jaxclip.checkpoints.errors import CheckpointError
from jaxclip.checkpoints.files import WEIGHTS, locate, weight_files
from jaxclip.checkpoints.tensors import open_tensors

FIRST, SECOND = "1" * 40, "2" * 40
ONE = save({"a": np.ones(2, np.float32)})
TWO = save({"b": np.zeros(3, np.float32)})
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def message(function: Callable, *arguments: object, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*arguments, **options)
    return str(caught.value)


# Folders.


@pytest.mark.parametrize("as_path", [True, False])
def test_a_folders_files(tmp_path: Path, as_path: bool) -> None:
    write(tmp_path, {"config.json": b"{}"})
    files = locate(tmp_path if as_path else str(tmp_path))
    assert (files.source, files.revision) == (str(tmp_path), None)
    assert files.find("config.json") == files.require("config.json") == tmp_path / "config.json"
    assert files.find("vocab.json") is None
    assert message(files.require, "vocab.json") == f"the folder '{tmp_path}' has no vocab.json."


def test_a_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"owner/name/config.json": b"{}"})
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name").require("config.json") == Path("owner/name/config.json")


def test_subfolders(tmp_path: Path) -> None:
    write(tmp_path, {"text_encoder/config.json": b"{}"})
    files = locate(tmp_path, subfolder="text_encoder")
    assert files.require("config.json") == tmp_path / "text_encoder/config.json"
    assert "has no subfolder 'vae'" in message(locate, tmp_path, subfolder="vae")


@pytest.mark.parametrize(
    "outside", ["..", "../other", "a/../..", "/etc", "C:/windows", "C:", "a\\..\\..", "a\\b", "\\\\host\\x", "a\n"]
)
def test_subfolders_and_revisions_stay_inside(tmp_path: Path, outside: str) -> None:
    assert f"subfolder must be a plain name such as 'a' or 'a/b', not {outside!r}" in message(
        locate, tmp_path, subfolder=outside
    )
    assert f"revision must be a plain name such as 'a' or 'a/b', not {outside!r}" in message(
        locate, "owner/name", revision=outside
    )


def test_folders_have_no_revisions(tmp_path: Path) -> None:
    assert "which has no revisions: leave out 'main'" in message(locate, tmp_path, revision="main")


NEITHER = ["./missing", "../missing", "a/b/c", "/nowhere/at/all", "", "-x", "a--b", "a..b", "owner/", "x" * 97, "a b"]


@pytest.mark.parametrize("source", [*NEITHER, Path("missing"), Path("owner/name")])
def test_what_is_neither_a_folder_nor_a_hub_id(source: str | Path) -> None:
    assert message(locate, source) == (
        f"there is no folder {str(source)!r}, and it is no Hub id either:"
        " pass an existing folder, 'owner/name' or 'name'."
    )


@pytest.mark.parametrize("source", ["gpt2", "openai/clip-vit-base-patch32", "a", "x_y.z/A-1.0", "x" * 96])
def test_hub_ids(source: str) -> None:
    assert locate(source, revision="refs/pr/62").revision == "refs/pr/62"


def test_a_file_instead_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path, {"model.safetensors": ONE})
    assert "is a file: pass the folder that holds it" in message(locate, tmp_path / "model.safetensors")


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    assert "is a link to '../blobs/gone', which is not there" in message(weight_files, locate(tmp_path))


# Weights.


@pytest.mark.parametrize("count", [4, 3, 2, 1])
def test_the_first_weights_of_the_order_hold(tmp_path: Path, count: int) -> None:
    contents = dict(zip(WEIGHTS, [ONE, INDEX, b"PK", INDEX.replace(b"safetensors", b"bin")], strict=True))
    write(tmp_path, {name: contents[name] for name in WEIGHTS[-count:]})
    write(tmp_path, {f"model-{number}.{kind}": b"" for number in (1, 2) for kind in ("safetensors", "bin")})
    expected = {
        4: ["model.safetensors"],
        3: ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"],
        2: ["pytorch_model.bin"],
        1: ["pytorch_model.bin.index.json", "model-1.bin", "model-2.bin"],
    }
    assert weight_files(locate(tmp_path)) == [tmp_path / name for name in expected[count]]


def test_missing_shards_are_listed_all_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"model.safetensors.index.json": INDEX})
    found = message(weight_files, locate(tmp_path))
    assert "model.safetensors.index.json names 2 shards" in found
    assert "has no model-1.safetensors or model-2.safetensors" in found


def test_no_weights(tmp_path: Path) -> None:
    write(tmp_path, {"config.json": b"{}"})
    assert message(weight_files, locate(tmp_path)) == (
        f"the folder '{tmp_path}' has no model.safetensors or model.safetensors.index.json or pytorch_model.bin"
        " or pytorch_model.bin.index.json."
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (
            "flax_model.msgpack",
            "flax_model.msgpack is read by transformers < 5: CLIPModel.from_pretrained(..., from_flax",
        ),
        ("tf_model.h5", "tf_model.h5 is read by transformers < 5: CLIPModel.from_pretrained(..., from_tf=True)"),
        ("ViT-B-32.pt", "ViT-B-32.pt is a training checkpoint or TorchScript"),
        ("epoch_32.ckpt", "epoch_32.ckpt is a training checkpoint"),
        ("open_clip_pytorch_model.bin", "is in open_clip's own naming: look for the same model's transformers version"),
        ("open_clip_model.safetensors", "is in open_clip's own naming"),
        ("adapter_model.safetensors", "is an adapter (LoRA)"),
        ("model.fp16.safetensors", "model.fp16.safetensors is not under a name that transformers loads: rename it"),
        ("model.onnx", "model.onnx is of another format"),
        ("text_encoder/model.safetensors", "There are weights in the subfolders 'text_encoder': pass one as subfolder"),
        ("checkpoint-500/pytorch_model.bin", "in the subfolders 'checkpoint-500'"),
    ],
)
def test_weights_of_other_kinds_get_advice(tmp_path: Path, name: str, advice: str) -> None:
    write(tmp_path, {"config.json": b"{}", name: b"x"})
    assert advice in message(weight_files, locate(tmp_path))


# The Hub.


class Hub(ThreadingHTTPServer):
    """The Hub's endpoints that fetching a model's files takes.

    Attributes:
        files: of each model and commit.
        refs: from each model and branch to a commit.
        requests: all for files so far.
        failure: where set, the status and headers of every answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.requests: list[str] = []
        self.failure: tuple[int, dict[str, str]] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, model: str, commit: str, files: dict[str, bytes]) -> None:
        """Put `files` on the main branch of `model`."""
        self.files[model, commit] = files
        self.refs[model, "main"] = self.refs[model, commit] = commit


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if "/resolve/" in self.path:  # what else the client asks is its own affair
            self.server.requests.append(f"{self.command} {self.path}")
        status, headers, content = self.answer()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        if self.server.failure is not None:
            return (*self.server.failure, b"")
        if tree := re.fullmatch(r"/api/models/(.+)/tree/(\w+)\?.*", self.path):
            files = self.server.files[tree[1], self.server.refs[tree[1], tree[2]]]
            listing = [{"type": "file", "path": path, "size": 1, "oid": "0"} for path in files]
            return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
        parts = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", self.path)
        if parts is None:
            return 404, {}, b""
        model, revision, name = parts[1], unquote(parts[2]), unquote(parts[3])
        if all(model != known for known, _ in self.server.refs):
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if (model, revision) not in self.server.refs:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit = self.server.refs[model, revision]
        files = self.server.files[model, commit]
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hash(files[name]):x}"'}, files[name]


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub without models, to which the client is directed, with an empty cache."""
    from huggingface_hub import constants

    server.files, server.refs, server.requests, server.failure = {}, {}, [], None
    point_at(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's, between attempts
    return server


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when the client is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Do what HF_HUB_OFFLINE=1 does when the client is imported."""

    def offline() -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    return offline


def test_files_are_fetched_once_when_asked_for(hub: Hub) -> None:
    hub.commit("owner/name", FIRST, {"config.json": b"{}", "model.safetensors": ONE, "large.onnx": b""})
    files = locate("owner/name")
    assert hub.requests == []
    assert files.require("config.json").read_bytes() == b"{}"
    assert files.find("config.json") == files.require("config.json")
    assert files.find("vocab.json") is None
    assert files.find("vocab.json") is None
    assert open_tensors(weight_files(files))["a"].read().tolist() == [1, 1]
    assert hub.requests == [
        "HEAD /owner/name/resolve/main/config.json",
        "GET /owner/name/resolve/main/config.json",
        f"HEAD /owner/name/resolve/{FIRST}/vocab.json",
        f"HEAD /owner/name/resolve/{FIRST}/model.safetensors",
        f"GET /owner/name/resolve/{FIRST}/model.safetensors",
    ]


def test_all_files_come_from_one_commit(hub: Hub) -> None:
    hub.commit("name", FIRST, {"config.json": b"old", "model.safetensors": ONE})
    files = locate("name")
    assert files.revision is None
    files.require("config.json")
    assert files.revision == FIRST
    hub.commit("name", SECOND, {"config.json": b"new", "model.safetensors": TWO})
    assert files.require("model.safetensors").read_bytes() == ONE
    assert locate("name").require("config.json").read_bytes() == b"new"


def test_branches_tags_and_pull_requests(hub: Hub) -> None:
    hub.commit("name", FIRST, {"model.safetensors": ONE})
    hub.commit("name", SECOND, {"pytorch_model.bin": b""})
    hub.refs["name", "refs/pr/62"] = FIRST
    files = locate("name", revision="refs/pr/62")
    assert files.require("model.safetensors").read_bytes() == ONE
    assert files.revision == FIRST
    assert "(main) has no model.safetensors." in message(locate("name").require, "model.safetensors")


def test_a_checkpoint_without_safetensors(hub: Hub) -> None:
    hub.commit("openai/clip", FIRST, {"config.json": b"", "pytorch_model.bin": b"PK", "flax_model.msgpack": b""})
    assert [path.name for path in weight_files(locate("openai/clip"))] == ["pytorch_model.bin"]
    assert not any("flax_model" in request for request in hub.requests)


def test_shards_lie_beside_their_index(hub: Hub) -> None:
    shards = {"te/model-1.safetensors": ONE, "te/model-2.safetensors": TWO}
    hub.commit("name", FIRST, {"te/model.safetensors.index.json": INDEX, **shards})
    tensors = open_tensors(weight_files(locate("name", subfolder="te")))
    assert {name: tensor.read().tolist() for name, tensor in tensors.items()} == {"a": [1, 1], "b": [0, 0, 0]}


def test_subfolders_of_a_model(hub: Hub) -> None:
    hub.commit("name", FIRST, {"text_encoder/model.safetensors": ONE, "unet/model.safetensors": TWO})
    files = locate("name", subfolder="text_encoder")
    assert files.require("model.safetensors").read_bytes() == ONE
    assert files.revision == FIRST
    assert f"'name' ({FIRST}) has no config.json in its folder 'text_encoder'" in message(files.require, "config.json")
    assert "There are weights in the subfolders 'text_encoder', 'unet': pass one" in message(
        weight_files, locate("name")
    )


def test_other_weights_on_the_hub_get_advice(hub: Hub) -> None:
    hub.commit("name", FIRST, {"config.json": b"{}", "flax_model.msgpack": b"", "big/model.safetensors": b""})
    found = message(weight_files, locate("name"))
    assert "flax_model.msgpack is read by transformers < 5" in found
    assert "in the subfolders 'big'" in found
    assert message(weight_files, locate("name", subfolder="vae")).endswith("in its folder 'vae'.")
    assert not any(request.startswith("GET") and "flax" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (
            (403, {"X-Error-Code": "GatedRepo"}),
            "it is gated: ask for access at {url}/owner/name, then log in with `hf auth login` or HF_TOKEN",
        ),
        ((401, {"X-Error-Code": "GatedRepo"}), "it is gated"),
        (
            (401, {"X-Error-Code": "RepoNotFound"}),
            "{url} has no such model, and there is no such local folder: check the name, or if the model is private",
        ),
        ((404, {"X-Error-Code": "RepoNotFound"}), "{url} has no such model"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "it has no revision 'v1': see {url}/owner/name/commits/main"),
        ((401, {"X-Error-Message": "Invalid credentials in Authorization header"}), "Invalid credentials"),
        ((403, {"X-Error-Message": "Token lacks a scope"}), "Token lacks a scope"),
        ((404, {}), "{url} gave HfHubHTTPError"),
        ((429, {}), "429"),
        ((500, {}), "500"),
        ((200, {}), "{url} gave FileMetadataError"),
    ],
)
def test_what_the_hub_refuses_is_told(hub: Hub, failure: tuple, expected: str) -> None:
    hub.failure = failure
    files = locate("owner/name", revision="v1")
    found = message(files.find, "config.json")
    assert found.startswith("'owner/name': config.json cannot be fetched: ")
    assert expected.format(url=hub.url) in found
    assert "\n" not in found


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_a_hub_out_of_reach(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    point_at(endpoint, monkeypatch)
    files = locate("owner/name")
    assert files.find("config.json") is None
    found = message(weight_files, files)
    assert "model.safetensors or model.safetensors.index.json or pytorch_model.bin" in found
    assert f"is not in the cache {tmp_path / 'cache'}" in found
    assert f"{endpoint} is out of reach (" in found
    assert "run `hf download owner/name` where there is a network, or pass a local folder" in found


def test_an_endpoint_that_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("nonsense", monkeypatch)
    assert "nonsense gave UnsupportedProtocol" in message(locate("owner/name").find, "config.json")
    assert "HF_ENDPOINT" in message(locate("owner/name").find, "config.json")


def test_the_client_is_not_asked_to_retry_for_every_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    point_at("http://127.0.0.1:9", monkeypatch)
    asked: list[bool] = []
    original = huggingface_hub.hf_hub_download

    def download(*arguments: object, local_files_only: bool, **options: object) -> str:
        asked.append(local_files_only)
        return original(*arguments, local_files_only=local_files_only, **options)

    def list_files() -> None:
        asked.append(False)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", list_files)
    message(weight_files, locate("name"))
    assert asked == [False, True, True, True]


def test_offline_what_is_cached_is_found(hub: Hub, offline: Callable) -> None:
    hub.commit("name", FIRST, {"config.json": b"{}", "pytorch_model.bin": b"PK"})
    online = locate("name")
    online.require("config.json")
    weight_files(online)
    offline()
    files = locate("name")
    assert files.require("config.json").read_bytes() == b"{}"
    assert files.revision == FIRST
    assert [path.name for path in weight_files(files)] == ["pytorch_model.bin"]
    # That the model has none is known from the time when the Hub was there.
    assert message(files.require, "model.safetensors") == f"'name' ({FIRST}) has no model.safetensors."
    found = message(files.require, "vocab.json")
    assert "vocab.json is not in the cache" in found
    assert "HF_HUB_OFFLINE is set. Connect once (with HF_HUB_OFFLINE unset), run `hf download name`" in found


def test_offline_weights_that_are_not_cached(hub: Hub, offline: Callable) -> None:
    hub.commit("name", FIRST, {"config.json": b"{}", "model.safetensors": ONE})
    locate("name").require("config.json")
    offline()
    files = locate("name")
    assert files.find("model.safetensors") is None
    assert "is not in the cache" in message(weight_files, files)
    assert "HF_HUB_OFFLINE is set" in message(weight_files, files)


def test_offline_shards_that_are_not_cached(hub: Hub, offline: Callable) -> None:
    hub.commit("name", FIRST, {"model.safetensors.index.json": INDEX, "model-1.safetensors": ONE})
    files = locate("name")
    files.require("model.safetensors.index.json")
    files.require("model-1.safetensors")
    offline()
    found = message(weight_files, locate("name"))
    assert "names 2 shards: 'name': model-2.safetensors is not in the cache" in found


def test_a_full_disk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("name", FIRST, {"config.json": b"{}"})

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    found = message(locate("name").require, "config.json")
    assert f"the disk of {tmp_path / 'cache'} is full: make room, or set HF_HOME" in found


def test_the_environment_directs_the_client(hub: Hub, tmp_path: Path) -> None:
    hub.commit("owner/name", FIRST, {"config.json": b"{}"})
    code = (
        "from jaxclip.checkpoints.files import locate; files = locate('owner/name')\n"
        "print(files.require('config.json'), files.revision)\n"
        "try: print(files.require('vocab.json'))\n"
        "except ValueError as error: print(error)"
    )
    cache = tmp_path / "elsewhere"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1"}
    outputs = []
    for offline in ("0", "1"):
        environment["HF_HUB_OFFLINE"] = offline
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines())
        shutil.rmtree(cache / "models--owner--name/.no_exist", ignore_errors=True)
    found = f"{cache}/models--owner--name/snapshots/{FIRST}/config.json {FIRST}"
    assert outputs[0] == [found, f"'owner/name' ({FIRST}) has no vocab.json."]
    assert outputs[1][0] == found
    assert f"vocab.json is not in the cache {cache}, and HF_HUB_OFFLINE is set." in outputs[1][1]
