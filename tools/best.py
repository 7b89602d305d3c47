#!/usr/bin/env python3
"""Make the shipped `best` anew when `base` has changed: the same weights, averaged over four mirrored copies.

Its card gets the scores of that on the validation pictures of base's training.
  tools/best.py PHOTOS...     the folders that base was trained on"""
import json
import shutil
import sys

import numpy as np

from agri_cae.config import DataConfig, NoiseConfig
from agri_cae.curation.splits import split
from agri_cae.data import load_arrays, open_dataset
from agri_cae.engines.runtimes import load_engine
from agri_cae.fitting.validation import mean_scores, validation_sets
from agri_cae.io.files import write_text
from agri_cae.measures.metrics import psnr
from agri_cae.modelfiles.card import read_card, weights_path

COPIES = 4


def trained_with(card, config, **changed):
    "A configuration of a card's training"
    return config(**{k: card.train[k] for k in config.model_fields if k in card.train} | changed)


def held_back(card, folders):
    "name -> validation arrays of the training; the folders must be those of the card"
    cfg = trained_with(card, DataConfig, folder=tuple(folders))
    data = open_dataset(cfg)
    if data.digest != card.data["digest"]:
        raise SystemExit(f"{' '.join(folders)}: not what base was trained on (the digest differs)")
    parts = split(data, cfg)
    return {"": load_arrays(parts.val)} | ({"out_": load_arrays(parts.out)} if parts.out else {})


def scores_of(weights, arrays, noise):
    "Validation PSNR of the weights with mirrored copies, and its means"
    engine = load_engine(weights, ensemble=COPIES)[0]
    scores = {}
    for name, (noisy, clean) in validation_sets(arrays, noise).items():
        restored = np.concatenate([engine(x[None]) for x in noisy])
        scores[f"val_psnr_{name}"] = round(psnr(clean, restored), 6)
    return scores | {k: round(v, 6) for k, v in mean_scores(scores).items()}


def main(folders):
    base, card = weights_path("base"), read_card("base")
    scores = scores_of(base, held_back(card, folders), trained_with(card, NoiseConfig))
    shutil.copyfile(base, base.with_name("best.onnx"))
    sha256 = {"best.onnx": card.sha256[base.name]}
    best = card.model_copy(update=dict(name="best", ensemble=COPIES, sha256=sha256, metrics=scores))
    write_text(base.with_name("best.json"), best.model_dump_json(indent=1))
    print(json.dumps({"base": {k: card.metrics[k] for k in best.metrics}, "best": best.metrics}, indent=1))


if __name__ == "__main__": main(sys.argv[1:])
