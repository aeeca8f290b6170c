"""Pictures are what they say: sizes, pixels, numbers, notes; and no warning whatever the names are."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxclip.plotting import (
    classified_photos,
    confusion_matrix,
    contact_sheet,
    detected,
    similarity_heat_map,
    training_curves,
    write_figure,
)

RED, GREEN, BLUE = (220, 20, 30), (20, 200, 40), (10, 30, 210)


def photo(color, width=60, height=40) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def drawn(figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi="figure")
    return np.asarray(Image.open(file).convert("RGB"))


def area(picture, color) -> tuple[int, int, int, int]:
    """Left, top, width and height of the field of a color, which fills it."""
    y, x = np.nonzero((picture == color).all(axis=-1))
    assert len(y), "the color is nowhere"
    left, top, width, height = x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1
    assert width * height == len(y)
    return left, top, width, height


def texts_of(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def whole(picture) -> bool:
    """Whether nothing touches the edges, where it would be cut off."""
    edges = picture[:6], picture[-6:], picture[:, :6], picture[:, -6:]
    return all((edge == 255).all() for edge in edges)


def test_contact_sheet_holds_the_photos_pixel_by_pixel_in_their_order():
    figure = contact_sheet(
        [photo(RED), photo(GREEN, 40, 60), photo(BLUE, 5, 5)],
        [0.31236, -0.00001, -0.5],
        names=["a.jpg", "b.jpg", "c.jpg"],
        title="a cat",
    )
    picture = drawn(figure)
    red, green, blue = (area(picture, color) for color in (RED, GREEN, BLUE))
    assert red[0] < green[0] < blue[0]
    assert red[1] + red[3] == green[1] + green[3] == blue[1] + blue[3]
    assert [size[2:] for size in (red, green, blue)] == [(270, 180), (180, 270), (270, 270)]
    assert texts_of(figure) == [
        "a cat", "1", "0.3124", "a.jpg", "2", "0.0000", "b.jpg", "3", "\N{MINUS SIGN}0.5000", "c.jpg"
    ]  # fmt: skip
    assert whole(picture)


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (3, 3), (10, 5), (29, 8), (100, 10)])
def test_contact_sheets_of_any_number(n, columns):
    figure = contact_sheet([photo(RED)] * n, np.linspace(1, 0, n))
    picture = drawn(figure)
    assert (picture == RED).all(axis=-1).sum() == n * 270 * 180
    row = (picture == RED).all(axis=-1).any(axis=1).argmax()
    assert (picture[row] == RED).all(axis=-1).sum() == columns * 270
    assert whole(picture)


def test_more_than_can_be_drawn_is_said():
    figure = contact_sheet([photo(RED)] * 101)
    assert texts_of(figure)[-1] == "Drawn: the first 100 of 101."
    assert (drawn(figure) == RED).all(axis=-1).sum() == 100 * 270 * 180


def test_the_query_stands_beside_the_title():
    picture = drawn(contact_sheet([photo(RED)], [1.0], title="query.jpg", query=photo(BLUE)))
    assert area(picture, BLUE)[2:] == (150, 100)
    assert area(picture, BLUE)[1] + 100 < area(picture, RED)[1]


def test_photos_are_upright_and_on_white(tmp_path):
    """EXIF orientation 6, transparency, 16-bit grey, a 1-bit file, and what is no image at all."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(RED)).save(tmp_path / "turned.png", exif=exif)
    clear = Image.new("RGBA", (40, 40), (*BLUE, 0))
    clear.paste((*GREEN, 255), (0, 0, 40, 20))
    clear.save(tmp_path / "clear.png")
    Image.fromarray(np.linspace(0, 40000, 1600).astype(np.uint16).reshape(40, 40)).save(tmp_path / "deep.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    names = ["turned.png", "clear.png", "deep.png", "broken.jpg"]
    figure = contact_sheet([tmp_path / name for name in names])
    picture = drawn(figure)
    assert area(picture, RED)[2:] == (180, 270)
    assert not (picture == BLUE).all(axis=-1).any()
    assert (picture == GREEN).all(axis=-1).sum() == pytest.approx(270 * 135, rel=0.15)  # The edge is soft.
    deep = picture[30:280, 24 + 2 * 294 : 24 + 2 * 294 + 270]
    assert deep.min() < 20
    assert np.median(deep) == pytest.approx(128, abs=20)
    assert (picture == (0xE4, 0xE4, 0xE4)).all(axis=-1).sum() > 0.9 * 270 * 270
    assert [text for text in texts_of(figure) if "." in text] == names


ODD = ["$\\frac{1}{0}$ and $", "Spaß 🐕", "日本語.jpg", "a\nb\t\x07", "\udcff.png", "x" * 500, " ", "קָטָן", "e\u0301"]


def test_odd_names_are_drawn_without_a_warning():
    """The tests run with warnings as errors: a glyph that the font lacks would be one."""
    images = [photo(RED)] * len(ODD)
    sheet = contact_sheet(images, [0.5] * len(ODD), names=ODD, title=" ".join(ODD) * 3)
    texts = texts_of(sheet)
    assert "Spaß □" in texts
    assert "□□□.jpg" in texts
    assert "a b □" in texts
    assert "é" in texts
    assert next(text for text in texts if text.startswith("xxx")).count("…") == 1
    assert whole(drawn(sheet))
    for values in (np.eye(len(ODD)), np.eye(len(ODD))[:1], np.eye(len(ODD))[:, :1]):
        assert whole(drawn(similarity_heat_map(values, ODD[: len(values)], images[: values.shape[1]])))


@pytest.mark.parametrize(("texts", "images"), [(21, 21), (1, 1), (200, 3), (1, 21), (21, 1), (3, 30)])
def test_heat_map(texts, images, tmp_path):
    values = np.random.default_rng(0).uniform(-0.1, 0.4, (texts, images)).astype(np.float32)
    paths = [tmp_path / f"photo {i}.png" for i in range(images)]
    for i, path in enumerate(paths):
        Image.fromarray(photo((200, 3, i))).save(path)
    figure = similarity_heat_map(values, [f"text {i}" for i in range(texts)], paths)
    axes = figure.axes[1]
    np.testing.assert_array_equal(axes.images[0].get_array(), values)
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"text {i}" for i in range(texts)]
    assert [label.get_text() for label in axes.get_xticklabels()] == [path.name for path in paths]
    numbers = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in axes.texts]
    np.testing.assert_allclose(np.array(numbers, float).reshape(values.shape), values, atol=0.00501)
    assert len(figure.axes) == (3 if values.size > 1 else 2)  # No scale for one number.
    picture = drawn(figure)
    assert whole(picture)
    left = axes.get_position().x0 * figure.get_size_inches()[0] * figure.dpi
    width = axes.get_position().width * figure.get_size_inches()[0] * figure.dpi / images
    for i in range(images):
        x, _, thumbnail, _ = area(picture, (200, 3, i))
        assert x + thumbnail / 2 == pytest.approx(left + (i + 0.5) * width, abs=1)
    low, high = np.unravel_index(values.argmin(), values.shape), np.unravel_index(values.argmax(), values.shape)
    assert cell(picture, figure, low) == (68, 1, 84)  # Viridis from its first color
    if values.size > 1:
        assert cell(picture, figure, high) == (253, 231, 36)  # to its last.


def test_a_heat_map_with_other_names_than_the_files():
    images = [photo(RED)] * 61
    figure = similarity_heat_map(np.eye(61)[:2], ["a", "b"], images, names=[f"emoji {i}" for i in range(61)])
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert labels == [f"emoji {i}" for i in range(60)]
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        similarity_heat_map(np.eye(2), ["a", "b"], images[:2], names=["one"])


def cell(picture, figure, place) -> tuple[int, ...]:
    """The color of a cell, near its left upper corner, where no number is."""
    axes = figure.axes[1]
    x, y = axes.transData.transform((place[1] - 0.45, place[0] - 0.4))
    return tuple(int(value) for value in picture[len(picture) - 1 - int(y), int(x)])


def test_numbers_that_have_no_room_are_left_out_and_what_is_too_much_is_said():
    values = np.zeros((201, 61)) - 0.25
    values[0, 0] = 1
    figure = similarity_heat_map(values * 1000, ["text"] * 201, [photo(RED, 2, 2)] * 61)
    assert figure.axes[1].images[0].get_array().shape == (200, 60)
    assert len(figure.axes[1].texts) == 0
    assert "Drawn: the first 200 of 201 texts and the first 60 of 61 images." in texts_of(figure)
    assert whole(drawn(figure))


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"got \(2, 3\) for 3 texts and 2 images"):
        similarity_heat_map(np.zeros((2, 3)), ["a"] * 3, [photo(RED)] * 2)
    with pytest.raises(ValueError, match="at least one of both"):
        similarity_heat_map(np.zeros((0, 0)), [], [])
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])
    with pytest.raises(ValueError, match="got 1 images, 2 scores and 1 names"):
        contact_sheet([photo(RED)], [1.0, 2.0])


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf", "svg"])
def test_formats(suffix):
    file = io.BytesIO()
    contact_sheet([photo(RED)], [0.5]).savefig(file, format=suffix, dpi="figure")
    start = {"png": b"\x89PNG", "jpg": b"\xff\xd8\xff", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert file.getvalue().startswith(start)


def test_drawing_leaves_pyplot_and_jax_alone():
    code = (
        "import sys, numpy as np; from jaxclip import plotting; assert 'matplotlib' not in sys.modules;"
        "plotting.contact_sheet([np.zeros((2, 2, 3), np.uint8)]);"
        "print('matplotlib.pyplot' in sys.modules, 'jax' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"


def test_without_matplotlib_the_mend_is_named():
    code = "import sys; sys.modules['matplotlib'] = None; from jaxclip import plotting; plotting.contact_sheet([])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == (
        'ImportError: pictures are drawn by matplotlib, which is not installed: pip install "jaxclip[plot]"'
    )


def log_lines(n=60):
    lines = []
    for step in range(10, 10 * n + 1, 10):
        lines.append(
            {"step": step, "loss": 1 + 100 / step + (-1) ** (step // 10) * 0.1, "grad_norm": 10.0 ** (step % 3)}
        )
        lines[-1] |= {"logit_scale": 14.0, "learning_rate": 5e-4, "images_per_second": 100.0 if step > 10 else None}
        lines[-1] |= {"logit_bias": -10.0, "seconds": step / 10, "skipped": 3}
        if step % 200 == 0:
            evaluation = {
                f"{way}_recall@{k}": k * step / 10000 for way in ("text_to_image", "image_to_text") for k in (1, 10)
            }
            lines.append({"step": step, "evaluation": evaluation, "seconds": step / 10})
    return lines


def panels(figure):
    """Title → axes; the first axes are the page."""
    page, *axes = figure.axes
    return dict(zip([text.get_text() for text in page.texts], axes, strict=True))


def test_training_curves_have_a_panel_for_each_number():
    lines = log_lines()
    figure = training_curves([{"step": 0, "note": "none"}, *lines, {"step": 600, "loss": None, "diverged": True}])
    found = panels(figure)
    assert list(found) == [
        "loss", "evaluation", "logit scale", "learning rate", "gradient's norm", "images a second", "logit bias"
    ]  # fmt: skip
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    raw, smooth, diverged = found["loss"].lines
    np.testing.assert_allclose(raw.get_xydata(), losses)
    assert raw.get_alpha() < 0.5
    assert np.ptp(np.diff(smooth.get_ydata()[-20:])) < 0.5 * np.ptp(np.diff(raw.get_ydata()[-20:]))
    assert smooth.get_ydata()[0] == losses[0][1]
    assert set(diverged.get_xdata()) == {600}
    # None where nothing was measured.
    assert found["images a second"].lines[0].get_xdata()[0] == 20
    assert found["gradient's norm"].get_yscale() == "log"
    recalls = {line.get_label(): list(line.get_ydata()) for line in found["evaluation"].lines[:-1]}
    assert recalls["image to text recall@10"] == [0.2, 0.4, 0.6]
    assert len(recalls) == 4
    colors = {line.get_label(): line.get_color() for line in found["evaluation"].lines[:-1]}
    assert colors["text to image recall@1"] == colors["text to image recall@10"] != colors["image to text recall@1"]
    assert whole(drawn(figure))


@pytest.mark.parametrize(
    ("lines", "titles"),
    [
        ([{"step": 1, "loss": 2.0, "learning_rate": 0.1}], ["loss", "learning rate"]),
        ([{"step": 7, "evaluation": {"accuracy": 0.5, "other": None}}], ["evaluation"]),
        (
            [{"step": 1, "loss": 2.0, "grad_norm": 0.0}, {"step": 2, "loss": 1.0, "grad_norm": 0.0}],
            ["loss", "gradient's norm"],
        ),
    ],
)
def test_training_curves_of_little(lines, titles):
    figure = training_curves(lines)
    assert list(panels(figure)) == titles
    assert whole(drawn(figure))


def test_training_curves_of_nothing():
    with pytest.raises(ValueError, match="no line with a loss or an evaluation yet"):
        training_curves([{"step": 0, "note": "no curves"}, {"step": 3, "loss": None}])


def test_a_figure_is_written_as_a_whole(tmp_path):
    figure = contact_sheet([photo(RED)])
    write_figure(tmp_path / "a.png", figure)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), drawn(figure))
    write_figure(tmp_path / "a.svg", figure)
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="Format 'doc' is not supported"):
        write_figure(tmp_path / "a.doc", figure)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_classified_photos_hold_the_photos_and_their_classes():
    classes = [[("a cat", 0.75), ("x" * 300, 0.2)], [("$dog$", 1.0), ("日", 0.0)]]
    figure = classified_photos([photo(RED), photo(GREEN, 40, 60)], classes, names=["a.jpg", "b.jpg"], title="photos")
    picture = drawn(figure)
    red, green = (area(picture, color) for color in (RED, GREEN))
    assert [field[2:] for field in (red, green)] == [(270, 180), (180, 270)]
    assert red[0] < green[0]
    assert red[1] + red[3] == green[1] + green[3]
    texts = texts_of(figure)
    assert texts[:4] == ["photos", "a.jpg", "a cat", "0.75"]
    assert texts[4].endswith("…")
    assert texts[5:] == ["0.20", "b.jpg", "$dog$", "1.00", "□", "0.00"]
    # A bar is as long as its probability.
    bars = (picture == (0xB9, 0xD8, 0xF0)).all(axis=-1).any(axis=0)
    assert bars[24 : 24 + 270].sum() == pytest.approx(0.75 * 270, abs=1)
    assert bars[324 : 324 + 270].sum() == 270
    assert whole(picture)
    assert whole(drawn(classified_photos([photo(RED)], [[]])))


def test_more_classified_photos_than_can_be_drawn():
    figure = classified_photos([photo(RED)] * 101, [[("cat", 1.0)]] * 101)
    assert texts_of(figure)[-1] == "Drawn: the first 100 of 101."
    with pytest.raises(ValueError, match="at least one image, and classes and a name for each: got 1 images, 2 rows"):
        classified_photos([photo(RED)], [[], []])


def test_confusion_matrix_is_darker_the_larger_the_part():
    confusion = np.array([[8, 2, 0], [0, 0, 0], [0, 0, 30]])
    figure = confusion_matrix(confusion, ["a cat", "$dog$", "x" * 300], title="set")
    axes = figure.axes[1]
    np.testing.assert_allclose(axes.images[0].get_array(), np.sqrt([[0.8, 0.2, 0], [0, 0, 0], [0, 0, 1]]), atol=1e-12)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["a cat", "$dog$"]
    assert [text.get_text() for text in axes.texts] == ["8", "2", "30"]
    assert [text for text in texts_of(figure) if text in ("0.80", "1.00", "0.00")] == ["0.80", "1.00"]
    picture = drawn(figure)
    assert whole(picture)
    assert (picture == (8, 48, 107)).all(axis=-1).sum() > 0.8 * 64 * 64  # The darkest blue, less the number.
    assert whole(drawn(confusion_matrix(np.array([[1]]), ["only"])))


def test_of_many_classes_the_most_mistaken_are_drawn():
    n = 300
    confusion = np.diag(np.full(n, 1000))
    confusion[0, 299] = confusion[299, 0] = 7
    confusion[100:158, 200] = 3
    confusion[250] = 0
    labels = [f"class {i}" for i in range(n)]
    figure = confusion_matrix(confusion, labels)
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert names == ["class 0", *(f"class {i}" for i in range(100, 157)), "class 200", "class 299"]
    assert "Drawn: of 299 classes the 60 with the most mistakes." in texts_of(figure)
    assert whole(drawn(figure))
    for wrong, names in ((np.zeros((2, 2), int), ["a", "b"]), (np.eye(3, dtype=int), ["a", "b"])):
        with pytest.raises(ValueError, match="a row and a column for each label, and count at least one image"):
            confusion_matrix(wrong, names)


def test_what_was_detected_stands_beside_its_heat_maps():
    relevance = np.zeros((2, 4, 6), np.float32)
    relevance[1, :, 3:] = 1
    boxes = {"a cat": [], "a dog, which has a name longer than there is room for in a legend": [(30, 0, 60, 40, 0.9)]}
    picture = drawn(detected(photo((100, 100, 100)), relevance, boxes, size=(60, 40)))
    grey = (picture == 100).all(axis=-1)
    top, left = np.argwhere(grey).min(axis=0)
    # The photo, 560 across; then the maps: grey and dark where nothing is relevant, light where all is.
    assert (left, grey[top + 180].sum()) == (24, pytest.approx(555, abs=8))
    panel = 560 + 28
    cat, dog = (picture[top + 60, left + number * panel :][:560].astype(int) for number in (1, 2))
    assert cat[30:530].max() < 60
    assert dog[30:200].max() < 60
    assert dog[350:530].sum(axis=1).min() > 450


def test_detected_of_many_prompts_and_of_odd_ones():
    names = [f"prompt ${number}_{{" for number in range(14)]
    figure = detected(photo(RED), np.ones((14, 1, 1)), {name: [] for name in names}, size=(60, 40))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "Heat maps: the first 11 of 14 prompts." in texts
    assert sum(text.endswith("not found") for text in texts) == 14
    drawn(figure)
    with pytest.raises(ValueError, match="got 1 maps of 2 prompts"):
        detected(photo(RED), np.ones((1, 2, 2)), {"a": [], "b": []}, size=(60, 40))
    with pytest.raises(ValueError, match="at least one: got 0 maps"):
        detected(photo(RED), np.ones((0, 2, 2)), {}, size=(60, 40))
