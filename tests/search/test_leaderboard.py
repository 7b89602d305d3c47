"A best trial that makes pictures worse is not praised; a full disk ends a sweep, not a trial."

import errno
import json
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")
from agri_cae.cli import training
from agri_cae.io.files import DiskFull
from agri_cae.search import sweep, trials
from agri_cae.search.leaderboard import board_warning, leaderboard, plot_time, write_board


def study(*scores, noisy=20.17):
    "A study whose trials came to these scores"
    known = [dict(params={"lr": 0.001}, state="complete", score=s, noisy=noisy, minutes=1.0) for s in scores]
    state = SimpleNamespace(name="COMPLETE")
    done = [SimpleNamespace(number=i, user_attrs=k, state=state) for i, k in enumerate(known)]
    return SimpleNamespace(get_trials=lambda deepcopy: done)


@pytest.mark.parametrize(("scores", "worse"), [((15.2, 18.31), True), ((15.2, 24.0), False)])
def test_the_noisy_score_stands_beside_and_warns(tmp_path, scores, worse):
    board = leaderboard(study(*scores))
    assert [(r["val_psnr"], r["noisy_psnr"]) for r in board] == [(scores[1], 20.17), (15.2, 20.17)]
    write_board(board, tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| noisy_psnr |" in text and "| 20.170 |" in text
    done = SimpleNamespace(leaderboard=lambda: board, folder=tmp_path, parent="p", version="1")
    shown, told = training._sweep_text(done), json.loads(training._sweep_json(done))
    said = (text, shown.splitlines()[-1], told["warning"], board_warning(board))
    assert [s.count("Even the best trial, 1, makes pictures worse: 18.31 dB, noisy 20.17") for s in said] == [worse] * 4
    assert (plot_time(study(*scores), tmp_path).axes[0].get_title() != "") == worse


def test_the_noisy_score_comes_from_the_card(tmp_path, monkeypatch):
    metrics = dict(val_psnr=18.3, val_noisy_psnr=20.2, minutes=1.0)
    monkeypatch.setattr(trials, "read_card", lambda path: SimpleNamespace(metrics=metrics))
    assert trials._scored({}, tmp_path).noisy == 20.2


def test_a_full_disk_is_no_fault_of_the_trial():
    future = Future()
    future.set_exception(OSError(errno.ENOSPC, "No space left on device", "sweep/trial_0001/train.ipynb"))
    with pytest.raises(DiskFull, match=r"trial_0001/train.ipynb: cannot be written .* the disk at "):
        sweep._result(future)
    other = Future()
    other.set_exception(OSError(errno.EACCES, "Permission denied"))
    assert sweep._result(other).state == "fail"
