"Tables and intervals."
import numpy as np
import pytest

from agri_cae.measures.statistics import interval
from agri_cae.measures.tables import markdown_table


@pytest.mark.parametrize("share", [.8, .95])
def test_the_interval_holds_the_mean_as_often_as_it_says(share):
    rng = np.random.default_rng(0)
    inside = [low <= 0 <= high for low, high in (interval(rng.normal(0, 1, 60), share, 1000) for _ in range(600))]
    assert abs(np.mean(inside) - share) < .06


def test_a_table_survives_any_file_name():
    rows = [["a|b.png", None], ["two\nlines", 1.25]]
    lines = markdown_table(["file", "dB"], rows, {"dB": ".1f"}).splitlines()
    assert lines == ["| file | dB |", "| --- | --- |", "| a\\|b.png | - |", "| two lines | 1.2 |"]


def test_columns_line_up_for_a_terminal():
    lines = markdown_table(["", "seconds"], [["long name", .5], ["x", 12]], floats=".3f", aligned=True).splitlines()
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) == set("| -")


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError): markdown_table(["a", "b"], [[1]])
