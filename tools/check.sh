#!/usr/bin/env bash
# All checks of the project. Goes through all of them, then fails when one did.
set -uo pipefail
cd "$(dirname "$0")/.."
# linear algebra in one thread, as in the command and the service: two workers with two threads each wait for each other
export PATH="$PWD/.venv/bin:$PATH" TQDM_DISABLE=1 OPENBLAS_NUM_THREADS=1 AGRI_CAE_HOME
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
AGRI_CAE_HOME=$work/home
exec </dev/null

failed=()
check() { # name, what to do when it fails, command...
  local name=$1 hint=$2 start=$SECONDS; shift 2
  printf '\n== %s\n' "$name"
  if "$@"; then printf -- '-- passed in %d s\n' $((SECONDS-start)); else printf -- '-- FAILED: %s. %s\n' "$name" "$hint"; failed+=("$name"); fi
}
copy() { mkdir -p "$work/$1" && cp -R settings.ini pyproject.toml nbs agri_cae "$work/$1"; }

cleaned() { copy clean && find "$work/clean/nbs" -name "*.ipynb" -print0 | xargs -0 python tools/clean.py && diff -r -q nbs "$work/clean/nbs"; }
exported() {
  copy export && find "$work/export/agri_cae" -name '*.py' ! -path '*/agri_cae/__init__.py' -delete &&
    (cd "$work/export" && nbdev_export) && diff -r -x __pycache__ agri_cae "$work/export/agri_cae"
}
readme() { python tools/readme.py "$work/readme" && diff README.md "$work/readme/README.md" && same_pictures; }
same_pictures() { local f; for f in "$work"/readme/nbs/images/*; do [ ! -f "$f" ] || cmp "$f" "nbs/images/${f##*/}" || return; done; }
site() {
  python tools/docs.py || return
  local want have; want=$(find nbs -name '*.ipynb' ! -path '*/.*' | wc -l); have=$(find _docs -name '*.html' | wc -l)
  [ "$want" -eq "$have" ] || { echo "$want notebooks, but $have pages"; return 1; }
}

check "ruff finds nothing" "Run: .venv/bin/ruff check --fix" ruff check --quiet
check "notebooks are clean" "Run: make prepare, or tools/clean.py" cleaned
check "saved outputs are free of machine paths, warnings and progress bars" "Mend the cell and run it again: make prepare NB=..." python tools/outputs.py
check "the package is what the notebooks export" "Edit the notebooks, not agri_cae/, and run nbdev_export" exported
check "README.md is what nbs/index.ipynb says" "Run: make readme" readme
check "the documentation site builds" "Look at the message above" site
check "the notebooks run" "Run the failing one in make lab" nbdev_test --n_workers 2 --do_print
check "the tests pass" "Run one with: .venv/bin/pytest -k NAME" pytest -q -n 2 --dist loadfile --no-loadscope-reorder

printf '\n'
if [ ${#failed[@]} -gt 0 ]; then printf 'FAILED: %s\n' "${failed[@]}"; exit 1; fi
echo "All checks passed in $SECONDS s"
