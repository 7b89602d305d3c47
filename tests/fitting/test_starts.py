"What ends a training early is said in one line: weights of other bands, a full disk."

import errno

import numpy as np
import pytest

pytest.importorskip("keras")
from agri_cae.cli.training import train_config
from agri_cae.config import ConfigError, TrainConfig
from agri_cae.fitting.checkpoint import State
from agri_cae.fitting.folder import writing
from agri_cae.fitting.pictures import with_bands
from agri_cae.io.files import DiskFull
from agri_cae.tracking.logs import door


@pytest.mark.parametrize("name", ["init_from", "teacher"])
def test_weights_of_three_bands_for_grey_pictures(name):
    cfg = TrainConfig(**{name: "fast"})
    with door("cli"), pytest.raises(ConfigError) as e:
        with_bands(cfg, 1)
    for words in (f"{name}: is fast", "are for pictures of 3 bands, but these have 1", f"--set {name}=,", "of 3 bands"):
        assert words in str(e.value)
    assert with_bands(cfg, 3).model.channels == 3
    assert with_bands(train_config(sets=[f"{name}="]), 1).model.channels == 1  # as the message says


def test_a_full_disk_ends_a_training_and_says_how_to_go_on(tmp_path, monkeypatch):
    def full(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DiskFull) as e, writing("the output folder"):
        State().save(tmp_path / "checkpoint.npz", {})
    said = str(e.value)
    assert said.startswith(f"{tmp_path}/checkpoint.npz: cannot be written (No space left on device): the disk at /")
    assert said.endswith("the same call goes on where this one stopped.") and not [*tmp_path.iterdir()]
