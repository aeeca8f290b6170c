"""Trains a small text transformer, from scratch, against a locked image tower on Flickr8k (LiT, arXiv 2111.07991).

python scripts/flickr8k_lit.py FLICKR8K --vision TOWER --tokenizer TOKENIZER --output RUN

TOWER is a CLIP checkpoint with an image tower that has a projection, TOKENIZER one with a tokenizer (OpenAI's merges);
FLICKR8K is a folder with captions.jsonl (see `jaxclip train --help`), each line with its split, or the data as they are
distributed: Flickr8k.token.txt, Flickr_8k.trainImages.txt and so on, and the photos in Flicker8k_Dataset.

Prints recall@1, 5 and 10 both ways on the photos of a split, all their captions, and the time. What to change is chosen
on the split "dev"; "test" is for the end. RUN/photos are links to these photos, for `jaxclip search`. Run again it goes
on where it was; the tower's features are computed once.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from jaxclip.compilation_cache import enable_compilation_cache
from jaxclip.training import TrainConfig, open_source, train


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="FLICKR8K", type=Path)
    parser.add_argument("--vision", required=True, help="the locked tower's checkpoint")
    parser.add_argument("--tokenizer", required=True, help="a checkpoint that has one")
    parser.add_argument("--output", required=True, type=Path, help="the run's folder")
    parser.add_argument("--held-out", default="test", metavar="SPLIT", help="evaluated on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="with a caption of each image (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=256, help="of the text transformer (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="of the text transformer (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the highest (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.2, help="default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", help="of the computation (default: %(default)s)")
    options = parser.parse_args(arguments)
    enable_compilation_cache()
    start = time.perf_counter()
    data = captioned(options.data, options.output)
    link_photos(data, options.held_out, options.output / "photos")
    config = TrainConfig.from_table(
        {
            "output": str(options.output / "run"),
            "model": {
                "vision": options.vision,
                "text": {"hidden_size": options.width, "num_hidden_layers": options.layers},
            },
            "tokenizer": options.tokenizer,
            "freeze": ["vision"],
            # Of Flickr8k's captions 98 in 100 have no more tokens; the rest are cut.
            "data": {"train": str(data), "split": "train", "held_out_split": options.held_out, "text_length": 24},
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "dtype": options.dtype,
            "optimizer": {"learning_rate": options.learning_rate, "weight_decay": options.weight_decay},
        }
    )
    result = train(config)
    assert result.evaluation is not None
    whole = (time.perf_counter() - start) / 60
    print(f"{result.model}: {result.steps} steps of {options.batch_size}, {result.seconds / 60:.1f} minutes,")
    print(f"{whole:.1f} with the tower's features, those of them that were new")
    print(f"\n| {options.held_out} photos | recall@1 | recall@5 | recall@10 |\n|---|--:|--:|--:|")
    for shown, name in (("text to image", "text_to_image"), ("image to text", "image_to_text")):
        print(f"| {shown} |", " | ".join(f"{result.evaluation[f'{name}_recall@{k}']:.3f}" for k in (1, 5, 10)), "|")
    print(f'\njaxclip search "two dogs running" {options.output / "photos"} --model {result.model}')


def captioned(folder: Path, output: Path) -> Path:
    """Where captions.jsonl is: in the folder, or written of the distribution's files."""
    if (folder / "captions.jsonl").is_file():
        return folder / "captions.jsonl"
    captions = defaultdict(list)
    for line in (folder / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, caption = line.split("\t", 1)
        captions[name.rsplit("#", 1)[0]].append(caption)
    lines = []
    for split in ("train", "dev", "test"):
        for name in (folder / f"Flickr_8k.{split}Images.txt").read_text(encoding="utf-8").split():
            image = (folder / "Flicker8k_Dataset" / name).absolute()
            lines.append(json.dumps({"file": str(image), "captions": captions[name], "split": split}))
    output.mkdir(parents=True, exist_ok=True)
    (output / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return output / "captions.jsonl"


def link_photos(data: Path, split: str, folder: Path) -> None:
    source = open_source(data, split=split)
    folder.mkdir(parents=True, exist_ok=True)
    for image in (source[number].image for number in range(len(source))):
        assert isinstance(image, Path)
        if not (folder / image.name).is_symlink():
            (folder / image.name).symlink_to(image.absolute())


if __name__ == "__main__":
    main()
