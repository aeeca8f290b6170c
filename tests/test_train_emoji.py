"""The script that trains the bundled model, on a handful of made-up emoji."""

import argparse
import json

import emoji_data
import jax
import numpy as np
import pytest
import train_emoji

import jaxclip
from jaxclip import bundled
from jaxclip.bundled import Emoji

EMOJI = tuple(
    Emoji(f"1F60{number}", "faces", f"face {number}", keywords, held_out)
    for number, (keywords, held_out) in enumerate(
        [(("happy", "round"), ("yellow",)), (("sad", "round"), ()), (("happy",), ("round",)), ((), ("lonely",))]
    )
)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    shape = (len(EMOJI), emoji_data.SIZE, emoji_data.SIZE, 4)
    styles = ("twemoji", "blobmoji", "noto")
    pictures = {style: rng.integers(0, 256, shape, np.uint8) for style in styles}
    drawn = {style: np.asarray([True, style != "blobmoji", True, True]) for style in styles}
    return emoji_data.EmojiData(EMOJI, pictures, drawn)


@pytest.fixture(scope="module")
def tokenizer(data, tmp_path_factory):
    return train_emoji.train_tokenizer(data, tmp_path_factory.mktemp("tokenizer"))


def test_tokenizer_knows_every_byte(tokenizer):
    for text in ("happy face 3", "größe 漢字 🙂", "\x7f~"):
        assert tokenizer.decode(tokenizer.encode([text])[0], skip_special_tokens=True) == text
    (known,) = tokenizer.encode(["happy"])
    assert len(known) == 3


def test_batches_go_on_where_they_were(data, tokenizer):
    def batches():
        return train_emoji.EmojiBatches(data, tokenizer, 2, seed=1)

    whole, resumed = batches(), batches()
    expected = [next(whole) for _ in range(5)]
    resumed.set_state(3)
    for batch in expected[3:]:
        for name, value in next(resumed).items():
            np.testing.assert_array_equal(value, batch[name])
    assert resumed.get_state() == whole.get_state() == 5


def test_captions_are_true_of_every_emoji_that_has_their_keywords(data, tokenizer):
    batches = train_emoji.EmojiBatches(data, tokenizer, 4, seed=0)
    own = {data.pictures[style][index].tobytes(): index for style in ("twemoji", "blobmoji") for index in range(4)}
    seen = set()
    for _ in range(60):
        batch = next(batches)
        order = [own[view.tobytes()] for view in batch["pictures"][:, 0]]
        assert [own[view.tobytes()] for view in batch["pictures"][:, 1]] == order
        for row, ids in enumerate(batch["token_ids"]):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert not {"lonely", "yellow"} & set(text.split())
            says = {word for word in ("happy", "sad", "round") if word in text.replace(",", " ").split()}
            named = "face" in text
            true = {index for place, index in enumerate(order) if batch["true"][place, row]}
            expected = {i for i, one in enumerate(EMOJI) if says <= set(one.keywords)} if says and not named else set()
            assert true == expected | {order[row]}
            seen |= says
    assert seen == {"happy", "sad", "round"}


def test_what_is_alike_comes_together(tokenizer):
    emoji = tuple(Emoji(f"1F6{n:02X}", "faces", f"face {n}", (), ()) for n in range(64))
    pictures = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None, None], (64, 64, 64, 4))
    data = emoji_data.EmojiData(emoji, {"twemoji": pictures}, {"twemoji": np.ones(64, bool)})
    nearest = (np.arange(64)[:, None] + [1, 2, 3]) % 64
    batches = train_emoji.EmojiBatches(data, tokenizer, 8, seed=0, nearest=nearest)
    for _ in range(10):
        there = set(next(batches)["pictures"][:, 0, 0, 0, 0].tolist())
        assert len(there) == 8
        assert sum(len({*nearest[one]} & there) >= 2 for one in there) >= 2


def test_most_alike_are_those_that_fit_the_name(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_data, "names", lambda cache: bundled.emoji())
    whole = emoji_data.load(tmp_path, ("twemoji",))
    kept = [n for n, one in enumerate(whole.emoji) if one.name.startswith(("flag: s", "clock", "one o", "two o"))]
    kept += [n for n, one in enumerate(whole.emoji) if one.name.endswith(("o'clock", "cat face"))]
    kept = list(dict.fromkeys(kept))
    data = emoji_data.EmojiData(
        tuple(whole.emoji[n] for n in kept),
        {"twemoji": whole.pictures["twemoji"][kept]},
        {"twemoji": whole.drawn["twemoji"][kept]},
    )
    nearest = train_emoji.most_alike(jaxclip.load("emoji"), data, others=3)
    names = [one.name for one in data.emoji]
    for kind in ("flag: ", "o'clock"):
        rows = [n for n, name in enumerate(names) if kind in name]
        assert np.mean([kind in names[other] for row in rows for other in nearest[row]]) > 0.9
    assert not (nearest == np.arange(len(names))[:, None]).any()


def test_the_card_says_what_came_before(data, tmp_path):
    start, output = tmp_path / "start", tmp_path / "more"
    for folder in (start, output):
        folder.mkdir()
    evaluation = {f"{style} {name}": 0.5 for style in ("twemoji", "noto", "openmoji")
                  for name in ("name@1", "name@10", "keyword@10")}  # fmt: skip
    (output / "log.jsonl").write_text(json.dumps({"step": 7, "seconds": 3600, "evaluation": evaluation}) + "\n")
    options = argparse.Namespace(start=None, output=output, seed=3, steps=7, batch_size=2, learning_rate=1e-3)
    alone = train_emoji.history(data, options)
    assert "seed 3: 7 steps of 2 emoji" in alone
    assert "28\npictures shown of 7 there are, from random parameters" in alone
    assert "| 7 | 1.0 | 0.500 |" in alone
    (start / "README.md").write_text(f"# Card\n\n## Training\n\n{alone}\n## Data\n\nEmoji.\n\n## Limits\n")
    options.start = start
    both = train_emoji.history(data, options)
    assert both.startswith(alone + "\n`scripts/train_emoji.py`, seed 3")
    assert both.count("from random parameters") == both.count("from the model that came of it") == 1


def test_varied_keeps_what_it_does_not_change():
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[20:44, 20:44] = (200, 30, 30, 255)
    varied = np.stack([train_emoji.varied(jax.random.key(seed), picture) for seed in range(40)])
    assert varied.min() >= 0
    assert varied.max() <= 1
    # Most stand on white, and the square is somewhere in the middle of all.
    assert 20 <= (varied[:, 0, 0] == 1).all(axis=-1).sum() <= 36
    assert (np.abs(varied[:, 31, 31] - varied[:, 0, 0]).max(axis=-1) > 0.05).mean() > 0.9


def test_resampling_keeps_brightness():
    for scale, shift in ((0.75, 0.0), (1.0, 0.0), (0.9, 3.0)):
        rows = np.asarray(train_emoji._resampling(64, scale, shift))
        np.testing.assert_allclose(rows[24:40].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.asarray(train_emoji._resampling(64, 1.0, 0.0)), np.eye(64), atol=1e-6)


def test_what_is_as_right_is_not_in_the_way():
    scores = np.array([[0.9, 0.8, 0.5, 0.6], [0.1, 0.9, 0.8, 0.7]])
    right = np.array([[True, True, True, False], [True, False, False, False]])
    others, everything = train_emoji.better(scores, right, np.array([2, 0]))
    assert others.tolist() == [1, 3]
    assert everything.tolist() == [3, 3]
