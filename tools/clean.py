"""Clean notebooks: what nbdev_clean takes out; pieces of one stream joined, which a kernel splits at random; large
pictures as JPEG, since every clone fetches them.

clean.py NOTEBOOK... rewrites files; without names it is git's filter for what is staged (`make hooks`).
"""

import base64
import io
import sys
from pathlib import Path

from execnb.nbio import loads, nb2str
from nbdev.clean import _nbdev_clean  # nbdev_clean --stdin of nbdev 2.4.14 writes nothing
from PIL import Image

LARGE = 100_000  # bytes of a PNG


def small(data):
    "Pictures by type: a large PNG becomes a JPEG that shows no difference"
    png = base64.b64decode("".join(data.get("image/png", "")))
    if len(png) <= LARGE: return
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(out, "JPEG", quality=92)
    del data["image/png"]
    data["image/jpeg"] = base64.b64encode(out.getvalue()).decode()


def joined(outputs):
    "Neighbouring pieces of the same stream become one"
    out = []
    for o in outputs:
        if out and o.get("output_type") == out[-1].get("output_type") == "stream" and o["name"] == out[-1]["name"]:
            out[-1]["text"] = ["".join([*out[-1]["text"], *o["text"]])]
        else: out.append(o)
    for o in out:
        if o.get("output_type") == "stream": o["text"] = "".join(o["text"]).splitlines(keepends=True)
    return out


def cleaned(text):
    nb = loads(text)
    _nbdev_clean(nb)
    for cell in nb["cells"]:
        if not cell.get("outputs"): continue
        cell["outputs"] = joined(cell["outputs"])
        for o in cell["outputs"]: small(o.get("data", {}))
    return nb2str(nb)


if sys.argv[1:]:
    for path in map(Path, sys.argv[1:]): path.write_text(cleaned(path.read_text("utf-8")), "utf-8", newline="\n")
else:
    for stream in (sys.stdin, sys.stdout): stream.reconfigure(encoding="utf-8", newline="\n")
    sys.stdout.write(cleaned(sys.stdin.read()))
