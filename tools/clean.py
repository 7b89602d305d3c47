"Clean the notebook on stdin as nbdev_clean does: git's filter for what is staged (`make hooks`)."
# nbdev_clean --stdin of nbdev 2.4.14 writes nothing

import sys

from execnb.nbio import loads, nb2str
from nbdev.clean import _nbdev_clean

for stream in (sys.stdin, sys.stdout):
    stream.reconfigure(encoding="utf-8", newline="\n")
nb = loads(sys.stdin.read())
_nbdev_clean(nb)
sys.stdout.write(nb2str(nb))
