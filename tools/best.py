#!/usr/bin/env python3
"""Make the shipped `best` anew when `base` has changed: the same weights, with the mean over four mirrored copies of each picture. Its card gets the scores of that on the
validation pictures of base's training.
  tools/best.py PHOTOS...     the folders that base was trained on"""
import json
import shutil
import sys

import numpy as np

from agri_cae.config import DataConfig, NoiseConfig
from agri_cae.curation.splits import split
from agri_cae.data import load_arrays, open_dataset
from agri_cae.engines.runtimes import load_engine
from agri_cae.fitting.loop import mean_scores, psnr, validation_sets
from agri_cae.io.files import write_text
from agri_cae.modelfiles.card import read_card, weights_path

COPIES = 4
base, card = weights_path("base"), read_card("base")
cfg = DataConfig(**{k: card.train[k] for k in DataConfig.model_fields if k in card.train} | dict(folder=tuple(sys.argv[1:])))
data = open_dataset(cfg)
if data.digest != card.data["digest"]: raise SystemExit(f"{' '.join(sys.argv[1:])}: not what base was trained on (the digest differs)")
parts = split(data, cfg)
arrays = {"": load_arrays(parts.val)} | ({"out_": load_arrays(parts.out)} if parts.out else {})
noise = NoiseConfig(**{k: card.train[k] for k in NoiseConfig.model_fields if k in card.train})
engine = load_engine(base, ensemble=COPIES)[0]
scores = {f"val_psnr_{k}": round(psnr(clean, np.concatenate([engine(x[None]) for x in noisy])), 6) for k, (noisy, clean) in validation_sets(arrays, noise).items()}
shutil.copyfile(base, base.with_name("best.onnx"))
mine = card.model_copy(update=dict(name="best", ensemble=COPIES, sha256={"best.onnx": card.sha256[base.name]}, metrics=scores | {k: round(v, 6) for k, v in mean_scores(scores).items()}))
write_text(base.with_name("best.json"), mine.model_dump_json(indent=1))
print(json.dumps({"base": {k: card.metrics[k] for k in mine.metrics}, "best": mine.metrics}, indent=1))
