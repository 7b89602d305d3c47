"""False alarms and detection of `agri_cae.monitoring.alerts`, measured on training pictures.

python tests/monitor_figures.py FOLDER [--every 1] [--seeds 20]

FOLDER holds pictures listed in ../MANIFEST.csv. Half of the photos make the profile. Traffic comes from the other half,
with noise as the model `fast` was trained with. So it is of the same kind, but the service has never seen it. Each seed
takes another half: 20 windows of such traffic, one look at each. For each shift, 100 such pictures are followed by
shifted ones, with a look after every 10, until an alert opens.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from agri_cae.io.colour import from_linear, to_linear
from agri_cae.io.images import from_float, read_image, to_float
from agri_cae.monitoring.alerts import update_alerts
from agri_cae.monitoring.log import MonitorConfig, PredictionLog
from agri_cae.monitoring.look import take_look
from agri_cae.monitoring.profile import Profile
from agri_cae.monitoring.statistics import STATISTICS, picture_statistics
from agri_cae.serve import Denoiser


def dusk(x, stops=2):
    "The same picture with less light"
    return from_linear(to_linear(x) / 2**stops)


def blurred(sigma):
    return lambda x: cv2.GaussianBlur(x, (0, 0), sigma)


SHIFTS = {
    "sigma doubled": dict(noise=2),
    "dusk, 2 stops": dict(change=dusk),
    "blurred lens, sigma 2": dict(change=blurred(2)),
    "blurred lens, sigma 1.2": dict(change=blurred(1.2)),
}
CONTENTS = {"everything": None, "leaves": ("leaf",), "drone pictures of fields": ("drone-farmland", "drone-farmyard")}
TAGS = ("leaf", "drone-farmland", "drone-NIR-field", "plants-on-soil", "drone-soil-grass")


class Row(NamedTuple):
    "A picture in one condition."

    photo: str
    tag: str  # content
    condition: str  # usual, or a name in SHIFTS
    numbers: dict  # of `picture_statistics`


def numbers(denoiser, clean, rng, noise=1, change=lambda x: x):
    "What the log gets of a picture; sigma lies evenly below and above the median of the model's training"
    n = denoiser.card.train
    lo, mid, hi = n["sigma_min"], n["sigma_median"], n["sigma_max"]
    sigma = noise * (rng.uniform(lo, mid) if rng.random() < 0.5 else rng.uniform(mid, hi))
    x = change(clean)
    x = from_float(x + rng.normal(0, sigma / 255, x.shape), np.uint8)
    return picture_statistics(x, denoiser(x))


def measure(folder, every=1):
    "A row for each picture and condition, of the middle of each 192 x 192 pixels"
    denoiser, rows, folder = Denoiser.load("fast", threads=1), [], Path(folder)
    with open(folder.parent / "MANIFEST.csv", encoding="utf-8", newline="") as f:
        listed = [r for r in csv.DictReader(f) if r["split"] == folder.name][::every]
    for i, r in enumerate(listed):
        clean = to_float(read_image(folder.parent / r["file"]).data)[96:288, 96:288]
        photo = r["source_repo"] + r["path_in_repo"]
        for k, (name, shift) in enumerate({"usual": {}, **SHIFTS}.items()):
            found = numbers(denoiser, clean, np.random.default_rng([i, k]), **shift)
            rows.append(Row(photo, r["content_tag"], name, found))
    return rows


class Service:
    "A log that pictures go into, against a profile of some of them"

    def __init__(self, folder, rows):
        ids = {p: i for i, p in enumerate(sorted({r.photo for r in rows}))}
        groups = tuple(ids[r.photo] for r in rows)
        values = {k: tuple(r.numbers.get(k) for r in rows) for k in STATISTICS}
        self.profiles = {"fast": Profile(model="fast@3", about="", groups=groups, values=values)}
        self.log = PredictionLog(MonitorConfig(path=Path(folder) / "log.db"))

    def answer(self, rows, count, rng):
        for i in rng.integers(len(rows), size=count):
            self.log.write("", "fast@3", (192, 192), 200, 1.0, rows[i].numbers)

    def opened(self):
        return update_alerts(self.log, take_look(self.log, self.profiles))[0]


def halves(rows, seed, content=None):
    "Rows of half of the photos, of some content or all; and of the other half"
    photos = sorted({r.photo for r in rows if content is None or r.tag in content})
    first = set(np.random.default_rng(seed).permutation(photos)[: len(photos) // 2])
    known = [r for r in rows if r.photo in first and r.condition == "usual"]
    return known, [r for r in rows if r.photo in set(photos) - first]


def false_alarms(rows, seed, content=None, windows=20, step=100):
    "Alerts that open on windows of traffic as ever, with a look after every `step` pictures"
    known, others = halves(rows, seed, content)
    rng, alerts = np.random.default_rng([seed, 1]), []
    others = [r for r in others if r.condition == "usual"]
    with tempfile.TemporaryDirectory() as folder:
        s = Service(folder, known)
        for _ in range(windows * s.log.cfg.window // step):
            s.answer(others, step, rng)
            alerts += s.opened()
        s.log.close()
    return alerts


def pictures_until_alert(service, shifted, rng, most):
    "Shifted pictures until another alert opens; None: not within `most`"
    before = {name for (name,) in service.log.run("SELECT name FROM alerts").fetchall()}
    for n in range(10, most + 1, 10):
        service.answer(shifted, 10, rng)
        if any(a.name not in before for a in service.opened()):
            return n
    return None


def caught_after(rows, seed, shifted, content=None, most=200):
    "Pictures for which `shifted` holds until an alert opens; None: not within `most`"
    known, others = halves(rows, seed, content)
    rng, seen = np.random.default_rng([seed, 2]), {r.photo for r in known}

    def fits(r):
        return content is None or r.condition == "usual" or r.tag in content

    shifted = [r for r in rows if r.photo not in seen and shifted(r) and fits(r)]
    with tempfile.TemporaryDirectory() as folder:
        s = Service(folder, known)
        s.answer([r for r in others if r.condition == "usual"], s.log.cfg.window, rng)
        s.opened()
        after = pictures_until_alert(s, shifted, rng, most)
        s.log.close()
    return after


def is_shift(name):
    return lambda r: r.condition == name


def is_crop(tag):
    return lambda r: r.condition == "usual" and r.tag == tag


def report(rows, seeds, content):
    "Print the figures for a profile of some content"
    for step in (100, 25):
        found = [len(false_alarms(rows, s, content, step=step)) for s in seeds]
        more = sum(n > 1 for n in found)
        print(f"  alerts on 2000 pictures as ever, a look after every {step}: mean {np.mean(found):.2f}, ", end="")
        print(f"most {max(found)}, more than one in {more} of {len(found)} runs")
    others = [t for t in TAGS if content is None or t not in content]
    for name, shift in {**{n: is_shift(n) for n in SHIFTS}, **{f"only {t}": is_crop(t) for t in others}}.items():
        after = [caught_after(rows, s, shift, content) for s in seeds]
        hit = [n for n in after if n is not None] or [np.nan]
        caught = sum(n is not None for n in after)
        print(f"  {name:24} caught in {caught} of {len(after)} runs, ", end="")
        print(f"after {np.median(hit):.0f} pictures (median), {max(hit):.0f} (most)")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--seeds", type=int, default=20)
    a = p.parse_args()
    measured = measure(a.folder, a.every)
    print(len({r.photo for r in measured}), "photos,", a.seeds, "seeds")
    for label, content in CONTENTS.items():
        print(f"\nprofile of {label}")
        report(measured, range(a.seeds), content)
