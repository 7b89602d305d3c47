#!/usr/bin/env bash
# Build wheel and source distribution into dist/, install each into a clean environment, and let it denoise a picture there.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD work=$(mktemp -d); trap 'rm -rf "$work" build' EXIT
rm -rf build dist
.venv/bin/python -m build --no-isolation --outdir dist
for file in dist/*.whl dist/*.tar.gz; do
  env=$work/${file##*.}
  "$(.venv/bin/python -c 'import sys; print(sys._base_executable)')" -m venv "$env"
  "$env/bin/pip" --quiet --disable-pip-version-check install "$file"
  (cd "$work" && "$env/bin/agri-cae" --version && "$env/bin/agri-cae" denoise "$root/agri_cae/samples/flower.jpg" "$work/clean.${file##*.}.jpg")
  echo "$file works in a clean environment"
done
