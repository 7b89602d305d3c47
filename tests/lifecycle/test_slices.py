"A challenger that is better in the mean is refused for one camera, folder or picture; reports have absolute scores."

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from made_pictures import window

from agri_cae.benchmark.compare import compare_models
from agri_cae.benchmark.photos import Photo
from agri_cae.benchmark.slices import TOGETHER
from agri_cae.config import ConfigError, DataError, EvalConfig
from agri_cae.io.exif import pack_exif
from agri_cae.io.formats import Meta
from agri_cae.io.images import Picture, write_image
from agri_cae.io.tags import FieldType, Tag, Tags, number_entry, text_entry
from agri_cae.lifecycle import gate
from agri_cae.lifecycle.gate import run_gate
from agri_cae.lifecycle.judging import GateConfig, judge, score_tags
from agri_cae.lifecycle.report import gate_report, score_table, write_gate
from agri_cae.lifecycle.shots import NEW, TEST, Shots, picture_groups

NOISE = EvalConfig(sigmas=(25.0,))
DRONE, FIELD = ("DJI", "FC6310", 100), ("Canon", "Canon EOS R5", 1600)


def blur(radius):
    return lambda x: cv2.GaussianBlur(x, (0, 0), radius).reshape(x.shape)


worse, champion, better = map(blur, (0.5, 0.6, 0.7))


def dark(x):
    return x.mean() < 0.29


def challenger_bad_where(bad):
    "Better than the champion, but leaves more noise in some pictures"
    return lambda x: (worse if bad(x) else better)(x)


def take(path, i, camera, level=1.0):
    "A picture with what a camera writes"
    make, model, iso = camera
    below = Tags("<", {Tag.PhotographicSensitivity: number_entry(FieldType.SHORT, iso)})
    tags = Tags("<", {Tag.Make: text_entry(make), Tag.Model: text_entry(model), Tag.ExifIFD: below})
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.uint8(128 + level * 100 * (window(i, 64) / 255.0 - 0.5) - 70 * (camera is DRONE))
    write_image(Picture(pixels, meta=Meta(exif=pack_exif(tags))), path)


def two_cameras(folder, drone=10, field=30):
    "Dark pictures of a drone, lighter ones of a camera on the ground"
    for i in range(drone):
        take(folder / "flight" / f"{i}.jpg", i, DRONE)
    for i in range(field):
        take(folder / "ground" / f"{i}.png", i, FIELD)
    return Shots({TEST: EvalConfig(folder=str(folder))})


def meet(challenger, shots, **others):
    models = dict(challenger=challenger, champion=champion, **others)
    return compare_models(models, shots, NOISE.sigmas, patterns=False, progress=False)


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    return two_cameras(tmp_path_factory.mktemp("pictures"))


def test_one_camera_is_named(shots):
    found = meet(challenger_bad_where(dark), shots)
    result = judge(found, GateConfig(worst_loss=99))
    assert not result.promote
    [met, *_] = [met for met, text in result.checks if text.startswith("better on the test pictures: +")]
    assert met  # the mean would have let it pass
    for words in ("clearly lose more than 0.1 dB", "camera DJI FC6310 (test pictures) -", "ISO 100 ", "folder flight "):
        assert words in result.reason
    assert "Canon" not in result.reason and " instead of " in result.reason and "noisy 2" in result.reason
    assert judge(found, GateConfig(worst_loss=99, slice_loss=50)).promote
    assert judge(meet(better, shots)).promote


def test_too_few_pictures_do_not_refuse(tmp_path, shots):
    few = two_cameras(tmp_path, drone=7, field=40)
    found = meet(challenger_bad_where(dark), few)
    assert judge(found, GateConfig(worst_loss=99)).promote
    assert "| camera: DJI FC6310 | 7 |" in gate_report(judge(found), GateConfig())
    assert "too few to judge (7 pictures)" in gate_report(judge(found), GateConfig())
    small = Shots({TEST: EvalConfig(folder=str(tmp_path / "flight"))})
    text = dict.fromkeys(t for _, t in judge(meet(better, small)).checks)
    assert any("none has the 8 pictures" in t for t in text)


def test_small_groups_are_judged_together_and_none_vanishes(tmp_path):
    for i, name in enumerate("abcdefgh" * 2):
        take(tmp_path / name / f"{i}.png", i, FIELD)
    small = Shots({TEST: EvalConfig(folder=str(tmp_path))})
    assert {tuple(p.groups) for p in small} == {("folder",)}  # one camera tells nothing apart
    text = gate_report(judge(meet(better, small)), GateConfig())
    assert text.count("too few to judge (2 pictures)") == 8 and TOGETHER not in text
    for i in range(8):
        take(tmp_path / "many" / f"{i}.png", i, FIELD)
    shots = Shots({TEST: EvalConfig(folder=str(tmp_path))})
    result = judge(meet(better, shots))
    write_gate(result, dict(challenger=better, champion=champion), shots, GateConfig(), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())["slices"]
    folders = {s["name"]: (s["pictures"], s["verdict"]) for s in told if s["kind"] == "folder"}
    few = dict.fromkeys("abcdefgh", (2, "too few to judge (2 pictures)"))
    assert folders == few | {TOGETHER: (16, "gains"), "many": (8, "gains")}
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"| folder: {TOGETHER} | 16 |" in text and text.count("too few to judge (2 pictures)") == 8


def test_one_bad_picture_is_named(shots):
    brightest = max(shots, key=lambda p: p.clean.mean())
    limit = brightest.clean.mean() - 0.004
    found = meet(challenger_bad_where(lambda x: x.mean() > limit), shots)
    result = judge(found)
    assert not result.promote and result.reason.startswith(f"worst picture: {brightest.name} under sigma 25 -")
    assert " instead of " in result.reason and result.reason.endswith("allowed -1 dB")
    assert judge(found, GateConfig(worst_loss=20)).promote


def test_new_pictures_and_old_ones(tmp_path, shots):
    two_cameras(tmp_path, drone=9, field=9)
    both = Shots({TEST: EvalConfig(folder=str(tmp_path)), NEW: EvalConfig(folder=str(tmp_path / "ground"))})
    result = judge(meet(better, both))
    assert result.promote and result.reason.startswith("better on the new pictures: +")
    assert "; no worse on the test pictures: +" in result.reason
    assert set(score_tags(result.comparison)) == {"psnr_test", "psnr_new"}


def test_absolute_scores_in_report_and_tags(tmp_path, shots):
    models = dict(fast=champion, base=better)
    found = meet(challenger_bad_where(dark), shots, **models)
    result = judge(found)
    write_gate(result, dict(challenger=challenger_bad_where(dark), champion=champion, **models), shots,
               GateConfig(), tmp_path / "out")  # fmt: skip
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["least_gained.png", "most_gained.png", "report.json", "report.md", "scores.json", "slices.png"]
    text, tag = (tmp_path / "out" / "report.md").read_text(), score_tags(found)["psnr_test"]
    mean = np.mean([r.psnr["base"] for r in found.rows])
    assert f"| base | {mean:.2f} |" in text and f"base {mean:.2f}" in tag
    noisy = np.mean([r.noisy for r in found.rows])
    assert f"| noisy | {noisy:.2f} |" in text and tag.startswith(f"noisy {noisy:.2f}, challenger ")
    assert "| champion |" in text and "| fast |" in text and "**loses**" in text and str(tmp_path) not in text
    assert score_table(found, TEST).count("\n") == 6
    with pytest.raises(ConfigError, match="slice_los: unknown key"):
        GateConfig(slice_los=1)


@pytest.mark.parametrize("crowned", [True, False])
def test_the_shipped_models_are_shown(tmp_path, monkeypatch, crowned):
    "Also what the registry keeps of a refusal, without a registry"
    kept, models = {}, {"models:/agri-cae/7": lambda x: x, "models:/agri-cae/3": better}

    def load(uri):
        return Loaded(models.get(uri, champion))

    class Loaded(SimpleNamespace):
        def __init__(self, f):
            super().__init__(f=f, card=SimpleNamespace(channels=3), name="stub@1", digest="0" * 12)

        def __call__(self, x):
            return self.f(x)

    monkeypatch.setattr(gate, "Denoiser", SimpleNamespace(for_evaluation=load))
    monkeypatch.setattr(gate, "aliases", lambda: {"champion": "3"} if crowned else {})
    monkeypatch.setattr(gate, "get_version", lambda name: SimpleNamespace(version=7, tags={}))
    monkeypatch.setattr(gate, "refuse", lambda version, reason, **tags: kept.update(tags, reason=reason))
    result = gate.promote("7", NOISE, progress=False, out=tmp_path)
    rows = ["challenger", *["champion"] * crowned, "fast", "base"]
    assert not result.promote and result.comparison.models == rows
    assert all(f"| {name} |" in (tmp_path / "report.md").read_text() for name in ("noisy", *rows))
    assert all(f"{name} " in kept["psnr_test"] for name in ("noisy", *rows)) and "noisy 2" in kept["reason"]
    for bands, shown in ((1, rows), (5, [n for n in rows if n not in ("base", *["fast"] * crowned)])):
        assert [*gate.gate_models("7", "3" if crowned else "", bands)] == shown


def test_pictures_of_many_bands(tmp_path):
    rng = np.random.default_rng(0)
    photos = [Photo(f"{i}.tif", rng.random((20, 30, 5), np.float32), domain=TEST) for i in range(3)]
    models = dict(challenger=lambda x: x * 0.9, champion=lambda x: x * 0.8)
    result = judge(compare_models(models, photos, (25.0,), patterns=False, progress=False))
    write_gate(result, models, photos, GateConfig(), tmp_path)
    assert (tmp_path / "least_gained.png").exists()


def test_what_cannot_be_measured(tmp_path):
    for name, side in (("a_noisy.png", 50), ("a_clean.png", 60)):
        write_image(Picture(window(0)[:side]), tmp_path / name)
    with pytest.raises(DataError, match=r"a_clean.png.*is \(50, 128, 3\) noisy"):
        run_gate("1", {TEST: EvalConfig(folder=str(tmp_path))}, GateConfig(), progress=False)
    assert picture_groups([], "") == []


def test_what_makes_pictures_worse_is_refused_though_it_beats_the_champion(shots):
    def grained(amount):
        grain = np.random.default_rng(0).normal(0, amount, (64, 64, 1)).astype(np.float32)
        return lambda x: x + grain[: x.shape[0], : x.shape[1]]

    models = dict(challenger=grained(0.1), champion=grained(0.2))
    found = compare_models(models, shots, NOISE.sigmas, patterns=False, progress=False)
    result = judge(found, GateConfig())
    assert not result.promote and "makes pictures worse than they came: " in result.reason
    assert [met for met, text in result.checks if text.startswith("better on the test pictures")] == [True]
