#!/usr/bin/env python3
"""How well the noise of pictures is found, and what automatic strength gains by it.

  tools/noise.py errors CLEAN...    estimate against true sigma: white noise, files of several kinds
  tools/noise.py gains CLEAN...     PSNR gained by auto and by strength 1 on the same files; sigma 0 is the clean file
  tools/noise.py pairs FOLDER...    the same on real pairs NAME_noisy.png, NAME_clean.png
  tools/noise.py cost               time of the estimate beside that of the network, 12 megapixels

--model fast   --every 1 (take every so many pictures)   --forms png,j75,j90,...   --sigmas 0,5,...   --threads 2
Forms: png, jQ (JPEG 4:2:0 of quality Q), fQ (JPEG 4:4:4), pQ (PNG made from JPEG, cropped), wQ (WebP)"""

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from agri_cae.io.images import find_images, from_float, read_image, to_float
from agri_cae.measures.metrics import psnr
from agri_cae.noise.awgn import awgn
from agri_cae.noise.level import estimate_noise
from agri_cae.serve import Denoiser, auto_strength

FORMS, SIGMAS = "png,j75,j90,j98,f90,p75,p90,w75,w90", "0,5,10,15,25"
CROP = np.s_[2:, 3:]   # a PNG made from JPEG is cropped, so that its blocks begin anywhere


def file_of(x, format, **how):
    "A picture as bytes"
    f = io.BytesIO()
    Image.fromarray(x).save(f, format, **how)
    return f.getvalue()


def stored(x, form):
    "The picture of (H, W, 3) uint8 as it comes back from a file"
    kind, quality = form[0], int(form[1:]) if form[1:].isdigit() else 0
    if form == "png": return read_image(file_of(x, "PNG", compress_level=1))
    if kind == "w": return read_image(file_of(x, "WEBP", quality=quality, method=2))
    jpeg = read_image(file_of(x, "JPEG", quality=quality, subsampling=0 if kind == "f" else 2))
    if kind != "p": return jpeg
    return read_image(file_of(np.ascontiguousarray(jpeg.data[CROP]), "PNG", compress_level=1))


def noisy_files(args):
    "(form, sigma, picture as stored, clean (H, W, 3) uint8) for every clean picture of the folders"
    clean = [f for folder in args.folders for f in find_images(folder)][:: args.every]
    for i, f in enumerate(clean):
        a = read_image(f).data
        for sigma in args.sigmas:
            x = from_float(awgn(to_float(a), sigma, i), np.uint8) if sigma else a
            for form in args.forms:
                p = stored(x, form)
                yield form, sigma, p, a[CROP] if form[0] == "p" and form != "png" else a


def share(before, full, clean, strength):
    "PSNR gained with a share of the network's answer, decibels"
    y = np.clip(np.rint(before + strength * (full.astype(np.float32) - before)), 0, 255)
    if np.array_equal(before, clean): return 0. if np.array_equal(y, before) else -np.inf
    return psnr(to_float(y.astype(np.uint8)), to_float(clean)) - psnr(to_float(before), to_float(clean))


def tried(denoiser, picture, clean):
    "`NoiseLevel`, strength, and gain of auto and of strength 1"
    noise = estimate_noise(picture.data, picture.blocks)
    x, strength = picture.data, auto_strength(noise.sigma, noise.floor)
    full = denoiser(x)
    return noise, strength, share(x, full, clean, strength), share(x, full, clean, 1)


def errors(args):
    rows = {}
    for form, sigma, p, _ in noisy_files(args):
        rows.setdefault((form, sigma), []).append(estimate_noise(p.data, p.blocks))
    print("form   sigma  median  median error  90 %  largest  certain  kinds")
    for (form, sigma), found in sorted(rows.items()):
        s, kinds = np.array([n.sigma for n in found]), [n.kind for n in found]
        off = np.abs(s / sigma - 1) if sigma else s
        unit = (lambda v: f"{v:.1%}") if sigma else (lambda v: f"{v:.2f}")
        middle, most, largest = (unit(v) for v in (np.median(off), np.percentile(off, 90), off.max()))
        certain = np.mean([n.certain for n in found])
        counts = " ".join(f"{k} {kinds.count(k)}" for k in sorted(set(kinds)))
        print(f"{form:5}  {sigma:5g}  {np.median(s):6.2f}  {middle:>12}  {most:>6}  {largest:>7}  {certain:7.0%}"
              f"  {counts}")


def gains(args):
    denoiser, rows = Denoiser.load(args.model, threads=args.threads), {}
    for form, sigma, p, clean in noisy_files(args):
        rows.setdefault((form, sigma), []).append(tried(denoiser, p, clean)[1:])
    print("form   sigma  pictures | auto: strength  median   worst  lose > 0.1 dB | strength 1: median   worst")
    for (form, sigma), found in sorted(rows.items()):
        t, auto, full = np.array(found).T
        print(f"{form:5}  {sigma:5g}  {len(t):8} | {np.median(t):14.2f}  {np.median(auto):+6.2f}  {auto.min():+6.2f}"
              f"  {(auto < -.1).sum():13} | {np.median(full):+18.2f}  {full.min():+6.2f}", flush=True)


def pairs(args):
    denoiser, sums = Denoiser.load(args.model, threads=args.threads), []
    print("true   estimate  kind    certain  strength  auto    strength 1 | clean twin: estimate  strength  change, dB")
    for f in [f for folder in args.folders for f in sorted(Path(folder).glob("*_noisy.png"))]:
        noisy, clean = read_image(f), read_image(f.with_name(f.name.replace("_noisy", "_clean")))
        true = float(np.std(noisy.data.astype(np.float32) - clean.data))
        n, t, auto, full = tried(denoiser, noisy, clean.data)
        m = estimate_noise(clean.data, clean.blocks)
        u = auto_strength(m.sigma, m.floor)
        # of a clean picture: what the noise of its noisy twin would lose if the same error were added to it
        moved = u * (denoiser(clean.data).astype(np.float32) - clean.data)
        lost = -10 * np.log10(1 + np.square(moved).mean() / true**2)
        sums.append((auto, full, lost))
        print(f"{true:5.2f}  {n.sigma:8.2f}  {n.kind:6}  {n.certain!s:7}  {t:8.2f}  {auto:+.2f}  {full:+10.2f} |"
              f" {m.sigma:20.2f}  {u:8.2f}  {lost:+.3f}   {f.stem}", flush=True)
    a, f, lost = np.array(sums).T
    print(f"mean gain of auto {a.mean():+.2f}, of strength 1 {f.mean():+.2f}: {a.mean() / f.mean():.0%}; "
          f"worst of auto {a.min():+.2f}; clean twins lose {-lost.min():.3f} at most")


def cost(args):
    "Medians of three, by turns"
    x = np.clip(np.random.default_rng(0).normal(128, 15, (3000, 4000, 3)), 0, 255).astype(np.uint8)
    files = dict(JPEG=stored(x, "j90"), PNG=stored(x, "png"))
    files["PNG from JPEG"] = stored(x, "p90")
    denoiser, took = Denoiser.load(args.model, threads=args.threads), {}
    for _ in range(4):   # the first is not counted
        for name, work in [("network", lambda: denoiser(x))] + [
                (k, lambda p=p: estimate_noise(p.data, p.blocks)) for k, p in files.items()]:
            began = time.perf_counter()
            work()
            took.setdefault(name, []).append(time.perf_counter() - began)
    network = statistics.median(took["network"][1:])
    for name, t in took.items():
        t = statistics.median(t[1:])
        print(f"{name:14} {t:6.3f} s  {t / network:6.1%} of the network's time")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["errors", "gains", "pairs", "cost"])
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--model", default="fast")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", default=FORMS, type=lambda s: s.split(","))
    parser.add_argument("--sigmas", default=SIGMAS, type=lambda s: [float(v) for v in s.split(",")])
    args = parser.parse_args()
    globals()[args.what](args)


if __name__ == "__main__": main()
