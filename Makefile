# The front door. Every target is a thin line over a command line that `--help` explains, and sets up
# .venv by itself when that is missing or older than the dependency files.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
CONFIG ?=
ARGS   ?=

NPROC  ?= 1
NNODES ?= 1
RDZV   ?=
ifeq ($(NPROC)$(NNODES),11)
LAUNCH := $(PY)
else ifeq ($(NNODES),1)
LAUNCH := $(VENV)/bin/torchrun --standalone --nproc-per-node $(NPROC)
else
$(if $(RDZV),,$(error NNODES=$(NNODES) needs RDZV=host:port, the same on every node))
LAUNCH := $(VENV)/bin/torchrun --nnodes $(NNODES) --nproc-per-node $(NPROC) --rdzv-backend c10d --rdzv-endpoint $(RDZV)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint typecheck format preprocess train-codec-sfx \
        train-codec-music train-sfx train-music generate play weights evaluate ablation preference bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22
	@echo
	@echo 'CONFIG= names the recipe, ARGS="key.sub=value --option" is passed on; under torchrun:'
	@echo 'NPROC= GPUs per node, NNODES= nodes, RDZV=host:port of one of them'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY)  ## install everything into .venv

# CODEC=train makes a codec of its own first instead of the shipped one.
DEMO_DIR  ?= $(if $(filter train,$(CODEC)),runs/demo-own-codec,runs/demo)
DEMO_ARGS := run_dir=$(DEMO_DIR) $(if $(filter train,$(CODEC)),codec.path=$(DEMO_DIR)/codec) $(ARGS)
demo: $(READY)  ## everything, end to end, on the embedded corpus -> runs/demo/report.html [CODEC=train: hours]
	$(PY) -m pipeline corpus --out $(DEMO_DIR)/corpus
	$(if $(filter train,$(CODEC)),$(PY) -m training codec --config configs/demo.yaml $(DEMO_ARGS))
	$(PY) -m pipeline run --config configs/demo.yaml $(DEMO_ARGS)
	$(PY) -m training lm --config configs/demo.yaml $(DEMO_ARGS)
	$(PY) -m training lm --config configs/demo.yaml $(DEMO_ARGS) lm.run=lm-baseline lm.rr.weight=0
	$(PY) -m training report --config configs/demo.yaml $(DEMO_ARGS)

test: $(READY)  ## every test that takes seconds; no GPU, no network
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not heavy" -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(READY)  ## the heavy ones as well
	$(PY) -m pytest $(ARGS)

lint: $(READY)  ## ruff, and which folder may import which
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(VENV)/bin/lint-imports --no-logo

typecheck: $(READY)  ## mypy
	$(PY) -m mypy

format: $(READY)  ## rewrite files in the project's style
	$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

preprocess: $(READY)  ## catalogs to shards on Ray: CONFIG=configs/sfx.yaml
	$(PY) -m pipeline run --config $(or $(CONFIG),configs/sfx.yaml) $(ARGS)

train-codec-sfx: $(READY)  ## EnCodec, 16 kHz: NPROC= NNODES= RDZV=
	$(LAUNCH) -m training codec --config $(or $(CONFIG),configs/sfx.yaml) $(ARGS)

train-codec-music: $(READY)  ## EnCodec, 32 kHz
	$(LAUNCH) -m training codec --config $(or $(CONFIG),configs/music.yaml) $(ARGS)

train-sfx: $(READY)  ## the language model for sound effects: NPROC= NNODES= RDZV=
	$(LAUNCH) -m training lm --config $(or $(CONFIG),configs/sfx.yaml) $(ARGS)

train-music: $(READY)  ## the language model for music
	$(LAUNCH) -m training lm --config $(or $(CONFIG),configs/music.yaml) $(ARGS)

# Through the environment and unexpanded, so that quotes and dollars in a prompt stay what they are.
override PROMPT := $(value PROMPT)
export PROMPT
generate: $(READY)  ## PROMPT="a dog barks" [N=4] [CONFIG=configs/demo.yaml]
	$(PY) -m training generate --config $(or $(CONFIG),configs/demo.yaml) --prompt "$$PROMPT" --n $(or $(N),1) $(ARGS)

play: $(READY)  ## a local page to type prompts and hear clips [CONFIG=...] [ARGS="--run lm-rr --run lm-baseline"]
	$(PY) -m training play --config $(or $(CONFIG),configs/demo.yaml) $(ARGS)

evaluate: $(READY)  ## TARGET=lm-rr REFERENCE=folder-or-shards [CONFIG=...] [ARGS="--against lm-baseline"]
	$(if $(and $(TARGET),$(REFERENCE)),,$(error evaluate measures clips against real ones: TARGET=lm-rr REFERENCE=runs/demo/data))
	$(PY) -m training evaluate $(TARGET) --reference $(REFERENCE) --config $(or $(CONFIG),configs/demo.yaml) $(ARGS)

# small and esc10 make what they stand on first; the others take the shards of `make preprocess`.
PROFILE  ?= small
ABLATION := runs/ablation-$(PROFILE)
ablation: $(READY)  ## Tables 1 to 3 of your own runs: PROFILE=small, esc10, paper or music
	$(if $(CONFIG),$(error a profile of configs/ablation.yaml names the recipe: add one for $(CONFIG) there, then PROFILE=its-name))
ifeq ($(PROFILE),small)
	$(PY) -m pipeline corpus --out $(ABLATION)/corpus
	$(PY) -m pipeline run --config configs/demo.yaml run_dir=$(ABLATION)
else ifeq ($(PROFILE),esc10)
	$(PY) -m pipeline run --config configs/esc10.yaml run_dir=$(ABLATION) codec.path=builtin:sfx-small
endif
	$(PY) -m training ablate --profile $(PROFILE) $(ARGS)

# A study that is there is served; nothing overwrites it. Recipes have runs of the same names.
STUDY ?= runs/preference/$(basename $(notdir $(or $(CONFIG),configs/demo.yaml)))-$(notdir $(A:%/=%))-or-$(notdir $(B:%/=%))
preference: $(READY)  ## A=lm-rr B=lm-baseline [CONFIG=...] [STUDY=...]: a blind study, prepared if needed, served
	$(if $(and $(A),$(B)),,$(error preference compares two runs or folders of clips: A=lm-rr B=lm-baseline))
	if test -e $(STUDY)/study.json; then $(PY) -m training preference links $(STUDY); else \
	$(PY) -m training preference prepare --a $(A) --b $(B) --out $(STUDY) --config $(or $(CONFIG),configs/demo.yaml) $(ARGS); fi
	$(PY) -m training preference serve $(STUDY)

weights: $(READY)  ## fetch VGGish, PaSST and CLAP for the metrics (about 1.6 GB)
	$(PY) -m training weights $(ARGS)

bench: $(READY)  ## speed, as ratios against peers: NAME=plan for one
	$(PY) -m benchmarks $(NAME)

clean:  ## remove caches; runs/ stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
