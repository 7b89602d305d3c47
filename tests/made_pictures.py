"Pictures and data sets that tests make: pieces of one photo, pairs, and data sets without files."
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from agri_cae.config import DataConfig
from agri_cae.curation.datasets import DataSet, Item
from agri_cae.io.images import Picture, read_image, sample, write_image

PHOTO = read_image(sample("field_camera")).data
SHARED = Path(__file__).parents[2]/"shared"/"data"


def write(path, a, format="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(Picture(np.ascontiguousarray(a)), path, format, overwrite=True)
    return path


def window(k, side=128):
    "Different parts of the photo"
    y, x = k * 37 % (PHOTO.shape[0] - side), k * 83 % (PHOTO.shape[1] - side)
    return PHOTO[y:y+side, x:x+side]


def write_photos(folder):
    "Six pictures in three folders"
    for k in range(6): write(folder/f"field_{k//2}"/f"IMG_{k}.png", window(k))
    return folder


def write_fields(folder, tag="leaf"):
    "Two folders with the same names, and a table beside them; the last two pictures are tagged `tag`"
    rows = ["file,source,collection,tag"]
    for k in range(12):
        f = f"{'old' if k < 6 else 'new'}/IMG_{k % 6}.png"
        write(folder/f, window(k))
        rows.append(f"{f},photo {k // 2},{'owner/north' if k < 8 else 'owner/south'},{'leaf' if k < 10 else tag}")
    (folder/"MANIFEST.csv").write_text("\n".join(rows))
    return folder


def write_pair(folder, name, k=0, noisy=None, clean=None):
    a = window(k)
    n = np.clip(a + np.random.default_rng(k).normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    return write(folder/(noisy or f"{name}_noisy.png"), n), write(folder/(clean or f"{name}_clean.png"), a)


def cfg(*folders, **kw):
    "Configuration of one folder or several"
    return DataConfig(folder=[str(f) for f in folders] if len(folders) > 1 else str(folders[0]), **kw)


def almost(phash): return f"{int(phash, 16) ^ 0b10101:016x}"


def fake(sizes, prefix="", alike=()):
    "A DataSet of sources with so many pictures each; `alike` lists pairs of sources that share a picture up to 3 bits"
    def digest(*a): return hashlib.sha256(repr((prefix, a)).encode()).hexdigest()
    items = [Item(Path(f"{s}_{k}.png"), f"s{s}", digest(s, k), 100, 100, 3, phash=digest("hash", s, k)[:16])
             for s, n in enumerate(sizes) for k in range(n)]
    for a, b in alike:
        i, j = (next(n for n, it in enumerate(items) if it.source == f"s{s}") for s in (a, b))
        items[j] = replace(items[j], phash=almost(items[i].phash))
    return DataSet(Path("."), tuple(items), "clean")


def join(*parts, alike=()):
    "Data sets of `fake` as folders of one; `alike` lists pairs of indices that share a picture up to 3 bits"
    items = [replace(i, folder=str(k), source=f"{k} {i.source}") for k, p in enumerate(parts) for i in p.items]
    for a, b in alike: items[b] = replace(items[b], phash=almost(items[a].phash))
    return replace(parts[0], items=tuple(items))
