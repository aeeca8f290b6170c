"""The page's examples run, and give what it says."""

import doctest

from jaxclip import similarity


def test_the_examples_of_the_page():
    failed, attempted = doctest.testmod(similarity, raise_on_error=False)
    assert failed == 0
    assert attempted >= 20


def test_the_table_names_every_measure():
    table = [line for line in similarity.__doc__.splitlines() if line.startswith("| `")]
    measures = {name for name in similarity.__all__ if name.endswith(("similarity", "distance", "product"))}
    assert all(any(f"`{name}`" in line for line in table) for name in measures)
    assert any("LearnedMetric" in line for line in table)
