"""Clean notebooks: what nbdev_clean takes out, and pieces of one stream joined, which a kernel splits at random.

clean.py NOTEBOOK... rewrites files; without names it is git's filter for what is staged (`make hooks`).
"""

import sys
from pathlib import Path

from execnb.nbio import loads, nb2str
from nbdev.clean import _nbdev_clean  # nbdev_clean --stdin of nbdev 2.4.14 writes nothing


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
        if cell.get("outputs"): cell["outputs"] = joined(cell["outputs"])
    return nb2str(nb)


if sys.argv[1:]:
    for path in map(Path, sys.argv[1:]): path.write_text(cleaned(path.read_text("utf-8")), "utf-8", newline="\n")
else:
    for stream in (sys.stdin, sys.stdout): stream.reconfigure(encoding="utf-8", newline="\n")
    sys.stdout.write(cleaned(sys.stdin.read()))
