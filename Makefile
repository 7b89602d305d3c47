# Everything that is done here. `make` lists the targets; each sets up what it needs in .venv by itself.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lab prepare docs readme bench gallery ablation sweep train-on train-off train-status train-update wheel dist image sbom cost lock hooks clean

BIN  := .venv/bin/
# pictures of bench: clean ones, clean ones from other sources, real pairs, and folders of training pictures to tune the classical methods on; what is not there is left out
DATA  ?= ../shared/data/test
WILD  ?= ../shared/data/wild
PAIRS ?= ../shared/data/real_pairs
TRAIN ?= ../shared/data/train ../shared/data/train_more
BENCH ?=
# the textbook autoencoder, to compare with; its weights are not in the package
CLASSIC = $(addprefix --models classic=,$(wildcard nbs/results/classic.onnx))
# and those of ablation, its time, and mixed_bfloat16 where the processor computes with it
PHOTOS ?=
MINUTES ?= 300
PRECISION ?= float32

# TensorFlow says nothing but errors; the notebooks run on it unless another backend is asked for
export TF_CPP_MIN_LOG_LEVEL ?= 3
export KERAS_BACKEND ?= tensorflow
export PYTHONUTF8 := 1

help: ## List the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 18
	@echo '  Choose the Python with PYTHON=python3.12, the pictures of bench with DATA=folder WILD=folder PAIRS=folder,'
	@echo '  folders of training pictures with TRAIN="folder folder",'
	@echo '  those of ablation, and its time, with PHOTOS=folder MINUTES=300 PRECISION=mixed_bfloat16'

setup: ## Make .venv from requirements/dev.txt, if it is not up to date
	@tools/setup.sh

demo: setup ## Denoise the samples and train a little: writes demo/
	@$(BIN)agri-cae demo

test: setup ## All checks, the same that .ci/run runs
	@tools/check.sh

lab: setup ## JupyterLab on the notebooks
	$(BIN)jupyter lab nbs

prepare: setup ## Export, run every notebook and keep its outputs, clean, README (NB=nbs/02_model.ipynb for one)
	@tools/prepare.sh $(NB)

docs: setup ## The documentation site, in _docs/
	@$(BIN)python tools/docs.py

readme: setup ## README.md from nbs/index.ipynb
	@$(BIN)python tools/readme.py

bench: setup ## Measure the models on the pictures in DATA, WILD and PAIRS: writes nbs/results/ (BENCH="--every 6" for a rehearsal)
	$(BIN)python -c 'from agri_cae.benchmark.report import bench_main; bench_main()' --data "$(DATA)" --wild "$(WILD)" --pairs "$(PAIRS)" $(foreach t,$(TRAIN),--train "$(t)") $(CLASSIC) $(BENCH)
	@$(BIN)python deploy/cost.py

gallery: setup ## Measure the gallery on the pictures in DATA: writes nbs/results/gallery/
	@DATA="$(abspath $(DATA))" tools/prepare.sh nbs/tutorials/gallery.ipynb

ablation: setup ## Measure which choices of training matter: writes nbs/results/ and nbs/tutorials/ablation.ipynb
	@mkdir -p runs
	$(BIN)papermill nbs/tutorials/ablation.ipynb runs/ablation.ipynb -p folder "$(abspath $(PHOTOS))" -p minutes $(MINUTES) -p precision $(PRECISION) --cwd nbs/tutorials
	@tools/prepare.sh nbs/tutorials/ablation.ipynb

sweep: setup ## Six small trainings on the samples, side by side: a leaderboard and a challenger, in AGRI_CAE_HOME
	@$(BIN)agri-cae sweep nbs/pipelines/sweep.yaml --workers 2

train-on: setup ## Train in the background on the pictures in TRAIN, at the lowest priority; goes on where it stopped
	@tools/trainer.sh on $(TRAIN)

train-off: setup ## End the background training after a checkpoint
	@tools/trainer.sh off

train-status: setup ## Gigapixels, speed, scores and curve of the background training, and what comes next
	@tools/trainer.sh status

train-update: setup ## Let the background training go on with the code of today's commit
	@tools/trainer.sh update $(TRAIN)

wheel: setup ## The wheel, in dist/
	@rm -rf build dist
	@$(BIN)python -m build --wheel --no-isolation --outdir dist
	@rm -rf build

dist: setup ## Wheel and source distribution, in dist/, each tried in a clean environment
	@tools/dist.sh

image: ## Build the container with docker, podman or buildah (TARGET=train: with the training stack; BASE=image, TAG=name, FLAGS=more)
	@tools/image.sh

sbom: setup ## What the service's container installs, as CycloneDX: dist/sbom.json
	@mkdir -p build dist
	@$(BIN)uv venv --quiet --clear --python $(BIN)python build/sbom
	@$(BIN)uv pip install --quiet --python build/sbom --require-hashes -r requirements/serve.txt
	@PYTHONWARNINGS=ignore $(BIN)cyclonedx-py environment build/sbom/bin/python --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.json
	@rm -rf build/sbom

cost: setup ## deploy/cost.md: what the service costs, from nbs/results/bench.json and deploy/prices.yaml
	@$(BIN)python deploy/cost.py

# dev is resolved first; the others start from it and so get the same versions. serve is what the container installs: with GDAL
lock: setup ## Resolve requirements/*.txt anew from settings.ini
	@for o in dev base serve train; do \
	  [ $$o = dev ] || cp requirements/dev.txt requirements/$$o.txt; \
	  $(BIN)uv pip compile setup.py $$([ $$o = base ] || echo --extra $$o) $$([ $$o != serve ] || echo --extra geo) --quiet $$([ $$o != dev ] || echo --upgrade) --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' -o requirements/$$o.txt; \
	done

hooks: setup ## In this clone, let git clean and merge notebooks (see .gitattributes)
	@git config filter.nbdev.clean '.venv/bin/python tools/clean.py'
	@git config merge.nbdev.driver '.venv/bin/nbdev_merge %O %A %B %P'
	@echo 'git now cleans notebooks when they are staged, and merges them by cell'

clean: ## Remove what can be made again
	rm -rf .venv _proc _docs build dist demo *.egg-info .pytest_cache nbs/nbdev.yml nbs/sidebar.yml
