"""Seconds and money for a million megapixels, from the measured times in nbs/results/bench.json and the list prices in prices.yaml: `python deploy/cost.py` writes cost.md."""
import json
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent / "nbs" / "results" / "bench.json"
SIZES = ((1, 1), (2, 2), (4, 4), (8, 8))   # vCPU, GiB
PICTURE = 20                               # megapixels of a drone's picture
MONTH = 30 * 24 * 3600


def seconds_per_mp(
    bench:dict, # as in bench.json
    model:str,
)->float:       # of the picture nearest to a drone's, 8 bits deep, with the threads of the bench
    rows = [r for r in bench["scaling"] if r["model"] == model and r["dtype"] == "uint8"]
    row = min(rows, key=lambda r: abs(r["megapixels"] - PICTURE))
    return row["seconds"] / row["megapixels"]

def rate(
    prices:dict, # vcpu_second and gib_second
    vcpu:float, gib:float,
)->float:        # dollars a second
    return vcpu * prices["vcpu_second"] + gib * prices["gib_second"]

def rows(bench, prices):
    "model, vCPU, GiB, seconds a million megapixels, dollars request-based and instance-based"
    for model in dict.fromkeys(r["model"] for r in bench["scaling"]):
        for vcpu, gib in SIZES:
            s = seconds_per_mp(bench, model) * 1e6 * bench["threads"] / vcpu
            requests = prices["request_based"]["million_requests"] / PICTURE   # a million megapixels are 1e6 / PICTURE requests
            yield model, vcpu, gib, s, s * rate(prices["request_based"], vcpu, gib) + requests, s * rate(prices["instance_based"], vcpu, gib)

def idle(prices): return {f"{v} vCPU, {g} GiB": MONTH * rate(prices["idle"], v, g) for v, g in SIZES[:3]}

def note(bench, prices):
    "The page, as Markdown"
    table = "\n".join(f"| {m} | {v} | {g} | {s:,.0f} | {s / 3600:.0f} | {a:.2f} | {b:.2f} |" for m, v, g, s, a, b in rows(bench, prices))
    return f"""<!-- Written by `make cost` from nbs/results/bench.json and deploy/prices.yaml. -->

# What it costs

Seconds and US dollars for a million megapixels, which are {1e6 / PICTURE:,.0f} pictures of {PICTURE} megapixels.

| model | vCPU | GiB | seconds | hours | $ request-based | $ instance-based |
| --- | --- | --- | --- | --- | --- | --- |
{table}

An instance that waits (`minScale: "1"`, request-based) costs {", ".join(f"{d:.0f} $ ({size})" for size, d in idle(prices).items())} in a month of 30 days.
A retraining of two hours (8 vCPU, 16 GiB) costs {7200 * rate(prices["instance_based"], 8, 16):.2f} $.

## How it is reckoned

- **Measured:** the time of a whole picture of about 17 megapixels, 8 bits deep, by `make bench`: {bench["threads"]} threads on {bench["machine"]}, ONNX Runtime, float32
  ({"; ".join(f"{m} {seconds_per_mp(bench, m):.3f} s a megapixel" for m in dict.fromkeys(r["model"] for r in bench["scaling"]))}).
- **Assumed:** a vCPU is worth one thread of that machine, time falls as 1 / vCPU, and the instances are never without work. Cloud Run's processors differ, a vCPU is often half a core, and eight threads do not bring
  eight times as much: measure before you plan. Reading and writing JPEG and the way of the request add to it.
- **Known, not looked up:** list prices of {prices["source"]} as of {prices["known"]}, written down on {prices["written"]}, regions of tier 1, without free tier, discounts, storage and traffic out of Google's network. `deploy/prices.yaml`
  holds them: correct them there and run `make cost`.
"""


if __name__ == "__main__": (HERE / "cost.md").write_text(note(json.loads(BENCH.read_text()), yaml.safe_load((HERE / "prices.yaml").read_text())))
