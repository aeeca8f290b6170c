"""Scenes with known boxes, to measure detection on: emoji of a style that the bundled model never saw, on photos and
textures.

    python scripts/emoji_scenes.py --cache emoji-cache --output scenes

One to four of Noto's emoji on each, of random size and place and not upon each other. OUTPUT/boxes.json says what is
where, as `measure_detection.py` reads it. Needs pip install "jaxclip[emoji]" scikit-image, and the network once
(`emoji_data`).
"""

import argparse
import json
from pathlib import Path

import emoji_data
import numpy as np
from PIL import Image

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
TEXTURES = ("grass", "gravel", "brick")


def backgrounds() -> list[Image.Image]:
    import skimage.data

    return [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in (*PHOTOS, *TEXTURES)]


def scene(
    data: emoji_data.EmojiData, behind: list[Image.Image], rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[str, list[int]]]]:
    """A picture and what is in it: names with boxes (x0, y0, x1, y1), around what is drawn, not around its square."""
    width, height = (int(edge) for edge in rng.integers(256, 449, 2))
    photo = behind[rng.integers(len(behind))]
    share = rng.uniform(0.5, 1)
    crop = share * min(photo.width / width, photo.height / height)
    left, top = (rng.uniform(0, edge - crop * side) for edge, side in ((photo.width, width), (photo.height, height)))
    picture = photo.resize(
        (width, height), Image.Resampling.BICUBIC, (left, top, left + crop * width, top + crop * height)
    )
    placed: list[tuple[str, list[int]]] = []
    drawn = np.flatnonzero(data.drawn["noto"])
    for index in rng.permutation(drawn)[: rng.integers(1, 5)]:
        emoji = Image.fromarray(data.pictures["noto"][index], "RGBA")
        for _ in range(50):
            side = int(min(width, height) * rng.uniform(0.18, 0.5))
            x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
            small = emoji.resize((side, side), Image.Resampling.BICUBIC)
            inside = small.getchannel("A").point(lambda alpha: 255 * (alpha > 64)).getbbox()
            if inside is None:
                break
            box = [inside[0] + x, inside[1] + y, inside[2] + x, inside[3] + y]
            if all(
                box[0] >= other[2] or box[2] <= other[0] or box[1] >= other[3] or box[3] <= other[1]
                for _, other in placed
            ):
                picture.paste(small, (x, y), small)
                placed.append((data.emoji[index].name, box))
                break
    return picture, placed


def main() -> None:
    parser = argparse.ArgumentParser(description="Composes scenes of emoji with known boxes.")
    parser.add_argument("--cache", type=Path, required=True, help="the folder for what is fetched and drawn")
    parser.add_argument("--output", type=Path, required=True, help="the folder for the scenes")
    parser.add_argument("--scenes", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    data, behind = emoji_data.load(options.cache, ["noto"], size=128), backgrounds()
    folder = options.output / "images"
    folder.mkdir(parents=True, exist_ok=True)
    boxes = []
    for number in range(options.scenes):
        picture, placed = scene(data, behind, np.random.default_rng((options.seed, number)))
        picture.save(folder / f"{number:04}.png")
        boxes += [{"image": f"{number:04}.png", "category": name, "box": box} for name, box in placed]
    (options.output / "boxes.json").write_text(json.dumps({"boxes": boxes}, indent=0, ensure_ascii=False))
    print(f"{options.scenes} scenes with {len(boxes)} emoji: {options.output}")


if __name__ == "__main__":
    main()
