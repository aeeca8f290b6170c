"""Write tests/checkpoints/references: files as torch itself writes them, and the tensors they hold as safetensors.

Run with torch installed: `python scripts/write_torch_archive_references.py`. Random numbers are seeded; torch still
stamps each archive with an id of its own, so that rewriting changes the files' bytes and not what they hold.
"""

import json
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "tests/checkpoints/references"


def every_kind() -> OrderedDict[str, torch.Tensor]:
    """Return a state dict with every dtype, layout and sharing that is supported."""
    numbers = torch.randn(6, 5)
    tensors = OrderedDict(
        float32=torch.randn(3, 4),
        float64=torch.randn(3, dtype=torch.float64),
        float16=torch.randn(3).half(),
        bfloat16=torch.randn(2, 3).bfloat16(),
        int64=torch.arange(-2, 5),
        int32=torch.arange(4, dtype=torch.int32),
        int16=torch.arange(-4, 0, dtype=torch.int16),
        int8=torch.arange(-4, 0, dtype=torch.int8),
        uint8=torch.arange(250, 256, dtype=torch.uint8),
        boolean=torch.tensor([True, False, True]),
        scalar=torch.tensor(4.6052),
        empty=torch.zeros(0, 3),
        whole=numbers,
        tied=numbers,
        transposed=numbers.T,
        column=numbers[:, 2],
        corner=numbers[2:5:2, 1:4],
        repeated=torch.arange(3).expand(2, -1),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
    )
    tensors._metadata = OrderedDict({"": {"version": 1}})  # pyright: ignore[reportAttributeAccessIssue]
    return tensors


def main() -> None:
    """Write all references."""
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    state = every_kind()
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in state.items()},
        FOLDER / "every_kind.safetensors",
        metadata={"torch": torch.__version__},
    )
    torch.save(state, FOLDER / "every_kind.bin")
    few = OrderedDict((name, state[name]) for name in ("float32", "bfloat16", "tied", "transposed", "parameter"))
    for protocol in (3, 4, 5):
        torch.save(few, FOLDER / f"protocol_{protocol}.bin", pickle_protocol=protocol)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    torch.save(
        {"epoch": 3, "name": "run", "loss": 0.5, "state_dict": few, "optimizer": optimizer.state_dict()},
        FOLDER / "wrapped.bin",
    )
    torch.save(few, FOLDER / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"eighth": torch.zeros(2).to(torch.float8_e4m3fn)}, FOLDER / "float8.bin")
    torch.save({"sparse": torch.eye(2).to_sparse()}, FOLDER / "sparse.bin")
    torch.save(model, FOLDER / "module.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(model), FOLDER / "torchscript.bin")
    torch.serialization.set_crc32_options(False)
    torch.save(few, FOLDER / "without_crc.bin")
    torch.serialization.set_crc32_options(True)
    shards = {"pytorch_model-00001-of-00002.bin": ["float32", "tied"], "pytorch_model-00002-of-00002.bin": ["int64"]}
    for shard, names in shards.items():
        torch.save({name: state[name] for name in names}, FOLDER / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (FOLDER / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file in FOLDER.iterdir():
        file.chmod(0o644)  # safetensors writes 0o600


if __name__ == "__main__":
    main()
