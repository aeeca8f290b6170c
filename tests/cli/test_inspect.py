import json
import os
import pty
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cases import FOLDER
from safetensors.numpy import load_file, save_file

from jaxclip.cli import main
from jaxclip.compare import inspect

TABLE = """\
MODEL
CLIPModel, family clip: 38,977 parameters, float16, 0.1 MB

                   text              vision
width              16                36
MLP width          24                52
depth              1                 2
heads              2, each 8 wide    3, each 12 wide
activation         quick_gelu        quick_gelu
LayerNorm epsilon  1e-05             1e-05
input              12 tokens of 914  16 × 16 pixels, 4 × 4 patches of 4
read off           at the first 913  at the class token
projection         16 → 20           36 → 20
parameters         17,128            21,848

preprocessing  RGB, bicubic to shortest edge 20, centre 16 × 16, × 0.00392157, mean 0.4815 0.4578 0.4082, \
std 0.2686 0.2613 0.2758
tokenizer      914 tokens (begin 912, end 913, padding 913), at most 12 a text
weights        model.safetensors: 84,618 bytes, 62 tensors
warning: projection: text_config has 512 and vision_config has 512, but the joint model's is the top level's: 20
"""


def words_of(text):
    """Its lines without the columns' widths."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_prints_a_table(model, capsys):
    assert main(["inspect", model]) == 0
    printed = capsys.readouterr()
    assert printed.out == TABLE.replace("MODEL", model)
    assert printed.err == ""


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        ("openai", ["read off at the largest id (eos_token_id 2) at the class token", "tokenizer none"]),
        ("vision", ["read off at the class token", "projection none", "preprocessing none"]),
        ("text_projection", ["heads 2, each 16 wide", "projection 32 → 18", "parameters 20,240"]),
        ("sharded", ["weights model.safetensors.index.json: 5,614 bytes",
                     "model-00002-of-00003.safetensors: 39,008 bytes, 16 tensors"]),
        ("torch_file", ["weights pytorch_model.bin: SIZE bytes, 64 tensors"]),
    ],
)  # fmt: skip
def test_other_checkpoints(case, lines, capsys):
    assert main(["inspect", str(FOLDER / case)]) == 0
    printed = words_of(capsys.readouterr().out)
    size = f"{os.path.getsize(FOLDER / 'torch_file' / 'pytorch_model.bin'):,}"
    for line in lines:
        assert line.replace("SIZE", size) in printed
    assert ("in 3 shards" in printed[1]) == (case == "sharded")


def test_json_is_the_librarys(model, capsys):
    assert main(["inspect", model, "--json", "--values"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(json.dumps(inspect(model, values=True).to_json()))
    assert document["towers"]["text"]["parameters"] == 17128
    assert document["values"]["nan"] == {}


@pytest.fixture
def spoiled(model, tmp_path):
    """With a NaN, a tensor too many and a logit scale that is no logarithm."""
    folder = shutil.copytree(model, tmp_path / "spoiled")
    tensors = load_file(folder / "model.safetensors")
    tensors["text_projection.weight"][0, 0] = np.nan
    tensors["logit_scale"] = np.full((), 100, np.float16)
    tensors["odd\n.name"] = np.ones(3, np.float16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_problems_are_told_and_the_status_says_so(spoiled, capsys):
    assert main(["inspect", str(spoiled)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("problem")] == ["problem: unexpected: odd .name [3]"]
    assert main(["inspect", str(spoiled), "--values"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        "problem: unexpected: odd .name [3]",
        "problem: values: text_projection.weight has 1 NaN",
    ]
    assert "warning: logit scale: 100 is stored where its logarithm belongs: it would be exp(100)" in printed
    assert "logit scale exp(100.0000) = 2.688e+43" in words_of("\n".join(printed))
    assert main(["inspect", str(spoiled), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == ["unexpected: odd\n.name [3]"]


def test_what_is_left_is_told_where_the_config_can_not_be_read(spoiled, capsys):
    (spoiled / "config.json").write_text('{"model_type": "siglip"}')
    assert main(["inspect", str(spoiled)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "float16, 0.1 MB"
    assert printed[3:6] == ["preprocessing  none", "tokenizer      none", printed[5]]
    assert printed[5].startswith("weights        model.safetensors:")
    assert "model_type is 'siglip'" in printed[6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere"], "there is no folder './nowhere'"),
        (["."], "has no config.json"),
        (["MODEL", "--revision", "main"], "is a local folder, which has no revisions"),
        (["MODEL", "--subfolder", "text_encoder"], "has no subfolder 'text_encoder'"),
    ],
)
def test_what_can_not_be_inspected_is_one_line_and_status_2(model, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *(model if word == "MODEL" else word for word in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip inspect: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_terminal_gets_lines_that_fit(model):
    reader, writer = pty.openpty()
    code = "import sys; from jaxclip.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"COLUMNS": "60", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code, "inspect", model], stdout=writer, env=environment, check=False)
    os.close(writer)
    assert done.returncode == 0
    printed = b""
    while b"top level" not in printed:
        printed += os.read(reader, 10_000)
    os.close(reader)
    plain = printed.decode()
    assert "\x1b[33mwarning: projection" in plain
    assert all(len(line) <= 60 for line in re.sub(r"\x1b\[[0-9;]*m", "", plain).splitlines())
