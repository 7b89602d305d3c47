"""What a million megapixels cost: `python deploy/cost.py` writes cost.md.

The times are those measured in nbs/results/bench.json, the list prices those in prices.yaml."""
import json
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent / "nbs" / "results" / "bench.json"
SIZES = ((1, 1), (2, 2), (4, 4), (8, 8))   # vCPU, GiB
PICTURE = 20                               # megapixels of a drone's picture
MONTH = 30 * 24 * 3600                     # seconds
RETRAINING = 2 * 3600, 8, 16               # seconds, vCPU, GiB


def seconds_per_mp(
    bench:dict, # as in bench.json
    model:str,  # whose time
)->float:       # of the picture nearest to a drone's, 8 bits deep, with the threads of the bench
    "Seconds for a megapixel."
    found = [r for r in bench["scaling"] if r["model"] == model and r["dtype"] == "uint8"]
    nearest = min(found, key=lambda r: abs(r["megapixels"] - PICTURE))
    return nearest["seconds"] / nearest["megapixels"]


def rate(
    prices:dict, # vcpu_second and gib_second, dollars
    vcpu:float,  # processors
    gib:float,   # memory
)->float:        # dollars a second
    "What an instance costs."
    return vcpu * prices["vcpu_second"] + gib * prices["gib_second"]


def models(bench): return list(dict.fromkeys(r["model"] for r in bench["scaling"]))


def rows(
    bench:dict,  # as in bench.json
    prices:dict, # as in prices.yaml
):               # yields model, vCPU, GiB, seconds and dollars (request-based, instance-based) of a million megapixels
    "What each model costs on each size of instance."
    requests = prices["request_based"]["million_requests"] / PICTURE   # a million megapixels are 1e6 / PICTURE requests
    for model in models(bench):
        for vcpu, gib in SIZES:
            s = seconds_per_mp(bench, model) * 1e6 * bench["threads"] / vcpu
            by_request = s * rate(prices["request_based"], vcpu, gib) + requests
            yield model, vcpu, gib, s, by_request, s * rate(prices["instance_based"], vcpu, gib)


def idle(
    prices:dict, # as in prices.yaml
)->dict:         # size -> dollars
    "What an instance costs that waits for a month."
    return {f"{v} vCPU, {g} GiB": MONTH * rate(prices["idle"], v, g) for v, g in SIZES[:3]}


def note(
    bench:dict,  # as in bench.json
    prices:dict, # as in prices.yaml
)->str:          # Markdown
    "The page."
    table = "\n".join(f"| {m} | {v} | {g} | {s:,.0f} | {s / 3600:.0f} | {a:.2f} | {b:.2f} |"
                      for m, v, g, s, a, b in rows(bench, prices))
    waiting = ", ".join(f"{dollars:.0f} $ ({size})" for size, dollars in idle(prices).items())
    measured = "; ".join(f"{m} {seconds_per_mp(bench, m):.3f} s a megapixel" for m in models(bench))
    seconds, vcpu, gib = RETRAINING
    retraining = seconds * rate(prices["instance_based"], vcpu, gib)
    return f"""<!-- Written by `make cost` from nbs/results/bench.json and deploy/prices.yaml. -->

# What it costs

Seconds and US dollars for a million megapixels. These are {1e6 / PICTURE:,.0f} pictures of {PICTURE} megapixels.

| model | vCPU | GiB | seconds | hours | $ request-based | $ instance-based |
| --- | --- | --- | --- | --- | --- | --- |
{table}

An instance that waits (`minScale: "1"`, request-based) costs {waiting} in a month of 30 days.
A retraining of two hours ({vcpu} vCPU, {gib} GiB) costs {retraining:.2f} $.

## How it is computed

- **Measured:** the time of a whole 8-bit picture of about 17 megapixels, by `make bench`:
  {bench["threads"]} threads on {bench["machine"]}, ONNX Runtime, float32 ({measured}).
- **Assumed:** a vCPU is worth one thread of that machine, time falls as 1 / vCPU, and the instances always have work.
  Cloud Run's processors differ, a vCPU is often half a core, and eight threads are not eight times as fast.
  So measure before you plan. The time to read and write JPEG and to transfer the request comes on top.
- **From memory, not looked up:** list prices of {prices["source"]} as of {prices["known"]}, written down on
  {prices["written"]}. They are for regions of tier 1, without free tier, discounts, storage and traffic out of
  Google's network. They are in `deploy/prices.yaml`: correct them there and run `make cost`.
"""


if __name__ == "__main__":
    bench, prices = json.loads(BENCH.read_text()), yaml.safe_load((HERE / "prices.yaml").read_text())
    (HERE / "cost.md").write_text(note(bench, prices))
