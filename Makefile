# Every target sets up what it needs first; once that is done it costs nothing.
PY := .venv/bin/python
FASTCOMPOSER := .venv/bin/fastcomposer
WORKERS ?= 2
FAULTS ?= 200
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help setup reproduce demo notebooks images results departures samples completion docs reference card identity backbones test soak lint types format bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: .venv/complete ## Install everything that uv.lock lists into .venv (PYTHON=3.12 chooses the interpreter)

# uv from PATH, else one of .venv's own.
SYNC = if command -v uv >/dev/null; then uv=uv; else uv=.venv/bin/uv; \
	test -x $$uv || { python3 -m venv .venv && $(PY) -m pip install --quiet uv; }; fi; \
	$$uv sync --frozen $(if $(PYTHON),--python $(PYTHON))

.venv/complete: pyproject.toml uv.lock
	@$(SYNC) --all-extras && touch .venv/core $@

# What `make reproduce` needs: neither extras nor tools of development.
.venv/core: pyproject.toml uv.lock
	@$(SYNC) --no-dev --inexact && touch $@

OUT ?= outputs/reproduce
MINI := data/mini
# FastComposer in the tables is the committed checkpoint unless one is given; images and the demo are of the default, FastComposer-ID.
CHECKPOINT ?=
TRAINED = $(or $(CHECKPOINT),$(MINI)/fastcomposer.safetensors)
GIVEN = $(if $(CHECKPOINT),checkpoint='"$(CHECKPOINT)"')
TWIN := $(MINI)/without_localization
PEOPLE := data/avatars/references
MAN := $(PEOPLE)/00_man.png
WOMAN := $(PEOPLE)/01_woman.png
SEED ?= 42
BENCHMARK := $(if $(FULL),mini_full,mini)
# FastComposer and its twin without localization generate all people and pairs; baselines, trained per person, a part of them.
LARGER := $(if $(FULL),mini_full,mini_people)
GENERATE = $(FASTCOMPOSER) generate seed=$(SEED) num_images=4
# Two processes sample faster than one with two threads: the networks of the mini world are small.
PROCESSES ?= 2
# All cases at the sampler's own alpha; the curve over alpha comes with the smaller part (ALPHAS=[0.6,0.8,1.0] samples all of it).
ALPHAS ?= $(if $(FULL),[0.8],[0.6,0.8,1.0])
EVALUATE = $(FASTCOMPOSER) evaluate trainer.devices=$(PROCESSES)
BASELINES := mini_textual_inversion,mini_dreambooth,mini_custom_diffusion

reproduce: .venv/core ## Render the mini world, train three minutes, measure all methods, write tables and a page (FULL=1: all cases; CHECKPOINT=...)
	$(FASTCOMPOSER) prepare data=avatars
	$(FASTCOMPOSER) train experiment=mini resume=restart
	$(FASTCOMPOSER) attention output=$(OUT) 'checkpoints=[outputs/mini,"$(TRAINED)",$(TWIN)]'
	$(EVALUATE) output=$(OUT) benchmark=$(BENCHMARK) checkpoint='"$(TRAINED)"' alphas=$(ALPHAS) save_attention=true
	$(EVALUATE) output=$(OUT) benchmark=$(LARGER) methods=[fastcomposer,fastcomposer_id] checkpoint='"$(TRAINED)"'
	$(EVALUATE) output=$(OUT) benchmark=$(LARGER) methods=[fastcomposer] checkpoint=$(TWIN) labels='{localization: none}' \
		save_attention=true
	$(EVALUATE) output=$(OUT) benchmark=$(BENCHMARK) methods=[$(BASELINES)]
	$(MAKE) --no-print-directory images
	$(FASTCOMPOSER) report results=$(OUT) benchmark=$(LARGER)

demo: setup ## A page in the browser, on http://127.0.0.1:7860 (CHECKPOINT=..., ARGS="server.port=8000")
	$(FASTCOMPOSER) demo $(GIVEN) $(ARGS)

notebooks: setup ## Execute the notebooks into outputs/notebooks (ARGS="01 02" for some of them)
	$(PY) scripts/notebooks.py $(ARGS)

images: .venv/core ## Generate held-out people with FastComposer-ID into outputs/reproduce (OUT=..., CHECKPOINT=...)
	$(GENERATE) $(GIVEN) output=$(OUT) \
		'prompt=a man <|image|> on the beach' 'references=[$(MAN)]'
	$(GENERATE) $(GIVEN) output=$(OUT) \
		'prompt=a woman <|image|> wearing a red hoodie in the jungle' 'references=[$(WOMAN)]'
	$(GENERATE) $(GIVEN) output=$(OUT) \
		'prompt=a man <|image|> and a woman <|image|> in the snow' 'references=[$(MAN),$(WOMAN)]'

results: setup ## Write the results of outputs/reproduce into README.md and docs/benchmarks/results.md (OUT=...)
	$(FASTCOMPOSER) report results=$(OUT) benchmark=$(LARGER) readme=README.md \
		document=docs/benchmarks/results.md

departures: setup ## Measure on outputs/reproduce what the departures from the published code do to scores, into docs/method.md (OUT=...)
	$(PY) scripts/departures.py $(OUT) --document docs/method.md

samples: setup ## Generate the images of the README and of the base's card again, into data/mini/samples
	$(FASTCOMPOSER) prepare data=avatars
	$(PY) scripts/gallery.py $(MINI)/samples/pairs_of_people_in_several_scenes.png
	$(MAKE) --no-print-directory images OUT=outputs/samples
	cp outputs/samples/*_sheet.png $(MINI)/samples/

completion: ## Print how the shell completes commands, choices and keys with the tab key
	@echo 'source $(CURDIR)/scripts/completion.bash'

docs: export NO_MKDOCS_2_WARNING = 1
docs: setup ## Build the site into outputs/site (open outputs/site/index.html)
	$(PY) -m mkdocs build --strict --quiet

reference: setup ## Write docs/reference: a page for every subcommand and configuration group
	$(PY) scripts/reference.py docs/reference

card: card-mini card-mini_dit ## Measure the embedded bases and their checkpoints anew, and write their cards

CARD_OF = model=$* output=outputs/card/$*
CARD_EVALUATE = $(EVALUATE) $(CARD_OF) benchmark=mini_card alphas=[0.6,0.8,1.0]

card-%: setup
	$(FASTCOMPOSER) attention $(CARD_OF) 'checkpoints=[data/$*/fastcomposer.safetensors,data/$*/without_localization]'
	$(CARD_EVALUATE) checkpoint=data/$*/fastcomposer.safetensors
	$(CARD_EVALUATE) methods=[fastcomposer] checkpoint=data/$*/without_localization labels='{localization: none}'
	$(if $(wildcard data/$*/fastcomposer_id),$(CARD_EVALUATE) methods=[fastcomposer_id])
	$(FASTCOMPOSER) card $(CARD_OF) evaluation=outputs/card/$* card=data/$*/README.md

STEPS ?= 8000
ARM_STEPS ?= 600
LONG := multirun/fastcomposer_id
ARMS := multirun/ablation_identity
IDENTITY := $(wildcard docs/benchmarks/identity.md)
SCORE_JOBS = $(EVALUATE) -m sweep=jobs benchmark=mini_card save_attention=true

# Differences are from job 0, the plain continuation. FastComposer-ID is job 1 of the two long trainings.
identity: .venv/core ## Train what goes beyond the paper, alone and together, and score it; called again, it continues (STEPS=8000, of each arm ARM_STEPS=600: hours)
	$(FASTCOMPOSER) prepare data=avatars
	$(FASTCOMPOSER) train -m experiment=mini_id arm=plain,full name=$(notdir $(LONG)) trainer.max_steps=$(STEPS) \
		resume=auto $(ARGS)
	$(SCORE_JOBS) alphas=[0.8,1.0] jobs=$(LONG)
	$(FASTCOMPOSER) report sweep=$(LONG) baseline=0 $(IDENTITY:%=document=%)
	$(FASTCOMPOSER) diagnose checkpoints=[$(MINI)/fastcomposer.safetensors,$(LONG)/0,$(LONG)/1] \
		names='[FastComposer,plain continuation,FastComposer-ID]' output=$(LONG)/diagnosis $(IDENTITY:%=document=%)
	$(FASTCOMPOSER) train -m sweep=ablation_identity experiment=mini_id trainer.max_steps=$(ARM_STEPS) \
		method.warmup_steps=100 resume=auto $(ARGS)
	$(SCORE_JOBS) jobs=$(ARMS)
	$(FASTCOMPOSER) report sweep=$(ARMS) baseline=0 $(IDENTITY:%=document=%)

BACKBONES := multirun/backbones
COMPARED := $(wildcard docs/benchmarks/backbones.md)

# Differences are from job 0: the U-Net, with localization. The record of the scoring, written last, names the references.
backbones: .venv/core ## Train FastComposer on the U-Net and on the transformer, with and without localization, and compare them; called again, it continues (hours)
	$(FASTCOMPOSER) prepare data=avatars
	$(FASTCOMPOSER) train -m sweep=backbones experiment=mini resume=auto $(ARGS)
	$(FASTCOMPOSER) attention -m sweep=jobs jobs=$(BACKBONES) job=0,1
	$(FASTCOMPOSER) attention -m sweep=jobs jobs=$(BACKBONES) job=2,3 model=mini_dit
	$(SCORE_JOBS) alphas=[1.0] jobs=$(BACKBONES) job=0,1
	$(SCORE_JOBS) alphas=[1.0] jobs=$(BACKBONES) job=2,3 model=mini_dit
	$(FASTCOMPOSER) report sweep=$(BACKBONES) baseline=0 $(COMPARED:%=document=%)

test: export OMP_NUM_THREADS = 1
test: lint types ## Lint, check types and run the fast tests (ARGS="-k prompt" is passed to pytest)
	$(PY) -m pytest -n $(WORKERS) -m "not slow and not gpu" $(ARGS)

soak: export OMP_NUM_THREADS = 1
soak: setup ## Kill, fill disks, damage files: FAULTS=200 at random moments of the four long jobs, at most MINUTES=30
	PYTHONPATH=tests/helpers $(PY) tests/soak/soak.py --faults $(FAULTS) --minutes $(MINUTES)

lint: setup ## Check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup ## Check types
	$(PY) -m mypy

format: setup ## Format the code and mend what the linter can mend by itself
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup ## Measure speed and memory, and write the table of docs/benchmarks/speed.md
	$(FASTCOMPOSER) prepare data=avatars
	$(FASTCOMPOSER) bench document=docs/benchmarks/speed.md

lock: setup ## Resolve the dependencies to their newest versions and write uv.lock
	.venv/bin/uv lock --upgrade

clean: ## Remove .venv and caches (outputs and data stay)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
	find src tests scripts -type d -name __pycache__ -prune -exec rm -rf {} +
