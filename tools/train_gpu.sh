#!/usr/bin/env bash
# Train the models one after the other on a machine with Python and JAX or PyTorch; TensorFlow, MLflow and a network are not needed.
#   tools/train_gpu.sh packages             what it imports; for a machine without a network: pip download --no-deps -d WHEELS $(tools/train_gpu.sh packages)
#   tools/train_gpu.sh PHOTOS OUT [WHEELS]  installs what is missing from the wheels into RUNS, trains, and leaves NAME.keras, .onnx and .json in OUT.
#                                           Started again after being cut off, it goes on at the last epoch.
# In the environment: MODELS="fast base large restore"; MINUTES=10 for each; INIT, a folder with NAME.onnx or NAME.keras and the card to start from;
# KERAS_BACKEND=jax or torch; RUNS=runs/gpu for checkpoints; SET="batch=32 lr=0.0005" for further settings; PYTHON.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3} runs=${RUNS:-runs/gpu}

need="absl:absl-py annotated_doc:annotated-doc annotated_types:annotated-types click:click contourpy:contourpy cv2:opencv-python-headless cycler:cycler
  dateutil:python-dateutil dotenv:python-dotenv fontTools:fonttools google.protobuf:protobuf h5py:h5py imagehash:imagehash keras:keras kiwisolver:kiwisolver
  lazy_loader:lazy-loader markdown_it:markdown-it-py matplotlib:matplotlib mdurl:mdurl ml_dtypes:ml-dtypes namex:namex numpy:numpy onnx:onnx optree:optree packaging:packaging
  PIL:pillow pydantic:pydantic pydantic_core:pydantic-core pydantic_settings:pydantic-settings pygments:pygments pyparsing:pyparsing pywt:pywavelets rich:rich
  scipy:scipy shellingham:shellingham simplejpeg:simplejpeg six:six skimage:scikit-image tqdm:tqdm typer:typer typing_extensions:typing-extensions
  typing_inspection:typing-inspection yaml:pyyaml"
if [ "${1:-}" = packages ]; then for p in $need; do grep -m1 -o "^${p#*:}==[^ ;]*" "$repo/requirements/dev.txt"; done; exit; fi
[ $# -ge 2 ] || { sed -n '2,7s/^# *//p' "$0"; exit 2; }
photos=$1 out=$2 wheels=${3:-}

mkdir -p "$out" "$runs"; runs=$(cd "$runs" && pwd)
export PYTHONPATH=$repo:$runs/site PYTHONUTF8=1 MPLBACKEND=Agg
missing=$("$python" - $need <<'PY'
import importlib.util, sys
def there(m):
    try: return importlib.util.find_spec(m)
    except ModuleNotFoundError: return None
print(*(p for m, p in (a.split(":") for a in sys.argv[1:]) if not there(m)))
PY
)
if [ -n "$missing" ]; then
  [ -n "$wheels" ] || { echo "These packages are missing: $missing. Give a folder with their wheels" >&2; exit 2; }
  "$python" -m pip install -q --no-index --no-deps --find-links "$wheels" --target "$runs/site" $missing
fi
[ -n "${KERAS_BACKEND:-}" ] || KERAS_BACKEND=$("$python" -c "import importlib.util as u; print('jax' if u.find_spec('jax') else 'torch')")
# compiled steps are kept for the next start; memory is taken as it is needed
export KERAS_BACKEND JAX_COMPILATION_CACHE_DIR=$runs/jax XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=3
echo "Training on $KERAS_BACKEND"

for name in ${MODELS:-fast base large restore}; do
  [ ! -f "$out/$name.json" ] || { echo "$name is done"; continue; }
  settings=(name="$name" preset="${name/restore/base}" recipe=general minutes="${MINUTES:-10}" folder="$photos" workers="$(getconf _NPROCESSORS_ONLN)")
  [ "$name" != restore ] || settings+=(recipe=restore)
  for f in ${INIT:+"$INIT/$name.keras" "$INIT/$name.onnx"}; do [ ! -f "$f" ] || settings+=(init_from="$f"); done
  settings+=(${SET:-})
  "$python" -c "from agri_cae.cli.main import main; main()" train --config "$repo/nbs/pipelines/gpu.yaml" --no-track --out "$runs/$name" "${settings[@]/#/--set=}"
  for f in "$runs/$name/$name".{keras,onnx,json}; do   # the card comes last: with it the model is done
    if [ "$(wc -c < "$f")" -le 16777216 ]; then cp "$f" "$out/.part" && mv "$out/.part" "$out/${f##*/}"; else echo "${f##*/} is larger than 16 MiB and stays in $runs/$name"; fi
  done
done
