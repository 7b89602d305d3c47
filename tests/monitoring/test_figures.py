"False alarms and detection, on the training pictures of ../shared/data/train where they are."

from pathlib import Path

import monitor_figures as figures
import pytest

from agri_cae.modelfiles.card import shipped

TRAIN = Path(__file__).parents[3] / "shared/data/train"
needs_weights = pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")


@pytest.fixture(scope="module")
def rows():
    if not TRAIN.is_dir():
        pytest.skip("no training pictures in ../shared/data/train")
    return figures.measure(TRAIN, every=2)


@needs_weights
@pytest.mark.parametrize("content", [None, ("leaf",)], ids=["everything", "leaves"])
@pytest.mark.parametrize("seed", range(3))
def test_at_most_one_alert_on_twenty_windows_as_ever(rows, content, seed):
    assert len(figures.false_alarms(rows, seed, content)) <= 1


@needs_weights
@pytest.mark.parametrize("shift", figures.SHIFTS)
def test_a_shift_is_caught_within_200_pictures(rows, shift):
    for content in (None, ("leaf",)):
        for seed in range(3):
            after = figures.caught_after(rows, seed, figures.is_shift(shift), content)
            assert after is not None, (content, seed)


@needs_weights
@pytest.mark.parametrize("tag", ["drone-farmland", "plants-on-soil", "drone-soil-grass"])
def test_another_crop_is_caught_within_200_pictures(rows, tag):
    for seed in range(3):
        assert figures.caught_after(rows, seed, figures.is_crop(tag), ("leaf",)) is not None, seed
