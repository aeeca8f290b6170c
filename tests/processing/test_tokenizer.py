"""Token ids: equal to transformers' for every string from every form of files, or a clear error."""

import copy
import gzip
import importlib.util
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclip.processing import Tokenizer
from jaxclip.processing.tokenizer import FILES

FOLDER = Path(__file__).parent / "references" / "tokenizers"
REFERENCES = json.loads((FOLDER.parent / "token_ids.json").read_text())
TEXTS, FORMS = REFERENCES["texts"], REFERENCES["forms"]


def load(folder: Path, **settings) -> Tokenizer:
    return Tokenizer.from_files({name: folder / name for name in FILES if (folder / name).exists()}, **settings)


def copied(tmp_path: Path, form: str, **changed) -> Path:
    """A copy of a form's files, in which the JSON files named by the keywords are changed (or made) by functions."""
    folder = tmp_path / "copied"
    shutil.copytree(FOLDER / form, folder)
    for name, change in changed.items():
        path = folder / f"{name}.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        change(content)
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(FOLDER / "openai")


# What the reference gives


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_decoded_text_equal_the_reference(form):
    tokenizer, expected = load(FOLDER / form), FORMS[form]
    assert tokenizer.encode(TEXTS) == expected["ids"]
    assert [tokenizer.decode(ids) for ids in expected["ids"]] == expected["decoded"]
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == expected["bos_eos_pad"]
    assert tokenizer.vocab_size == expected["vocab_size"]


@pytest.mark.parametrize("form", FORMS)
def test_truncation_padding_and_mask_equal_the_reference(form):
    tokenizer, expected = load(FOLDER / form), FORMS[form]["max_length_12"]
    batch = tokenizer.batch(tokenizer.encode(TEXTS), padding="max_length", max_length=12)
    np.testing.assert_array_equal(batch.token_ids, expected["ids"])
    np.testing.assert_array_equal(batch.attention_mask, expected["attention_mask"])


@pytest.mark.parametrize("form", FORMS)
def test_saved_files_give_the_same_ids(form, tmp_path):
    saved = load(FOLDER / form, max_length=20)
    saved.save(tmp_path / "new" / "folder")
    loaded = load(tmp_path / "new" / "folder")
    assert loaded.encode(TEXTS) == FORMS[form]["ids"]
    assert (loaded.special_tokens, loaded.max_length) == (saved.special_tokens, 20)


def test_saving_into_a_folder_with_older_files_gives_the_same_ids(tmp_path):
    shutil.copytree(FOLDER / "added_tokens_file", tmp_path, dirs_exist_ok=True)
    load(FOLDER / "openai").save(tmp_path)
    assert load(tmp_path).encode(TEXTS) == FORMS["openai"]["ids"]


def test_forms_differ_where_their_added_tokens_do():
    """Otherwise the comparisons above would not notice that added tokens are ignored."""
    ids = {form: json.dumps(FORMS[form]["ids"]) for form in FORMS}
    assert ids["transformers_4"] == ids["openai"] != ids["vocab_and_merges"] == ids["transformers_5"]
    assert len(set(ids.values())) == len(ids) - 2


def test_the_cleaning_is_not_openais(tokenizer):
    """Trap 4: no HTML is unescaped; lower case, NFC and single spaces are the only cleaning."""
    escaped, plain = tokenizer.encode(["&lt;b&gt;", "<b>"])
    assert escaped != plain
    assert tokenizer.decode(escaped) == "<|startoftext|>& lt ; b & gt ; <|endoftext|>"
    assert len({tuple(ids) for ids in tokenizer.encode(["A  CAFÉ\n", "a cafe\u0301", " a\u3000café "])}) == 1


def test_special_tokens_inside_a_text(tokenizer):
    """OpenAI's file looks for the start token in the lower-cased text and for the end token in the raw one."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenizer.encode(["<|StartOfText|>", "<|endoftext|>"]) == [[bos, bos, eos], [bos, eos, eos]]
    assert tokenizer.encode(["<|EndOfText|>"])[0].count(eos) == 1


def test_a_pad_token_is_taken_out_of_the_text_as_sdxl_does():
    assert load(FOLDER / "sdxl")("!").tolist()[1] == 0
    assert load(FOLDER / "openai")("!").tolist()[1] == 256


# Batches


def test_one_text_many_texts_and_none(tokenizer):
    assert tokenizer("a cat").ndim == 1
    assert tokenizer(["a cat"]).shape == (1, len(tokenizer("a cat")))
    assert tokenizer(("a cat", "a photo of a cat")).dtype == np.int32
    assert tokenizer([]).shape == (0, 0)
    assert tokenizer([], padding="max_length").shape == (0, 77)
    assert tokenizer("", padding="max_length", max_length=5).tolist() == [912, 913, 913, 913, 913]
    assert tokenizer(np.array(["a cat", "a dog"])).shape == (2, len(tokenizer("a cat")))


def test_padding_is_the_end_token_unless_asked_for_zero(tokenizer):
    """Trap 2: transformers pads with EOS, OpenAI and open_clip with 0."""
    short, long = tokenizer(["a", "a photo of a cat"])
    assert short.tolist()[2:] == [tokenizer.eos_token_id] * (len(long) - 2)
    assert tokenizer(["a", "a photo of a cat"], pad_token_id=0)[0].tolist()[3:] == [0] * (len(long) - 3)


def test_truncation_keeps_the_end_token(tokenizer):
    """Trap 3."""
    ids = tokenizer("a cat " * 100)
    assert len(ids) == 77
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[:-1].tolist() == tokenizer.encode(["a cat " * 100])[0][:76]


def test_too_long_raises_where_truncation_is_off(tokenizer):
    """Trap 3: OpenAI's tokenizer raises."""
    length = len(tokenizer.encode(["a cat " * 100])[0])
    with pytest.raises(ValueError, match=f"text 1 has {length} tokens, and at most 77"):
        tokenizer(["a cat", "a cat " * 100], truncate=False)
    assert len(tokenizer("a cat " * 100, truncate=False, max_length=length)) == length


@given(
    st.lists(st.lists(st.integers(0, 912), max_size=12).map(lambda ids: [912, *ids, 913]), max_size=6),
    st.sampled_from(["longest", "max_length"]),
    st.integers(2, 16),
    st.integers(0, 913),
)
def test_laws_of_padding_and_truncation(sequences, padding, max_length, pad):
    batch = load_once().batch(sequences, padding=padding, max_length=max_length, pad_token_id=pad)
    lengths = [min(len(ids), max_length) for ids in sequences]
    assert batch.token_ids.shape == (len(sequences), max_length if padding == "max_length" else max(lengths, default=0))
    assert batch.attention_mask.sum(axis=1).tolist() == lengths
    for ids, row, mask in zip(sequences, batch.token_ids, batch.attention_mask, strict=True):
        kept = row[mask].tolist()
        assert (kept[:-1], kept[-1]) == (ids[: len(kept) - 1], ids[-1])
        assert (row[~mask] == pad).all()
        assert mask[: len(kept)].all()


_LOADED: list[Tokenizer] = []


def load_once() -> Tokenizer:
    if not _LOADED:
        _LOADED.append(load(FOLDER / "openai"))
    return _LOADED[0]


@given(st.lists(st.text(max_size=20), max_size=5))
def test_each_text_is_encoded_by_itself(texts):
    tokenizer = load_once()
    together = tokenizer.encode(texts)
    assert together == [tokenizer.encode([text])[0] for text in texts]
    assert all((ids[0], ids[-1]) == (912, 913) for ids in together)


def test_copies_and_pickles_are_equal(tokenizer):
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode(TEXTS) == FORMS["openai"]["ids"]


def test_decode_can_leave_out_the_special_tokens(tokenizer):
    assert tokenizer.decode(tokenizer("A Photo!"), skip_special_tokens=True) == "a photo !"


# Settings in the files


@pytest.mark.parametrize(
    ("stated", "positions", "expected"), [(10**30, 77, 77), (32, 77, 32), (8192, 77, 77), (None, 64, 64), (77, 248, 77)]
)
def test_max_length_is_the_smaller_of_model_and_tokenizer(tmp_path, stated, positions, expected):
    folder = copied(tmp_path, "openai", tokenizer_config=lambda config: config.update(model_max_length=stated))
    assert load(folder, max_length=positions).max_length == expected


def test_no_pad_token_raises_only_where_padding_is_needed(tmp_path):
    folder = copied(tmp_path, "vocab_and_merges", tokenizer_config=lambda config: config.update(pad_token=None))
    tokenizer = load(folder)
    assert tokenizer.pad_token_id is None
    assert tokenizer(["a cat", "a dog"]).shape == (2, len(tokenizer("a cat")))
    with pytest.raises(ValueError, match="pad_token_id"):
        tokenizer(["a", "a photo of a cat"])
    tokenizer.save(tmp_path / "saved")
    assert load(tmp_path / "saved").pad_token_id is None


# Errors


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"tokenizer.json, or vocab.json with merges.txt, and found only nothing"
    ):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"found only vocab.json"):
        Tokenizer.from_files({"vocab.json": FOLDER / "openai" / "vocab.json"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["normalizer"]["normalizers"].pop(), "its normalizer is"),
        (lambda file: file.update(normalizer=None), r"its normalizer is \[\]"),
        (lambda file: file["normalizer"]["normalizers"][1].update(content=""), "its normalizer is"),
        (lambda file: file.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False}), "its pre_tokenizer"),
        (lambda file: file["pre_tokenizer"]["pretokenizers"][0].update(behavior="Isolated"), "its pre_tokenizer"),
        (lambda file: file["pre_tokenizer"]["pretokenizers"][1].update(use_regex=False), "its pre_tokenizer"),
        (lambda file: file["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "its pre_tokenizer"),
        (lambda file: file["model"].update(end_of_word_suffix=None), "its model is"),
        (lambda file: file["model"].update(byte_fallback=True), "its model is"),
        (lambda file: file.update(model={"type": "Unigram", "vocab": []}), "a Unigram model.*MetaCLIP 2"),
        (lambda file: file["model"]["merges"].append(["zzz", "y"]), "not a usable BPE vocabulary"),
        (lambda file: file["model"].pop("vocab"), "not a usable BPE vocabulary"),
        (lambda file: file["added_tokens"].append({"content": "<sks>"}), "malformed tokenizer files"),
        (lambda file: file.update(padding={"direction": "Left"}), "padding_side is 'left'"),
    ],
)
def test_another_tokenizer_is_an_error_naming_the_difference(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(copied(tmp_path, "transformers_5", tokenizer=change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(truncation_side="left"), "truncation_side is 'left'"),
        (lambda config: config.update(bos_token=None), "bos_token is null"),
        (lambda config: config.update(model_max_length="77"), "model_max_length must be a number, got '77'"),
        (lambda config: config.update(eos_token=["x"]), "malformed tokenizer files"),
    ],
)
def test_settings_that_clip_cannot_have_are_errors(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(copied(tmp_path, "vocab_and_merges", tokenizer_config=change))


def test_harmless_spellings_load(tmp_path):
    def respell(file):
        file["normalizer"]["normalizers"] = [{"type": "Sequence", "normalizers": file["normalizer"]["normalizers"]}]
        file["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False
        file["model"].update(continuing_subword_prefix=None, dropout=0.0)
        file.update(truncation={"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0})

    tokenizer = load(copied(tmp_path, "transformers_5", tokenizer=respell))
    assert tokenizer.encode(TEXTS) == FORMS["transformers_5"]["ids"]


def test_a_vocabulary_that_is_not_clips(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match="no token ends in </w>"):
        load(tmp_path)


def test_damaged_files_are_named(tmp_path):
    folder = copied(tmp_path, "transformers_5")
    (folder / "tokenizer.json").write_text('{"model": {')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not JSON"):
        load(folder)
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer\.json: holds a JSON list"):
        load(folder)


def test_what_is_no_text_is_named_by_its_index(tokenizer):
    # Unwrapped, because in tests jaxtyping would see the wrong type first.
    encode = inspect.unwrap(Tokenizer.encode)
    with pytest.raises(TypeError, match="text 1 is a int"):
        encode(tokenizer, ["a", 1])
    with pytest.raises(TypeError, match="text 0 is a NoneType"):
        encode(tokenizer, [None])
    with pytest.raises(TypeError, match="put the one str into a list"):
        tokenizer.encode("a cat")
    with pytest.raises(ValueError, match="text 2 holds a lone surrogate at position 3"):
        tokenizer(["ok", "😀", "abc\ud83d"])


def test_bad_arguments(tokenizer):
    with pytest.raises(ValueError, match="at least 2"):
        tokenizer("a", max_length=1)
    with pytest.raises(ValueError, match="'longest' or 'max_length'"):
        inspect.unwrap(Tokenizer.batch)(tokenizer, [[912, 913]], padding="longest_first")


def test_neither_jax_nor_warnings_nor_the_environment_are_touched():
    """In a process of its own: a process forked after a batch hears nothing from tokenizers, and works."""
    code = f"""
import os, sys, warnings
before = dict(os.environ)
from pathlib import Path
from jaxclip.processing import Tokenizer
folder = Path({str(FOLDER / "openai")!r})
tokenizer = Tokenizer.from_files({{name: folder / name for name in ("vocab.json", "merges.txt")}})
tokenizer(["a photo of a cat"] * 1000)
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's own, of any process with threads that forks
if os.fork() == 0:
    tokenizer(["a photo of a cat"] * 1000)
    os._exit(0)
assert os.wait()[1] == 0
assert dict(os.environ) == before
assert "jax" not in sys.modules and "torch" not in sys.modules and "transformers" not in sys.modules
"""
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


# Live, with OpenAI's whole vocabulary


@pytest.fixture(scope="session")
def full(tmp_path_factory, transformers) -> dict[str, tuple[Tokenizer, object]]:
    """Ours and transformers' tokenizer, by form: slow files, OpenAI's tokenizer.json, and both saved by each other."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("OpenAI's vocabulary comes with the open_clip wheel, which is not installed")
    folder = tmp_path_factory.mktemp("tokenizers")
    with gzip.open(Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    small = json.loads((FOLDER / "vocab_and_merges" / "vocab.json").read_text())
    tokens = [*list(small)[:512], *(m.replace(" ", "") for m in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "slow").mkdir()
    (folder / "slow" / "vocab.json").write_text(json.dumps(vocab))
    (folder / "slow" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), "utf-8")

    (folder / "openai").mkdir()
    file = json.loads((FOLDER / "openai" / "tokenizer.json").read_text())
    file["model"] |= {"vocab": vocab, "merges": [merge.split(" ") for merge in merges]}
    for token in file["added_tokens"]:
        token["id"] = vocab[token["content"]]
    (folder / "openai" / "tokenizer.json").write_text(json.dumps(file))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(FOLDER / "openai" / name, folder / "openai")

    reference = transformers.CLIPTokenizer.from_pretrained
    load(folder / "openai").save(folder / "ours")
    reference(folder / "openai").save_pretrained(folder / "theirs")
    return {form.name: (load(form), reference(form)) for form in folder.iterdir()}


@pytest.mark.parity
def test_known_ids_of_the_whole_vocabulary(full):
    for ours, _ in full.values():
        assert ours("Hello World!").tolist() == [49406, 3306, 1002, 256, 49407]
        assert ours("a photo of a cat").tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.vocab_size) == (
            49406,
            49407,
            49407,
            49408,
        )


_PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [*TEXTS, "<|endoftext|>", "<|ENDOFTEXT|>", "<|startoftext|>", "<|StartOfText|>", " ", "'s", "!", "</w>"]
    ),
)


@pytest.mark.parity
@settings(max_examples=700, deadline=None)
@given(st.lists(st.lists(_PIECES, max_size=5).map("".join), min_size=1, max_size=4))
def test_live_ids_equal_for_any_text(full, texts):
    for ours, theirs in full.values():
        expected = theirs(texts)["input_ids"]
        assert ours.encode(texts) == expected
        assert [ours.decode(ids) for ids in expected] == [theirs.decode(ids) for ids in expected]
    expected = theirs(texts, padding=True, truncation=True, max_length=16, return_tensors="np")
    batch = ours.batch(ours.encode(texts), max_length=16)
    np.testing.assert_array_equal(batch.token_ids, expected["input_ids"])
    np.testing.assert_array_equal(batch.attention_mask, expected["attention_mask"])


@pytest.mark.parity
def test_live_characters_of_every_script(full):
    """Each character up to U+3000 and every 29th beyond: by itself, between letters, and doubled."""
    codes = [*range(0x3000), *range(0x3000, 0xD800, 29), *range(0xE000, 0x110000, 29)]
    texts = [f"{c} a{c}b {c}{c}" for c in map(chr, codes)]
    ours, theirs = full["openai"]
    for start in range(0, len(texts), 10_000):
        chunk = texts[start : start + 10_000]
        assert ours.encode(chunk) == theirs(chunk)["input_ids"]


@pytest.mark.parity
def test_live_very_long_texts(full):
    """Ten megabytes of words (each is encoded by itself, so the ids are known), and one word of 100,000 letters."""
    ours, theirs = full["slow"]
    sentence = "a photo of a cat. "
    bos, *ids, eos = theirs(sentence)["input_ids"]
    assert ours.encode([sentence * 580_000])[0] == [bos, *ids * 580_000, eos]
    assert ours.encode(["é" * 100_000])[0] == theirs("é" * 100_000)["input_ids"]
