#!/usr/bin/env python3
"""Make the shipped `best` anew when `base` has changed: the same weights, with the mean over four mirrored copies of each picture. Its card gets the scores of that on the
validation pictures of base's training.
  tools/best.py PHOTOS     the folder that base was trained on"""
import json, shutil, sys

import numpy as np

from agri_cae.check import write_text
from agri_cae.config import DataConfig, NoiseConfig, read_card, weights_path
from agri_cae.data import load_arrays, open_dataset, split_by_source
from agri_cae.engines import load_engine
from agri_cae.fit import psnr, validation_sets

COPIES = 4
base, card = weights_path("base"), read_card("base")
data = open_dataset(DataConfig(folder=sys.argv[1], val_fraction=card.train["val_fraction"]))
if data.digest != card.data["digest"]: raise SystemExit(f"{sys.argv[1]} is not what base was trained on (the digest differs)")
arrays = load_arrays(split_by_source(data, card.train["val_fraction"], card.train["seed"])[1])
noise = NoiseConfig(**{k: card.train[k] for k in NoiseConfig.model_fields if k in card.train})
engine = load_engine(base, ensemble=COPIES)[0]
scores = {f"val_psnr_{k}": round(psnr(clean, np.concatenate([engine(x[None]) for x in noisy])), 6) for k, (noisy, clean) in validation_sets(arrays, noise).items()}
shutil.copyfile(base, base.with_name("best.onnx"))
mine = card.model_copy(update=dict(name="best", ensemble=COPIES, sha256={"best.onnx": card.sha256[base.name]}, metrics=scores | {"val_psnr": round(float(np.mean([*scores.values()])), 6)}))
write_text(base.with_name("best.json"), mine.model_dump_json(indent=1))
print(json.dumps({"base": {k: card.metrics[k] for k in mine.metrics}, "best": mine.metrics}, indent=1))
