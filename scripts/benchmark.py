"""Prints how many images and captions a second jaxclip encodes on this machine's CPU, beside transformers on torch
(eager, SDPA), open_clip and ONNX Runtime (exported from transformers), all with the same random weights and threads.

    pip install -e ".[parity]" onnxruntime onnx onnxscript
    python scripts/benchmark.py --captions captions.jsonl       # every model and case
    python scripts/benchmark.py --models ViT-B/32 --batches 8 --rounds 3 --only images

What is timed is what users call, from the arrays that preprocessing gave to vectors on the host: `clip.encode_pixels`
and `clip.encode_text` of token ids ("compiled model": the same without the handle, as a user's own `jax.jit` calls it),
`get_image_features` and `get_text_features`, `encode_image` and `encode_text`, `session.run`. Each library gets the
layout and the padding that are its own: transformers and ONNX Runtime batches padded to their longest caption,
open_clip always 77 tokens, jaxclip the whole list, which it sorts ("in order": a batch at a time, as the others). All
have to agree before anything is timed.

Each round measures all in turn, beginning with another one each time; a measurement repeats for at least 0.3 s. Rates
are medians over the rounds; a ratio is the median of the rounds' ratios, with the smallest and the largest in brackets.
Shares are of the fastest float32 matrix product seen until then (of NumPy's, torch's and JAX's), and count the
multiplications and additions of the model's matrix products on the tokens that an input has: not those on padding, but
the whole last block, of which jaxclip skips most. Each library has a process of its own, and none
works while another does, so that no library's idle threads, some of which wait by spinning, take another's time;
`--one-process` measures them all in one.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PEERS = {"transformers": "transformers", "open_clip": "open_clip_torch", "ONNX Runtime": "onnxruntime"}
ENOUGH = 0.3  # Seconds, which a measurement takes at least.
CAPTION_BATCH = 64
POSITIONS, BOS, EOS = 77, 49406, 49407

# The 0th, 5th, 10th, ... 100th percentile of the lengths of Flickr8k's 40,000 captions in tokens, BOS and EOS included.
FLICKR8K_LENGTHS = (4, 9, 9, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 16, 16, 17, 18, 19, 21, 42)


@dataclass(frozen=True)
class Shape:
    """A published model's size. `rounds` keeps slow models affordable."""

    patch: int
    width: int
    layers: int
    text_width: int
    projection: int
    open_clip: str
    rounds: int

    def image_flops(self) -> float:
        patches = (224 // self.patch) ** 2
        embedding = 2 * patches * 3 * self.patch**2 * self.width
        return embedding + blocks_flops(patches + 1, self.width, self.layers) + 2 * self.width * self.projection

    def text_flops(self, tokens: int) -> float:
        return blocks_flops(tokens, self.text_width, 12) + 2 * self.text_width * self.projection


def blocks_flops(tokens: int, width: int, layers: int) -> float:
    """Four products of width × width and two of width × 4 width for each token, and two of attention for each pair."""
    return layers * (tokens * 24 * width**2 + 4 * tokens**2 * width)


SHAPES = {
    "ViT-B/32": Shape(32, 768, 12, 512, 512, "ViT-B-32-quickgelu", 9),
    "ViT-B/16": Shape(16, 768, 12, 512, 512, "ViT-B-16-quickgelu", 5),
    "ViT-L/14": Shape(14, 1024, 24, 768, 768, "ViT-L-14-quickgelu", 3),
}


@dataclass(frozen=True)
class Case:
    """What is encoded: `batch` images, or captions."""

    model: str
    kind: str  # "images", "captions" or "captions of 77 tokens"
    batch: int

    def __str__(self) -> str:
        return f"{self.kind}, batch {self.batch}" if self.kind == "images" else self.kind


@dataclass(frozen=True)
class Inputs:
    """`token_ids` are padded to 77 tokens with EOS, `lengths` say how many there are up to the first."""

    pixels: np.ndarray
    token_ids: np.ndarray
    lengths: np.ndarray


def inputs_of(case: Case, captions: str | None) -> Inputs:
    generator = np.random.default_rng(0)
    if case.kind == "images":
        pixels = generator.standard_normal((case.batch, 224, 224, 3), dtype=np.float32)
        return Inputs(pixels, np.zeros((0, POSITIONS), np.int64), np.zeros(0, int))
    if case.kind == "captions of 77 tokens":
        texts = generator.integers(1, BOS, (case.batch, POSITIONS - 2)).tolist()
    elif captions:
        texts = tokenized(captions, case.batch, generator)
    else:
        lengths = np.interp(generator.uniform(0, 100, case.batch), np.linspace(0, 100, 21), FLICKR8K_LENGTHS)
        texts = [generator.integers(1, BOS, round(length) - 2).tolist() for length in lengths]
    token_ids = np.full((len(texts), POSITIONS), EOS)
    for row, text in zip(token_ids, texts, strict=True):
        row[: len(text) + 1] = [BOS, *text]
    return Inputs(np.zeros((0, 224, 224, 3), np.float32), token_ids, np.array([len(text) + 2 for text in texts]))


def tokenized(path: str, count: int, generator: np.random.Generator) -> list[list[int]]:
    """Random captions of a file: a caption a line, or JSON lines with a list of `captions`. The tokenizer is
    open_clip's, which has OpenAI's vocabulary."""
    import torchvision_on_cpu  # noqa: F401
    from open_clip.tokenizer import SimpleTokenizer

    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if path.endswith(".jsonl"):
        lines = [caption for line in lines for caption in json.loads(line)["captions"]]
    tokenizer = SimpleTokenizer()
    chosen = generator.permutation(len(lines))[:count]
    return [tokenizer.encode(lines[index])[: POSITIONS - 2] for index in chosen]


# How each library encodes: a function that gives the vectors, and how many inputs it encodes.
Runs = dict[str, tuple[Callable[[], np.ndarray], int]]


def padded_batches(inputs: Inputs) -> list[np.ndarray]:
    """Batches in the captions' own order, each as long as its longest."""
    starts = range(0, len(inputs.token_ids), CAPTION_BATCH)
    return [
        inputs.token_ids[start : start + CAPTION_BATCH, : inputs.lengths[start : start + CAPTION_BATCH].max()]
        for start in starts
    ]


def jaxclip_runs(case: Case, inputs: Inputs, folder: Path) -> Runs:
    import jax

    import jaxclip

    clip = loaded("jaxclip", folder, lambda: jaxclip.load(folder))
    # The parameters as a list: flattening a module, which jit does at each call, takes a millisecond or two.
    leaves, structure = jax.tree.flatten(clip.model)
    if case.kind == "images":
        compiled = jax.jit(lambda leaves, pixels: jax.tree.unflatten(structure, leaves).encode_image(pixels))
        return {
            "jaxclip": (lambda: np.asarray(clip.encode_pixels(inputs.pixels)), case.batch),
            "jaxclip, compiled model": (lambda: np.asarray(compiled(leaves, inputs.pixels)), case.batch),
        }
    runs: Runs = {"jaxclip": (lambda: np.asarray(clip.encode_text(inputs.token_ids)), case.batch)}
    if len(set(inputs.lengths)) > 1:
        batches = padded_batches(inputs)
        runs["jaxclip, in order"] = (
            lambda: np.concatenate([np.asarray(clip.encode_text(batch)) for batch in batches]),
            case.batch,
        )
    return runs


def transformers_runs(case: Case, inputs: Inputs, folder: Path) -> Runs:
    import torch

    model = loaded("transformers", folder, lambda: transformers_model(folder))
    if case.kind == "images":
        pixels = torch.from_numpy(np.ascontiguousarray(inputs.pixels.transpose(0, 3, 1, 2)))
        encode = [lambda: model.get_image_features(pixels).pooler_output]
    else:
        # Without the tokenizer's attention mask, which changes nothing in a causal tower.
        batches = [torch.from_numpy(batch) for batch in padded_batches(inputs)]
        encode = [lambda ids=ids: model.get_text_features(ids).pooler_output for ids in batches]
    return {"transformers": (torch_run(encode), case.batch)}


def open_clip_runs(case: Case, inputs: Inputs, folder: Path) -> Runs:
    import torch

    model = loaded("open_clip", folder, lambda: open_clip_model(folder, SHAPES[case.model]))
    if case.kind == "images":
        pixels = torch.from_numpy(np.ascontiguousarray(inputs.pixels.transpose(0, 3, 1, 2)))
        return {"open_clip": (torch_run([lambda: model.encode_image(pixels)]), case.batch)}
    # One batch tells the rate, since all have 77 tokens.
    ids = np.where(np.arange(POSITIONS) < inputs.lengths[:, None], inputs.token_ids, 0)[:CAPTION_BATCH]
    return {"open_clip": (torch_run([lambda: model.encode_text(torch.from_numpy(ids))]), len(ids))}


def torch_run(functions: Sequence[Callable[[], Any]]) -> Callable[[], np.ndarray]:
    import torch

    def run() -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([function().numpy() for function in functions])

    return run


def onnxruntime_runs(case: Case, inputs: Inputs, folder: Path) -> Runs:
    tower = "image" if case.kind == "images" else "text"
    session = loaded(f"ONNX Runtime {tower}", folder, lambda: onnx_session(folder / f"{tower}.onnx"))
    if tower == "image":
        batches = [{"pixels": np.ascontiguousarray(inputs.pixels.transpose(0, 3, 1, 2))}]
    else:
        batches = [{"token_ids": batch} for batch in padded_batches(inputs)]
    return {"ONNX Runtime": (lambda: np.concatenate([session.run(None, feed)[0] for feed in batches]), case.batch)}


RUNS = {
    "jaxclip": jaxclip_runs,
    "transformers": transformers_runs,
    "open_clip": open_clip_runs,
    "ONNX Runtime": onnxruntime_runs,
}
_loaded: dict[str, tuple[Path, Any]] = {}


def loaded(key: str, folder: Path, load: Callable[[], Any]) -> Any:
    """The model of `folder`, kept until another folder's is asked for."""
    if _loaded.get(key, (None, None))[0] != folder:
        _loaded.pop(key, None)
        _loaded[key] = folder, load()
    return _loaded[key][1]


def transformers_model(folder: Path) -> Any:
    import torchvision_on_cpu  # noqa: F401
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder).eval()


def write_model(folder: Path, shape: Shape) -> None:
    """A CLIP with random parameters, as transformers draws them."""
    import torch
    import torchvision_on_cpu  # noqa: F401
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    config = CLIPConfig(
        projection_dim=shape.projection,
        text_config={
            "hidden_size": shape.text_width,
            "intermediate_size": 4 * shape.text_width,
            "num_attention_heads": shape.text_width // 64,
        },
        vision_config={
            "hidden_size": shape.width,
            "intermediate_size": 4 * shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.width // 64,
            "patch_size": shape.patch,
        },
    )
    CLIPModel(config).save_pretrained(folder)


def write_onnx(folder: Path) -> None:
    """transformers' two towers, for any number of images, texts and tokens."""
    import torch

    model = transformers_model(folder)

    class Images(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            return self.model.get_image_features(pixels).pooler_output

    class Texts(Images):
        def forward(self, token_ids):
            return self.model.get_text_features(token_ids).pooler_output

    token_ids = torch.randint(1, BOS, (2, 9))
    token_ids[:, -1] = EOS
    batch, tokens = torch.export.Dim("batch", max=4096), torch.export.Dim("tokens", min=2, max=POSITIONS)
    for tower, module, example, name, dynamic in (
        ("image", Images(), torch.randn(2, 3, 224, 224), "pixels", {0: batch}),
        ("text", Texts(), token_ids, "token_ids", {0: batch, 1: tokens}),
    ):
        with torch.inference_mode():
            torch.onnx.export(
                module.eval(),
                (example,),
                folder / f"{tower}.onnx",
                input_names=[name],
                dynamic_shapes=(dynamic,),
                dynamo=True,
                external_data=True,
                verbose=False,
            )


def onnx_session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_clip_model(folder: Path, shape: Shape) -> Any:
    """open_clip's model of the same shape with the same weights."""
    import torchvision_on_cpu  # noqa: F401
    import open_clip  # isort: skip
    import torch
    from safetensors.torch import load_file

    theirs = load_file(folder / "model.safetensors")
    ours = {
        "logit_scale": theirs["logit_scale"],
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T,
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T,
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for prefix, tower, layers in (("visual.", "vision_model", shape.layers), ("", "text_model", 12)):
        for layer in range(layers):
            block, source = f"{prefix}transformer.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            norms |= {
                f"{block}.ln_1": f"{source}.layer_norm1",
                f"{block}.ln_2": f"{source}.layer_norm2",
                f"{block}.attn.out_proj": f"{source}.self_attn.out_proj",
                f"{block}.mlp.c_fc": f"{source}.mlp.fc1",
                f"{block}.mlp.c_proj": f"{source}.mlp.fc2",
            }
            for part in ("weight", "bias"):
                ours[f"{block}.attn.in_proj_{part}"] = torch.cat(
                    [theirs[f"{source}.self_attn.{name}_proj.{part}"] for name in "qkv"]
                )
    for part in ("weight", "bias"):
        ours |= {f"{name}.{part}": theirs[f"{other}.{part}"] for name, other in norms.items()}
    model = open_clip.create_model(shape.open_clip)
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected
    assert set(missing) <= {"attn_mask"}
    return model.eval()


class Worker:
    """Measures one library's runs when it is asked to."""

    def __init__(self, library: str, captions: str | None):
        if library in ("transformers", "open_clip"):
            import torch

            torch.set_num_threads(THREADS)
        self.library, self.captions = library, captions
        self.runs: Runs = {}
        self.repeats: dict[str, int] = {}

    def prepare(self, case: Case, folder: Path) -> dict[str, list]:
        """Each run's vectors."""
        self.runs = RUNS[self.library](case, inputs_of(case, self.captions), folder)
        vectors = {}
        for name, (run, _) in self.runs.items():
            vectors[name] = run().tolist()  # Compiles.
            start = time.perf_counter()
            run()
            self.repeats[name] = max(1, int(np.ceil(ENOUGH / (time.perf_counter() - start))))
        return vectors

    def measure(self, name: str) -> float:
        """Inputs a second."""
        run, count = self.runs[name]
        start = time.perf_counter()
        for _ in range(self.repeats[name]):
            run()
        return count * self.repeats[name] / (time.perf_counter() - start)

    def answer(self, request: dict) -> Any:
        if "case" in request:
            return self.prepare(Case(*request["case"]), Path(request["folder"]))
        return self.measure(request["name"])


class RemoteWorker:
    """A Worker in a process of its own."""

    def __init__(self, library: str, captions: str | None):
        command = [sys.executable, __file__, "--worker", library, *(("--captions", captions) if captions else ())]
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def answer(self, request: dict) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a library's process ended: see above")
        return json.loads(line)


def work(library: str, captions: str | None) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print goes to stderr, not among the answers.
    worker = Worker(library, captions)
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")


def available() -> list[str]:
    found = []
    for library, distribution in PEERS.items():
        try:
            metadata.version(distribution)
            found.append(library)
        except metadata.PackageNotFoundError:
            print(f"{library} is left out: {distribution} is not installed")
    if "transformers" not in found:
        raise SystemExit("transformers writes the models: pip install -e '.[parity]'")
    return ["jaxclip", *found]


class Peak:
    """The fastest float32 product of square matrices seen so far, in FLOP/s, and whose it is."""

    def __init__(self) -> None:
        import jax
        import torch

        torch.set_num_threads(THREADS)
        self.rate, self.whose = 0.0, ""
        self.products: dict[str, tuple[int, Callable[[], Any]]] = {}
        for size in (1024, 2048, 4096):
            a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
            on_torch, on_jax = (torch.from_numpy(a), torch.from_numpy(b)), (jax.numpy.asarray(a), jax.numpy.asarray(b))
            for whose, product in {
                "NumPy": lambda a=a, b=b: a @ b,
                "torch": lambda operands=on_torch: operands[0] @ operands[1],
                "JAX": lambda operands=on_jax: jax.numpy.matmul(*operands, precision="highest").block_until_ready(),
            }.items():
                self.products[f"{whose}, {size} × {size}"] = size, product

    def measure(self) -> None:
        for whose, (size, product) in self.products.items():
            start = time.perf_counter()
            product()
            self.rate, self.whose = max((self.rate, self.whose), (2 * size**3 / (time.perf_counter() - start), whose))


def agree(vectors: dict[str, list]) -> float:
    """The largest difference between unit vectors of two runs. SystemExit above 1e-4."""
    units = {name: (x := np.array(rows)) / np.linalg.norm(x, axis=1, keepdims=True) for name, rows in vectors.items()}
    rows = min(map(len, units.values()))
    worst = max(np.abs(a[:rows] - b[:rows]).max() for a, b in itertools.combinations(units.values(), 2))
    if worst > 1e-4:
        raise SystemExit(f"the implementations differ by {worst:.1e}: one of them computes something else")
    return float(worst)


def ratios(rates: dict[str, list[float]], ours: str, peer: str) -> list[float]:
    """The median of the rounds' ratios, the smallest and the largest."""
    each = [a / b for a, b in zip(rates[ours], rates[peer], strict=True)]
    return [statistics.median(each), min(each), max(each)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="of images")
    parser.add_argument("--only", choices=["images", "captions"])
    parser.add_argument("--captions", help="a caption a line, or JSON lines with `captions`; else random ids, as long")
    parser.add_argument("--rounds", type=int, help="default: 9 for ViT-B/32, 5 for ViT-B/16, 3 for ViT-L/14")
    parser.add_argument("--cache", default=f"{tempfile.gettempdir()}/jaxclip-benchmark", help="where the models lie")
    parser.add_argument("--json", help="write all rates of all rounds into this file")
    parser.add_argument("--one-process", action="store_true", help="all libraries in this process")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.captions)
        return
    libraries = available()
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "torch", *PEERS.values()) if name in installed()]
    peak = Peak()
    print(f"{', '.join(versions)}; {THREADS} threads")
    for model in options.models:
        folder = Path(options.cache) / model.replace("/", "-")
        writers = {"": partial(write_model, folder, SHAPES[model]), "ONNX Runtime": partial(write_onnx, folder)}
        for library, write in writers.items():
            done = folder / f"done {library}".rstrip()
            if (not library or library in libraries) and not done.exists():
                write()
                done.touch()
    workers = {name: (Worker if options.one_process else RemoteWorker)(name, options.captions) for name in libraries}
    results = []
    for model in options.models:
        shape = SHAPES[model]
        cases = [Case(model, "images", batch) for batch in options.batches if options.only != "captions"]
        if options.only != "images":
            cases += [Case(model, "captions", 4 * CAPTION_BATCH), Case(model, "captions of 77 tokens", CAPTION_BATCH)]
        for case in cases:
            measured = measure(case, workers, Path(options.cache), options.rounds or shape.rounds, peak)
            flops = shape.image_flops()
            if case.kind != "images":
                lengths = inputs_of(case, options.captions).lengths
                flops = statistics.mean(shape.text_flops(int(tokens)) for tokens in lengths)
            show(case, measured, flops, peak)
            results.append({"model": model, "case": str(case), "flops": flops, **measured})
    if options.json:
        whole = {"versions": versions, "threads": THREADS, "peak": peak.rate, "results": results}
        Path(options.json).write_text(json.dumps(whole, indent=1))


def installed() -> set[str]:
    return {distribution.metadata["Name"] for distribution in metadata.distributions()}


def measure(case: Case, workers: dict[str, Any], cache: Path, rounds: int, peak: Peak) -> dict[str, Any]:
    request = {"case": (case.model, case.kind, case.batch), "folder": str(cache / case.model.replace("/", "-"))}
    owners, vectors = {}, {}
    for worker in workers.values():
        answer = worker.answer(request)
        vectors |= answer
        owners |= dict.fromkeys(answer, worker)
    worst = agree(vectors)
    names, rates = list(owners), {name: [] for name in owners}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            rates[name].append(owners[name].answer({"name": name}))
        peak.measure()
    return {"rates": rates, "worst_difference": worst}


def show(case: Case, measured: dict[str, Any], flops: float, peak: Peak) -> None:
    """`flops` of one input."""
    rates = measured["rates"]
    print(
        f"\n{case.model}, {case}: {len(rates['jaxclip'])} rounds; vectors agree to {measured['worst_difference']:.0e}"
    )
    print(f"{flops / 1e9:.3g} GFLOP each; float32 matmul peak {peak.rate / 1e9:.0f} GFLOP/s ({peak.whose})\n")
    print("| | a second | share of peak | jaxclip is faster by |\n|---|---:|---:|---:|")
    for name, each in rates.items():
        rate = statistics.median(each)
        versus = "" if name == "jaxclip" else "{:.2f} × ({:.2f} to {:.2f})".format(*ratios(rates, "jaxclip", name))
        print(f"| {name} | {rate:.3g} | {rate * flops / peak.rate:.0%} | {versus} |", flush=True)


if __name__ == "__main__":
    main()
