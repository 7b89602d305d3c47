#!/usr/bin/env bash
# Make .venv from requirements/dev.txt and install the project into it, unless that is done. The marks in .venv are written last: what was interrupted is done again.
set -euo pipefail
cd "$(dirname "$0")/.."

python=
for p in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
  # the interpreter behind a virtual environment, as .venv itself may be active
  python=$("$p" -c 'import sys; (3, 11) <= sys.version_info < (3, 14) and print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null) && [ -n "$python" ] && break
done
if [ -z "$python" ]; then
  echo "Python 3.11, 3.12 or 3.13 is needed; ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>/dev/null || echo missing). Choose one with: make PYTHON=/path/to/python3.12" >&2
  exit 1
fi

marked() { [ "$(cat ".venv/$1" 2>/dev/null)" = "$2" ]; }
quiet=; [ -t 1 ] || quiet=--quiet
pip() { .venv/bin/python -m pip --disable-pip-version-check $quiet install "$@"; }

lock=$({ pwd; "$python" --version; cat requirements/dev.txt; } | cksum)
if ! marked lock "$lock"; then
  echo "Setting up .venv with $("$python" --version); this takes a few minutes" >&2
  rm -rf .venv
  "$python" -m venv .venv
  pip --require-hashes -r requirements/dev.txt
  echo "$lock" > .venv/lock
fi

project=$(cat settings.ini setup.py pyproject.toml | cksum)
if ! marked project "$project"; then
  pip --no-deps --no-build-isolation -e .
  echo "$project" > .venv/project
fi
