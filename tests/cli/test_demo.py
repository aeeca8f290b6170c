import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip import plotting
from jaxclip.cli import main
from jaxclip.tasks import emoji


@pytest.fixture
def few(monkeypatch):
    """Every twentieth emoji, and those that the demo asks for by name."""
    from jaxclip.cli import demo

    everything = emoji.twemoji()
    some = [one for index, one in enumerate(everything) if index % 20 == 0 or one.emoji.name in demo.PICTURED]
    monkeypatch.setattr(emoji, "twemoji", lambda: some)
    return some


def test_finds_classifies_and_draws(few, capsys, tmp_path):
    assert main(["demo", "tiger face", "Pizza!", "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    tiger, pizza = out.split("\nPizza!\n")
    assert "tiger face" in tiger.split("\ntiger face\n")[1].splitlines()[0]
    assert len(pizza.split("\n\n")[0].splitlines()) == 8
    assert out.count("%)") == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "pizza.png",
        "similarity.png",
        "tiger-face.png",
    ]
    with Image.open(tmp_path / "out" / "pizza.png") as sheet:
        assert np.asarray(sheet).std() > 10


def test_the_classes_are_those_that_classify_finds(few, capsys, tmp_path):
    from jaxclip.cli.demo import LABELS, PICTURED

    paths = {picture.emoji.name: picture.path for picture in few}
    found = jaxclip.classify(jaxclip.load("emoji"), [paths[name] for name in PICTURED], LABELS, templates=["{}"])
    assert main(["demo", "pizza", "-o", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.split("instrument?\n")[1].splitlines()
    for name, line, [(label, probability)] in zip(PICTURED, lines[: len(PICTURED)], found.top(), strict=True):
        assert line.endswith(f"  {name}: {label} ({probability:.0%})")


def test_the_heat_map_names_the_emoji(few, capsys, monkeypatch, tmp_path):
    drawn = []
    heat_map = plotting.similarity_heat_map

    def keep(*arguments, **options):
        drawn.append(heat_map(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(plotting, "similarity_heat_map", keep)
    assert main(["demo", "tiger face", "pizza", "-o", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    firsts = [lines[lines.index(phrase) + 1].split("  ")[-1] for phrase in ("tiger face", "pizza")]
    assert [label.get_text() for label in drawn[0].axes[1].get_xticklabels()] == firsts


def test_asks_on_a_terminal(few, capsys, monkeypatch, tmp_path):
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    typed = iter(["fire engine", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert main(["demo", "pizza", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "What are you looking for?" in out
    assert "\nfire engine\n" in out.split("What are you looking for?")[1]


def test_without_its_packages_it_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert 'pip install "jaxclip[plot]"' in capsys.readouterr().err
