"""Prints what a user waits for around the model itself, on this machine's CPU.

    pip install -e ".[parity]" scikit-image
    python scripts/measure_start.py start      # from `python` to the first embedding, beside transformers
    python scripts/measure_start.py stream     # a folder of 12-megapixel JPEGs to vectors

Both take a ViT-B/32 with random parameters, which transformers writes once into `--cache` (0.6 GB).

start: fresh processes in turn, each from its beginning to vectors on the host: import, load, compile and encode one
text (token ids) or one image (pixels). jaxclip runs without JAX's persistent compilation cache, with an empty one, and
with what that left ("warm"). The files are in the system's cache.

stream: `clip.stream_images` over photos of scikit-image enlarged to 4,000 × 3,000 and saved as JPEG at quality 90. In
each round, by turns: decoding and preprocessing alone, with as many threads as the stream has; the model alone, on
batches of pixels made before; the stream; and `jaxclip.embed_folder`, which keeps an index of it. Decoding and the
model share the processors, so that a perfect stream reaches 1 / (1 / decoding + 1 / model) where both keep all of them
busy, and the slower of the two where there are processors to spare. Every figure is a median over the rounds.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from benchmark import EOS, SHAPES, THREADS, write_model

IMAGE = "numpy.random.default_rng(0).standard_normal((1, 224, 224, 3), dtype=numpy.float32)"
TEXT = f"numpy.array([[49406, 320, 1125, 539, 320, 2368, {EOS}]])"
JAXCLIP = """
import sys, numpy, jaxclip
clip = jaxclip.load(sys.argv[1])
print(numpy.asarray(clip.{call}).shape)
"""
TRANSFORMERS = """
import sys; sys.path.insert(0, {scripts!r})
import numpy, torchvision_on_cpu, torch
from transformers import CLIPModel
model = CLIPModel.from_pretrained(sys.argv[1])
with torch.inference_mode():
    print(model.{call}.pooler_output.numpy().shape)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start", "stream"])
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--photos", type=int, default=64, help="of stream (default: %(default)s)")
    parser.add_argument("--cache", default=f"{tempfile.gettempdir()}/jaxclip-benchmark", help="where the model lies")
    options = parser.parse_args()
    folder = Path(options.cache) / "ViT-B-32"
    if not (folder / "model.safetensors").exists():
        write_model(folder, SHAPES["ViT-B/32"])
    {"start": start, "stream": stream}[options.what](folder, options)


def start(folder: Path, options: argparse.Namespace) -> None:
    scripts = str(Path(__file__).parent)
    pixels = f"torch.from_numpy({IMAGE}.transpose(0, 3, 1, 2).copy())"
    programs = {
        "text": {
            "jaxclip": JAXCLIP.format(call=f"encode_text({TEXT})"),
            "transformers": TRANSFORMERS.format(scripts=scripts, call=f"get_text_features(torch.from_numpy({TEXT}))"),
        },
        "image": {
            "jaxclip": JAXCLIP.format(call=f"encode_pixels({IMAGE})"),
            "transformers": TRANSFORMERS.format(scripts=scripts, call=f"get_image_features({pixels})"),
        },
    }
    print(f"Seconds to the first embedding, ViT-B/32: median of {options.rounds} processes (fastest, slowest)\n")
    print("| | text | image |\n|---|---:|---:|")
    ways = {
        "jaxclip, no cache": ("jaxclip", False),
        "jaxclip, empty cache": ("jaxclip", True),
        "jaxclip, warm cache": ("jaxclip", True),
        "transformers": ("transformers", False),
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in programs} for name in ways}
    for turn in range(options.rounds + 1):
        for kind, program in programs.items():
            with tempfile.TemporaryDirectory() as cache:
                for name, (library, cached) in ways.items():
                    taken = run(program[library], folder, cache if cached else None)
                    if turn:  # The first brings the files into the system's cache.
                        seconds[name][kind].append(taken)
    for name, by_kind in seconds.items():
        cells = [f"{statistics.median(each):.2f} ({min(each):.2f}, {max(each):.2f})" for each in by_kind.values()]
        print(f"| {name} | {' | '.join(cells)} |")


def run(program: str, folder: Path, cache: str | None) -> float:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS)}
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
        # All programs, as a process that starts again and again would have it.
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode or "(1, 512)" not in done.stdout:
        raise SystemExit(f"the process failed:\n{done.stdout}{done.stderr}")
    return seconds


def stream(folder: Path, options: argparse.Namespace) -> None:
    import jaxclip
    from jaxclip.processing import ImageProcessor

    clip = jaxclip.load(folder, towers="vision")
    clip.image_processor = ImageProcessor()
    with tempfile.TemporaryDirectory() as photos:
        paths = write_photos(Path(photos), options.photos)
        size = sum(path.stat().st_size for path in paths) / len(paths)
        batch_size = clip.encoder.batch_size("image")
        pixels = clip.image_processor(paths[:batch_size])
        pixels = pixels[np.arange(batch_size) % len(pixels)]

        def decode() -> int:
            with ThreadPoolExecutor(THREADS) as pool:
                return sum(len(made) for made in pool.map(clip.image_processor, paths))

        def encode() -> int:
            return sum(len(np.asarray(clip.encode_pixels(pixels))) for _ in range(-(-len(paths) // batch_size)))

        def both() -> int:
            batches = list(clip.stream_images(paths))
            assert not any(batch.errors for batch in batches)
            return sum(map(len, batches))

        def embed() -> int:
            with tempfile.TemporaryDirectory() as index:
                return jaxclip.embed_folder(clip, photos, index).added

        jobs = {"decoding alone": decode, "model alone": encode, "stream_images": both, "embed_folder": embed}
        rates: dict[str, list[float]] = {name: [] for name in jobs}
        for job in jobs.values():
            job()  # Compiles, and reads the files.
        for _ in range(options.rounds):
            for name, job in jobs.items():
                began = time.perf_counter()
                count = job()
                rates[name].append(count / (time.perf_counter() - began))
    print(f"{len(paths)} JPEGs of 4,000 × 3,000, {size / 1e6:.1f} MB each, ViT-B/32, {THREADS} threads\n")
    print("| | images a second |\n|---|---:|")
    for name, each in rates.items():
        print(f"| {name} | {statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f}) |")
    rounds = list(zip(*rates.values(), strict=True))
    slower = statistics.median(embedded / min(decoded, encoded) for decoded, encoded, _, embedded in rounds)
    shared = statistics.median(embedded * (1 / decoded + 1 / encoded) for decoded, encoded, _, embedded in rounds)
    print(f"\nembed_folder reaches {slower:.0%} of the slower of the two, and {shared:.0%} of one after the other.")


def write_photos(folder: Path, count: int) -> list[Path]:
    from PIL import Image
    from skimage import data

    photos = [Image.fromarray(photo()).convert("RGB") for photo in (data.astronaut, data.chelsea, data.coffee)]
    written = []
    for index, photo in enumerate(photos):
        path = folder / f"{index}.jpg"
        photo.resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
        written.append(path)
    for index in range(len(written), count):
        written.append(folder / f"{index}.jpg")
        shutil.copyfile(written[index % len(photos)], written[-1])
    return written[:count]


if __name__ == "__main__":
    main()
