"""`jaxclip detect IMAGE PROMPT...`"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from jaxclip.cli.options import add_logit_scale, add_model_options, load
from jaxclip.cli.output import PICTURES, check_output, check_spares
from jaxclip.cli.printing import complain, print_skipped, printable

if TYPE_CHECKING:
    from jaxclip.clip import Clip
    from jaxclip.tasks.detection import Detection, Prompts


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "detect",
        help="find things in a photo by describing them",
        usage="jaxclip detect [options] IMAGE PROMPT...",
        description="Says where in a photo is what you describe: boxes in pixels (x0, y0, x1, y1) with scores from 0\n"
        "to 1, and with -o a picture of how relevant each place is to each description. Descriptions\n"
        "compete with each other and with a background. IMAGE may be a folder; its photos that can't be\n"
        "read are named on the error stream and skipped, and the exit status is then 1.",
        epilog="examples:\n"
        '  jaxclip detect photo.jpg "a fluffy cat" "a butterfly" -o found.png\n'
        '  jaxclip detect photo.jpg "a traffic light" --method windows --resolution 5\n'
        '  jaxclip detect photos/ "a dog" "a ball" --json -o found/',
    )
    parser.add_argument("image", metavar="IMAGE", help="a photo, or a folder with its sub-folders")
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="what to look for")
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="what to look for, one on each line, for descriptions or --embeddings"
    )
    parser.add_argument(
        "--embeddings",
        metavar="FILE",
        help="the prompts' embeddings, ready-made, a row for each (.npy, .safetensors): no text is encoded",
    )
    parser.add_argument(
        "--background-file",
        metavar="FILE",
        help="what the prompts compete with besides each other, one on each line (default: sky, grass, walls and the "
        "like; with --embeddings nothing)",
    )
    parser.add_argument(
        "--method",
        choices=("dense", "windows"),
        default="dense",
        help="dense: a pass over the photo's patches at each of a few sizes; windows: many windows of several sizes, "
        "each an image of its own, which takes many times as long (default: %(default)s)",
    )
    parser.add_argument(
        "--resolution",
        type=float,
        metavar="N",
        help="the photo's short side as the model sees it at the largest size, in sides of its training images, from 1 "
        "(default: 2, for windows 4); more finds smaller things",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="the score that something must reach to be found, from 0 to 1 (default: 0.2, for windows 0.5)",
    )
    add_logit_scale(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help=f"draw heat maps and boxes ({', '.join(PICTURES)}); for a folder of photos: the folder for the pictures",
    )
    add_model_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    if bool(options.prompts) == bool(options.prompts_file):
        options.parser.error("say what to look for: PROMPT... or --prompts-file FILE")
    for path in (options.image, options.prompts_file, options.embeddings, options.background_file):
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
    several = os.path.isdir(options.image)
    if options.output and several:
        _check_folder(options.output)
    elif options.output:
        check_output(options.output, PICTURES)
        check_spares(options.output, folder=options.image)
    from jaxclip.processing import ImageError
    from jaxclip.tasks.detection import detect
    from jaxclip.tasks.photos import files_under

    clip = load(options, towers="vision" if options.embeddings and options.logit_scale is not None else "both")
    prompts = _prompts(options, clip)
    skipped: list[tuple[Path, str]] = []
    paths = list(files_under(options.image, on_error=lambda folder, reason: skipped.append((folder, reason))))
    found: list[dict[str, Any]] = []
    for path in tqdm(paths, desc="photos", unit="photo", disable=None if several else True):
        try:
            result = detect(
                clip,
                path,
                prompts,
                method=options.method,
                threshold=options.threshold,
                resolution=options.resolution,
                logit_scale=options.logit_scale,
            )
        except ImageError as error:
            skipped.append((path, str(error)))
            continue
        if options.output:
            _draw(options.output / _picture(path, options.image) if several else options.output, path, result)
        found.append(_document(path, result))
        if not options.json:
            tqdm.write("".join(_lines(found[-1])), end="")
    print_skipped(options, skipped)
    if not found:
        complain(options, f"no photos could be read in {options.image}")
        return 2
    if options.json:
        source = {"source": clip.source, "revision": clip.revision}
        unread = [{"item": str(path), "reason": reason} for path, reason in skipped]
        print(json.dumps({"model": source, "method": options.method, "images": found, "skipped": unread}, indent=1))
    return options.status


def _check_folder(folder: Path) -> None:
    from jaxclip.plotting import require_matplotlib

    require_matplotlib()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; for a folder of photos name a folder")
    folder.mkdir(parents=True, exist_ok=True)


def _prompts(options: argparse.Namespace, clip: "Clip") -> "Prompts":
    from jaxclip.tasks.class_files import read_embeddings, read_prompts
    from jaxclip.tasks.detection import BACKGROUND, prompts_of

    names = read_prompts(options.prompts_file) if options.prompts_file else options.prompts
    background = read_prompts(options.background_file) if options.background_file else BACKGROUND
    if options.embeddings is None:
        return prompts_of(clip, names, background)
    vectors = read_embeddings(options.embeddings)
    if len(vectors) != len(names):
        raise ValueError(f"{options.embeddings}: has {len(vectors)} rows, and there are {len(names)} prompts")
    return prompts_of(clip, dict(zip(names, vectors, strict=True)), background)


def _picture(path: Path, folder: str) -> str:
    """What a photo's picture is called: one name for each of a folder with sub-folders."""
    return "-".join(path.relative_to(folder).with_suffix("").parts) + f"-{path.suffix[1:]}.png"


def _draw(output: Path, path: Path, result: "Detection") -> None:
    from jaxclip.plotting import detected, write_figure

    boxes = {
        label: [(box.x0, box.y0, box.x1, box.y1, box.score) for box in found] for label, found in result.boxes.items()
    }
    write_figure(output, detected(path, result.cells, boxes, size=result.size))


def _document(path: Path, result: "Detection") -> dict[str, Any]:
    return {
        "item": str(path),
        "size": list(result.size),
        "prompts": [
            {
                "prompt": label,
                "boxes": [
                    {"box": [round(edge, 1) for edge in (box.x0, box.y0, box.x1, box.y1)], "score": box.score}
                    for box in boxes
                ],
            }
            for label, boxes in result.boxes.items()
        ],
    }


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """A box on each line: the photo, the prompt, the score, the corners; with tabs between them."""
    for prompt in found["prompts"]:
        head = f"{printable(found['item'])}\t{printable(prompt['prompt'])}"
        for box in prompt["boxes"]:
            yield f"{head}\t{box['score']:.3f}\t{' '.join(f'{edge:.0f}' for edge in box['box'])}\n"
        if not prompt["boxes"]:
            yield f"{head}\tnot found\n"
