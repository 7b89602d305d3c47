#!/usr/bin/env bash
# Export the package, run the notebooks (all, or those named) from top to bottom and keep their outputs, clean them, and write the README.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
export PATH="$PWD/.venv/bin:$PATH" TQDM_DISABLE=1 AGRI_CAE_HOME=$work/home IPYTHONDIR=$work/ipython
# what TensorFlow's C++ code writes to stderr belongs in no notebook
mkdir -p "$IPYTHONDIR/profile_default"
echo 'c.IPKernelApp.capture_fd_output = False' > "$IPYTHONDIR/profile_default/ipython_kernel_config.py"

nbdev_export
[ $# -gt 0 ] || set -- nbs/[0-9]*.ipynb nbs/*/[0-9]*.ipynb nbs/pipelines/*.ipynb nbs/tutorials/*.ipynb nbs/index.ipynb
for nb in "$@"; do
  [ -f "$nb" ] || continue
  echo "Running $nb"
  run=$nb
  case $nb in nbs/pipelines/*) run=$work/${nb##*/}; cp "$nb" "$run";; esac   # these write into the folder they run in
  jupyter nbconvert --log-level ERROR --to notebook --execute --inplace "$run"
  [ "$run" = "$nb" ] || cp "$run" "$nb"
done
find nbs -name "*.ipynb" ! -path "*/.*" -print0 | xargs -0 python tools/clean.py
python tools/readme.py
