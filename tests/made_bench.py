"A benchmark of drawn numbers, and a comparison of given ones."
from pathlib import Path

import numpy as np

from agri_cae.benchmark.compare import Comparison, Row
from agri_cae.benchmark.patterns import Patterns
from agri_cae.benchmark.quality import BENCH_CONDITIONS
from agri_cae.benchmark.records import Bench, Scale, Series, Times
from agri_cae.measures.baselines import BASELINES
from agri_cae.measures.scores import label

RESULTS = Path(__file__).resolve().parents[1] / "nbs/results"
LEVEL = dict(noisy=0, opencv_nlm=3, skimage_wavelet=4, fast=7, base=8, restore=7.5)   # method -> gain, dB
SPEED = dict(fast=.1, base=.4, restore=.41, ffdnet=1.6, dncnn=6, opencv_nlm=2.4, skimage_wavelet=.2)


def made_bench(seed=0, n=24):
    "Every method of `LEVEL` under every condition, on n pictures of test and of wild"
    rng = np.random.default_rng(seed)

    def one(c, m, start, pictures="test"):
        k = n if c != "paired" else 8
        equal = m == "noisy" and c == "clean"
        psnr = [None if equal else round(float(start + LEVEL[m] + rng.normal(0, .3)), 4) for _ in range(k)]
        return Series(pictures="pairs" if c == "paired" else pictures, condition=c, method=m, key=f"{c}{m}", every=1,
                      psnr=psnr, ssim=[.8] * k, canopy_error=[1.] * k, match_retention=[.5] * k)

    b = Bench(threads=2, machine="made up", sets={"test": dict(digest="", images=[f"{i:02}.png" for i in range(n)])})
    conditions = [*map(label, BENCH_CONDITIONS)]
    def all_of(some, start, pictures):
        return [one(c, m, start - i / 3, pictures) for i, c in enumerate(some) for m in LEVEL
                if not (c == "clean" and m in BASELINES)]
    b.quality = all_of([*conditions, "paired"], 26, "test") + all_of(conditions, 24, "wild")
    for race, h, w in (("networks", 320, 480), ("networks", 1024, 1024), ("methods", 320, 480)):
        for m, s in SPEED.items():
            if race == "networks" and m in BASELINES: continue
            seconds = [round(float(s * h * w / 1e6 * f), 6) for f in rng.uniform(.95, 1.05, 5)]
            b.times.append(Times(race=race, name=m, height=h, width=w, seconds=seconds))
    for engine, s in (("onnx float32", 1.), ("openvino float32", .8)):
        b.times.append(Times(race="engines", name=f"fast {engine}", height=64, width=64, seconds=[s, s]))
    for dtype, size in (("uint8", 1), ("float32", 4)):
        for mp in (.25, 1, 4, 16, 100):
            b.scaling.append(Scale(model="fast", dtype=dtype, megapixels=mp, seconds=.1 * mp + .02, start_mb=90,
                                   picture_mb=3 * size * mp, peak_mb=160 + 6.2 * size * mp))
    b.training = {"fast": [(48., 31.9), (90., 32.0), (142., 32.1)], "base": [(60., 32.4), (200., 32.8)]}
    return b


def with_holes():
    "One picture without noise, and a method that saw every sixth picture only"
    b = made_bench()
    b.series("noisy", "25").psnr[3] = None
    slow = dict(method="slow", every=6, psnr=[30., 31., 32., 33.], ssim=[.5] * 4, canopy_error=[1.] * 4,
                match_retention=[.5] * 4)
    b.quality.append(b.series("fast", "25").model_copy(update=slow))
    return b


SAME = Patterns(grey=100, contrast=[100] * 4, shift=0, white=100, patches=0)   # what a copy does


def made_comparison(gains, **patterns):
    "new against old, from (domain, family, condition) -> gains of its pictures"
    rows = []
    for group, ((domain, family, condition), some) in enumerate(gains.items()):
        about = dict(family=family, collection="c", domain=domain, condition=condition, noisy=20,
                     sigma=20. * (condition != "clean"))
        rows += [Row(picture=f"{family}{i}", index=100 * group + i, psnr=dict(new=30 + g, old=30), **about)
                 for i, g in enumerate(some)]
    patterns = dict(new=SAME, old=SAME) | patterns
    return Comparison(models=["new", "old"], seed=0, versions={}, rows=rows, patterns=patterns)
