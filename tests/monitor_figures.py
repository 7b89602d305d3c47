"""False alarms and detection of `agri_cae.monitoring.alerts`, measured on training pictures: python tests/monitor_figures.py FOLDER [--every 1] [--seeds 20]

FOLDER holds pictures listed in ../MANIFEST.csv. Half of the photos make the profile; traffic comes from the other half, with noise as the model `fast` was trained with, so it is in distribution but
never seen. For each seed another half: 20 windows of such traffic, one look at each; and for each shift 100 such pictures, then shifted ones, with a look after every 10, until an alert opens.
"""
import argparse
import csv
import tempfile
from pathlib import Path

import cv2
import numpy as np

from agri_cae.io.images import from_float, read_image, to_float
from agri_cae.monitoring.alerts import take_look, update_alerts
from agri_cae.monitoring.profile import Profile
from agri_cae.monitoring.log import STATISTICS, MonitorConfig, PredictionLog, picture_statistics
from agri_cae.serve import Denoiser


def dusk(x, stops=2):
    "The same picture with less light"
    light = np.where(x <= .04045, x / 12.92, ((x + .055) / 1.055) ** 2.4) / 2**stops
    return np.where(light <= .0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - .055)


SHIFTS = {"sigma doubled": dict(noise=2), "dusk, 2 stops": dict(change=dusk), "blurred lens, sigma 2": dict(change=lambda x: cv2.GaussianBlur(x, (0, 0), 2)),
          "blurred lens, sigma 1.2": dict(change=lambda x: cv2.GaussianBlur(x, (0, 0), 1.2))}


def numbers(denoiser, clean, rng, noise=1, change=lambda x: x):
    "What the log gets of a picture; sigma lies evenly below and above the median of the model's training"
    n = denoiser.card.train; lo, mid, hi = n["sigma_min"], n["sigma_median"], n["sigma_max"]
    sigma = noise * (rng.uniform(lo, mid) if rng.random() < .5 else rng.uniform(mid, hi))
    x = change(clean); x = from_float(x + rng.normal(0, sigma / 255, x.shape), np.uint8)
    return picture_statistics(x, denoiser(x))


def measure(folder, every=1):
    "Rows (photo, content, condition, numbers) of the pictures, in the middle of each 192 x 192 pixels"
    denoiser, rows, folder = Denoiser.load("fast", threads=1), [], Path(folder)
    listed = [r for r in csv.DictReader((folder.parent / "MANIFEST.csv").open()) if r["split"] == folder.name][::every]
    for i, r in enumerate(listed):
        clean = to_float(read_image(folder.parent / r["file"]).data)[96:288, 96:288]
        for k, (name, shift) in enumerate({"usual": {}, **SHIFTS}.items()):
            rows.append((r["source_repo"] + r["path_in_repo"], r["content_tag"], name, numbers(denoiser, clean, np.random.default_rng([i, k]), **shift)))
    return rows


class Service:
    "A log that pictures go into, against a profile of some of them"
    def __init__(self, folder, rows):
        ids = {p: i for i, p in enumerate(sorted({r[0] for r in rows}))}
        self.profiles = {"fast": Profile(model="fast@3", about="", groups=tuple(ids[r[0]] for r in rows), values={k: tuple(r[3].get(k) for r in rows) for k in STATISTICS})}
        self.log = PredictionLog(MonitorConfig(path=Path(folder) / "log.db"))

    def answer(self, rows, count, rng):
        for i in rng.integers(len(rows), size=count): self.log.write("", "fast@3", (192, 192), 200, 1., rows[i][3])

    def opened(self): return update_alerts(self.log, take_look(self.log, self.profiles))[0]


def halves(rows, seed, content=None):
    "Rows of half of the photos, of some content or all; and of the other half"
    photos = sorted({r[0] for r in rows if content is None or r[1] in content})
    first = set(np.random.default_rng(seed).permutation(photos)[:len(photos) // 2])
    return [r for r in rows if r[0] in first and r[2] == "usual"], [r for r in rows if r[0] in set(photos) - first]


def false_alarms(rows, seed, content=None, windows=20, step=100):
    "Alerts that open on windows of traffic as ever, with a look after every `step` pictures"
    known, others = halves(rows, seed, content); rng = np.random.default_rng([seed, 1]); others = [r for r in others if r[2] == "usual"]
    with tempfile.TemporaryDirectory() as folder:
        s, alerts = Service(folder, known), []
        for _ in range(windows * s.log.cfg.window // step): s.answer(others, step, rng); alerts += s.opened()
        s.log.close()
    return alerts


def caught_after(rows, seed, shifted, content=None, most=200):
    "Shifted pictures until an alert opens; None: not within `most`"
    known, others = halves(rows, seed, content); rng = np.random.default_rng([seed, 2])
    seen = {r[0] for r in known}; shifted = [r for r in rows if r[0] not in seen and shifted(r) and (content is None or r[2] == "usual" or r[1] in content)]
    with tempfile.TemporaryDirectory() as folder:
        s = Service(folder, known)
        s.answer([r for r in others if r[2] == "usual"], s.log.cfg.window, rng); s.opened()
        before = {r for r, in s.log.run("SELECT name FROM alerts").fetchall()}
        for n in range(10, most + 1, 10):
            s.answer(shifted, 10, rng)
            if any(a.name not in before for a in s.opened()): s.log.close(); return n
        s.log.close()


def is_shift(name): return lambda r: r[2] == name
def is_crop(tag): return lambda r: r[2] == "usual" and r[1] == tag


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("folder"); p.add_argument("--every", type=int, default=1); p.add_argument("--seeds", type=int, default=20)
    a = p.parse_args(); rows, seeds = measure(a.folder, a.every), range(a.seeds)
    print(len({r[0] for r in rows}), "photos,", a.seeds, "seeds")
    for label, content in {"everything": None, "leaves": ("leaf",), "drone pictures of fields": ("drone-farmland", "drone-farmyard")}.items():
        print(f"\nprofile of {label}")
        for step in (100, 25):
            found = [len(false_alarms(rows, s, content, step=step)) for s in seeds]
            print(f"  alerts on 2000 pictures as ever, a look after every {step}: mean {np.mean(found):.2f}, most {max(found)}, more than one in {sum(n > 1 for n in found)} of {len(found)} runs")
        tags = [t for t in ("leaf", "drone-farmland", "drone-NIR-field", "plants-on-soil", "drone-soil-grass") if content is None or t not in content]
        for name, shift in {**{n: is_shift(n) for n in SHIFTS}, **{f"only {t}": is_crop(t) for t in tags}}.items():
            after = [caught_after(rows, s, shift, content) for s in seeds]; hit = [n for n in after if n is not None]
            print(f"  {name:24} caught in {len(hit)} of {len(after)} runs, after {np.median(hit) if hit else np.nan:.0f} pictures (median), {max(hit, default=np.nan):.0f} (most)")
