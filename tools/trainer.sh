#!/usr/bin/env bash
# The background trainer: on FOLDER..., off, status, update FOLDER...
# It runs from the wheel of a commit in an environment of its own. That, its runs and its log are in AGRI_CAE_HOME/trainer.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
home=$("$bin/python" -c 'from agri_cae.config import home; print(home())')/trainer
mkdir -p "$home"
# TensorFlow takes oneDNN by itself where the processor gains by it
export TF_CPP_MIN_LOG_LEVEL=3 KERAS_BACKEND=${KERAS_BACKEND:-tensorflow} PYTHONUTF8=1 TQDM_DISABLE=1
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1 ORT_DISABLE_TELEMETRY=1

# Linux shares the processor out among sessions before it looks at the priorities of their processes
last='{ echo 19 > /proc/self/autogroup; } 2>/dev/null; exec "$@"'

alive() { # the process whose number is in the file, if it is the trainer
  pid=$(cat "$home/pid" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null &&
    ps -o args= -p "$pid" | grep -q 'agri_cae.*trainer work'   # in whichever module of a copy it is
}

snapshot() { # the commit that is checked out, as a wheel in an environment of its own
  local work commit; work=$(mktemp -d); commit=$(git rev-parse HEAD)
  [ -z "$(git status --porcelain)" ] || echo "What is not committed stays out of the trainer's copy" >&2
  git archive "$commit" | tar -x -C "$work"
  (cd "$work" && "$bin/python" -m build --wheel --no-isolation --outdir dist . >build.log 2>&1) ||
    { tail "$work/build.log" >&2; return 1; }
  "$bin/uv" venv --quiet --clear --python "$bin/python" "$home/env.new"
  "$bin/uv" pip install --quiet --python "$home/env.new" --require-hashes -r "$work/requirements/train.txt"
  "$bin/uv" pip install --quiet --python "$home/env.new" --no-deps "$work"/dist/*.whl
  echo "$commit" > "$home/env.new/commit"
  rm -rf "$work"
}
change() { rm -rf "$home/env"; mv "$home/env.new" "$home/env"; }

run=(env -u PYTHONPATH AGRI_CAE_HOME="${home%/trainer}" "$home/env/bin/python" -P)   # nothing of this clone
queue() { "${run[@]}" -c 'from importlib.resources import files; print(files("agri_cae.pipelines") / "queue.yaml")'; }

on() {
  if alive; then echo "The trainer is at work (process $pid)"
  else
    local help="Name the folders of pictures: make train-on TRAIN='folder folder'" f
    [ $# -gt 0 ] || { echo "$help" >&2; return 2; }
    for f in "$@"; do [ -d "$f" ] || { echo "$f: is no folder. $help" >&2; return 2; }; done
    [ -f "$home/env/commit" ] || { snapshot; change; }
    AGRI_CAE_COMMIT=$(cat "$home/env/commit") setsid nohup nice -n 19 bash -c "$last" - \
      "${run[@]}" -m agri_cae.search.trainer work "$(queue)" "$@" >> "$home/log" 2>&1 < /dev/null &
    echo $! > "$home/pid"
    for _ in $(seq 240); do   # until it has said where it begins
      sleep 1; alive || { echo "The trainer has ended:" >&2; tail -n 5 "$home/log" >&2; return 1; }
      tail -n 3 "$home/log" | grep -qE 'goes on|starts anew|rate falls' && break
    done
    tail -n 3 "$home/log"
  fi
  status
}

off() {
  alive || { echo "The trainer is not at work"; return; }
  kill -TERM "$pid"; echo "Waiting for the checkpoint"
  for _ in $(seq 900); do alive || { tail -n 1 "$home/log"; return; }; sleep 1; done
  echo "It has not ended in 15 minutes; see $home/log" >&2; return 1
}

status() {
  [ -f "$home/env/commit" ] || { echo "There is no trainer yet: make train-on"; return; }
  local where; where="commit $(cut -c1-12 "$home/env/commit"), $home"
  if alive; then echo "at work (process $pid), $where"; else echo "not at work, $where"; fi
  "${run[@]}" -m agri_cae.search.trainer status "$(queue)"
}

update() { # a new copy of the code; the trainer changes over at its next checkpoint
  local was=0; alive && was=1
  snapshot; off; change
  if [ $was = 1 ]; then on "$@"; else status; fi
}

"$@"
