"""Batches: what is in them, in which order, and that nothing changes it."""

import json
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from cases import FOLDER
from training.data_cases import captioned, captions_of, paint

import jaxclip
from jaxclip.training.augmentation import AUGMENTATIONS
from jaxclip.training.captions import CaptionedFolder, Photos
from jaxclip.training.data import BadSample, Batches, open_source

pytest.importorskip("grain")


@pytest.fixture(scope="module")
def clip():
    return jaxclip.load(FOLDER / "whole")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eleven samples, which nobody changes."""
    return CaptionedFolder(captioned(tmp_path_factory.mktemp("eleven"), 11))


@pytest.fixture
def batches(clip, source, request):
    """Makes them, and ends their threads."""

    def make(source=source, batch_size=4, **settings):
        given = {"image_processor": clip.image_processor, "tokenizer": clip.tokenizer, "process_count": 1}
        made = Batches(source, batch_size, **{**given, "process_index": 0, "threads": 2, **settings})
        request.addfinalizer(made.close)
        return made

    return make


@pytest.fixture
def ids(batches):
    """The image ids of so many batches, one after the other."""
    return lambda n=None, **settings: np.concatenate(
        [batch["image_ids"] for batch, _ in zip(batches(**settings), range(n or 10**6), strict=False)]
    ).tolist()


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_what_is_in_a_batch(batches, clip, source):
    for batch in batches(epochs=2):
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "pixels": ((4, 16, 16, 3), "float32"),
            "token_ids": ((4, 12), "int32"),
            "image_ids": ((4,), "int32"),
            "caption_ids": ((4,), "int32"),
        }
        for row, index in enumerate(batch["image_ids"].tolist()):
            np.testing.assert_array_equal(batch["pixels"][row], clip.image_processor(source[index].image)[0])
            captions = clip.tokenizer(captions_of(index), padding="max_length").tolist()
            assert batch["token_ids"][row].tolist() in captions


def test_text_length(batches, clip):
    short, long = (next(batches(text_length=length)) for length in (4, None))
    assert short["token_ids"].shape == (4, 4)
    assert (short["token_ids"][:, -1] == clip.tokenizer.eos_token_id).all()
    np.testing.assert_array_equal(short["token_ids"][:, :3], long["token_ids"][:, :3])


def test_images_without_texts(batches, source):
    batch = next(batches(Photos(source.folder), tokenizer=None))
    assert batch.keys() == {"pixels", "image_ids"}


def test_every_epoch_has_all_in_another_order(ids):
    order = ids(epochs=4, batch_size=11)
    epochs = [order[i : i + 11] for i in range(0, 44, 11)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(11))] * 4
    assert len(set(map(tuple, epochs))) == 4
    assert list(range(11)) not in epochs


def test_what_fills_no_batch_is_dropped_at_the_very_end(ids):
    assert len(ids(epochs=3)) == 32  # Of 33.
    assert ids(epochs=3) == ids(n=8)


def test_the_seed_decides(batches):
    def three(**settings):
        return [
            batch for batch, _ in zip(batches(augmentation=AUGMENTATIONS["simclr"], **settings), range(3), strict=False)
        ]

    first = three(seed=1)
    for other in (three(seed=1, threads=1), three(seed=1, threads=5)):
        for ours, theirs in zip(first, other, strict=True):
            assert_same(ours, theirs)
    assert any((a["image_ids"] != b["image_ids"]).any() for a, b in zip(first, three(seed=2), strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_epoch(ids, count):
    shares = [ids(n=30, batch_size=1, process_index=index, process_count=count) for index in range(count)]
    for epoch in range(2):
        lengths = [len(range(index, 11, count)) for index in range(count)]
        parts = [share[epoch * n : epoch * n + n] for share, n in zip(shares, lengths, strict=True)]
        assert sorted(chain(*parts)) == list(range(11))
    # Not the same ones in each epoch.
    n = len(range(0, 11, count))
    assert set(shares[0][:n]) != set(shares[0][n : 2 * n])


def test_a_sample_is_the_same_whatever_the_processes(batches):
    def by_id(**settings):
        settings |= {"augmentation": AUGMENTATIONS["simclr"], "batch_size": 1, "epochs": 1}
        return {int(batch["image_ids"][0]): batch for batch in batches(**settings)}

    alone = by_id()
    shared = by_id(process_index=0, process_count=2) | by_id(process_index=1, process_count=2)
    assert alone.keys() == shared.keys()
    for index, batch in alone.items():
        assert_same(batch, shared[index])


def test_captions_are_drawn_anew_and_evenly(batches):
    drawn = {}
    for batch in batches(epochs=60, batch_size=11):
        for index, row, caption in zip(batch["image_ids"], batch["token_ids"], batch["caption_ids"], strict=True):
            drawn.setdefault(int(index), []).append((tuple(row.tolist()), int(caption)))
    for pairs in drawn.values():
        rows = [row for row, _ in pairs]
        # Of 60, 20 each, with a standard deviation of 3.7.
        assert all(6 <= rows.count(row) <= 36 for row in set(rows))
        assert len(set(rows)) == 3
    every = {pair for pairs in drawn.values() for pair in pairs}
    # One id for each caption, and no two alike.
    assert len(every) == len({row for row, _ in every}) == len({caption for _, caption in every}) == 33


def test_repeated_captions_have_one_id(batches, tmp_path):
    for number, caption in enumerate(["a dog", " A  DOG", "a cat", "a dog"]):
        paint(tmp_path / f"{number}.png", number).with_suffix(".txt").write_text(caption)
    batch = next(batches(CaptionedFolder(tmp_path)))
    ids = dict(zip(batch["image_ids"].tolist(), batch["caption_ids"].tolist(), strict=True))
    assert ids[0] == ids[1] == ids[3] != ids[2]


def test_two_views(batches, clip, source):
    batch = next(batches(views=2, augmentation=AUGMENTATIONS["simclr"]))
    assert batch["views"].shape == (4, 2, 16, 16, 3)
    assert "pixels" not in batch
    assert all((views[0] != views[1]).any() for views in batch["views"])


def test_augmented_pixels_are_scaled_once_and_cropped_once(batches, tmp_path):
    # One colour stays itself under cropping, and so shows scale, mean and std alone.
    from PIL import Image

    for number, mode in enumerate(["RGB", "RGBA", "L", "P"]):
        image = Image.new("RGB", (30, 25), (128, 128, 128))
        image.convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / f"{number}.png")
    augmented = next(batches(Photos(tmp_path), tokenizer=None, augmentation=AUGMENTATIONS["clip"]))
    plain = next(batches(Photos(tmp_path), tokenizer=None))
    np.testing.assert_array_equal(augmented["pixels"], plain["pixels"])
    assert np.ptp(plain["pixels"], axis=(0, 1, 2)).max() == 0


def test_photos_are_turned_as_their_exif_says(batches, tmp_path):
    from PIL import Image

    image = Image.open(paint(tmp_path / "0.png", 0))
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "1.png", exif=exif)
    for augmentation in (None, AUGMENTATIONS["clip"].__class__(scale=(1.0, 1.0), ratio=(1.2, 1.2))):
        batch = next(batches(Photos(tmp_path), 2, tokenizer=None, augmentation=augmentation))
        np.testing.assert_array_equal(batch["pixels"][0], batch["pixels"][1])


@pytest.fixture
def with_bad_ones(tmp_path):
    """Samples 3 and 8 are of no use."""
    captioned(tmp_path, 11)
    (tmp_path / "images/03.png").write_bytes(b"no image")
    text = (tmp_path / "captions.jsonl").read_text().splitlines()
    text[8] = json.dumps({"file": "images/08.png", "captions": [" "]})
    (tmp_path / "captions.jsonl").write_text("\n".join(text))
    return CaptionedFolder(tmp_path)


def test_bad_samples_are_left_out_and_counted(batches, with_bad_ones):
    some = batches(with_bad_ones, 3, epochs=2)
    assert some.skipped == 0
    found = [batch["image_ids"].tolist() for batch in some]
    assert [len(batch) for batch in found] == [3] * 6
    order = list(chain(*found))
    good = [i for i in range(11) if i not in (3, 8)]
    assert sorted(order[:9]) == sorted(order[9:]) == good
    assert some.skipped == 4
    assert sorted(sample.index for sample in some.bad_samples) == [3, 3, 8, 8]
    reasons = {sample.index: sample.reason for sample in some.bad_samples}
    assert "03.png" in reasons[3]
    assert "no image format that Pillow knows" in reasons[3]
    assert reasons[8] == "images/08.png: has no caption"


def test_bad_samples_are_counted_when_they_come_not_when_they_are_read_ahead(batches, with_bad_ones):
    order = [int(batch["image_ids"][0]) for batch in batches(with_bad_ones, 1, epochs=1)]
    some, counts = batches(with_bad_ones, 1, epochs=1), []
    for _ in order:
        next(some)
        counts.append(some.skipped)
    again = batches(with_bad_ones, 1, epochs=1, threads=8)
    assert [again.skipped for _ in again] == counts
    assert counts[0] < 2


def test_samples_that_the_source_can_not_give_are_bad_ones(batches, with_bad_ones):
    class Incomplete(CaptionedFolder):
        def __getitem__(self, index):
            if index == 6:
                raise ValueError("6: the sample has no image")
            return super().__getitem__(index)

    some = batches(Incomplete(with_bad_ones.folder), 2, epochs=1)
    assert sorted(chain(*(batch["image_ids"].tolist() for batch in some))) == [0, 1, 2, 4, 5, 7, 9, 10]
    assert BadSample(6, "6: the sample has no image") in some.bad_samples


def test_nothing_but_bad_samples(batches, tmp_path):
    captioned(tmp_path, 3)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    source = CaptionedFolder(tmp_path)
    for epochs, number in ((None, 6), (1, 3)):
        message = rf"not one of the last {number} samples can be used: images/0.*; images/0.*; images/0"
        with pytest.raises(ValueError, match=message):
            next(batches(source, 1, epochs=epochs))


def test_one_good_sample_is_enough(batches, tmp_path):
    captioned(tmp_path, 2)
    (tmp_path / "images/01.png").write_bytes(b"")
    some = batches(CaptionedFolder(tmp_path), 1)
    assert [next(some)["image_ids"].tolist() for _ in range(20)] == [[0]] * 20


@pytest.mark.parametrize("done", [0, 1, 5])
def test_the_state_goes_on_with_the_next_batch(batches, with_bad_ones, done):
    settings = {"source": with_bad_ones, "epochs": 4, "augmentation": AUGMENTATIONS["simclr"]}
    whole = batches(**settings)
    for _ in range(done):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    rest = list(whole)
    assert len(rest) == 9 - done
    resumed, rewound = batches(**settings), batches(**settings)
    for _ in range(3):
        next(rewound)
    for again in (resumed, rewound):
        again.set_state(state)
        assert again.get_state() == state
        for ours, theirs in zip(again, rest, strict=True):
            assert_same(ours, theirs)
        assert (again.skipped, again.bad_samples) == (whole.skipped, whole.bad_samples)


def test_the_state_goes_on_in_another_process(batches, source, tmp_path):
    ours = batches(augmentation=AUGMENTATIONS["simclr"])
    for _ in range(4):
        next(ours)
    program = f"""
import json, sys, numpy as np, jaxclip
from jaxclip.training.augmentation import AUGMENTATIONS
from jaxclip.training.data import Batches, open_source
clip = jaxclip.load({str(FOLDER / "whole")!r})
batches = Batches(open_source({str(source.folder)!r}), 4, image_processor=clip.image_processor,
                  tokenizer=clip.tokenizer, augmentation=AUGMENTATIONS["simclr"])
batches.set_state(json.loads(sys.argv[1]))
np.savez({str(tmp_path / "next.npz")!r}, **next(batches))
batches.close()
"""
    subprocess.run([sys.executable, "-c", program, json.dumps(ours.get_state())], check=True, timeout=120)
    with np.load(tmp_path / "next.npz") as theirs:
        assert_same(next(ours), dict(theirs))


def test_a_state_of_other_batches(batches):
    state = batches(seed=1).get_state()
    for other in ({"seed": 2}, {"seed": 1, "batch_size": 3}, {"seed": 1, "process_count": 2}):
        with pytest.raises(ValueError, match=r"the state is of .*'seed': 1.* and these are batches of"):
            batches(**other).set_state(state)


def test_features_in_place_of_pixels(batches):
    features = np.arange(33, dtype=np.float16).reshape(11, 3)
    features[5] = np.nan
    some = batches(image_processor=None, image_features=features, epochs=1, batch_size=10)
    batch = next(some)
    assert batch.keys() == {"image_features", "image_ids", "token_ids", "caption_ids"}
    assert batch["image_features"].dtype == np.float32
    np.testing.assert_array_equal(batch["image_features"], features[batch["image_ids"]])
    assert sorted(batch["image_ids"]) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert some.bad_samples == [BadSample(5, "images/05.png: its features are not finite: the image couldn't be read")]


def test_arguments_that_do_not_fit(batches, clip, source):
    features = np.zeros((11, 3), np.float32)
    for settings, message in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2 has no part in 11 samples"),
        ({"process_count": 12}, "process 0 of 12 has no part in 11 samples"),
        ({"image_features": features}, "pass either image_processor"),
        ({"image_processor": None}, "pass either image_processor"),
        ({"image_processor": None, "image_features": features[1:]}, "has 10 rows, and the source 11 samples"),
        ({"epochs": 1, "batch_size": 12}, "1 epochs of 11 samples make no batch of 12"),
        ({"views": 2}, "2 with an augmentation"),
        ({"views": 3, "augmentation": AUGMENTATIONS["clip"]}, "views must be 1, or 2"),
        ({"image_processor": type(clip.image_processor)(do_center_crop=False)}, "images of different sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            batches(**settings)


def test_open_source_of_a_folder(source):
    assert list(open_source(source.folder)) == list(source)
    with pytest.raises(ValueError, match="no line of the split 'dev'"):
        open_source(source.folder, split="dev")
