# demo, proof, test, lint, bench, learn, maclr and gpu each create the virtual environment first; `make gpu PY=python3` uses
# yours.
PYTHON ?= python3
comma := ,
VENV ?= .venv
EXTRAS ?= $(if $(filter gpu gpu-ablation,$(MAKECMDGOALS)),test$(comma)cuda13,test)
PY ?= $(VENV)/bin/python
# What `make demo` makes, and where; tests/bench/demo.py runs it from other seeds.
DEMO ?= demo
SEED ?= 0
VIDEOS ?= 96
STEPS ?= 150
ROWS ?= untrained,moco,mcl-v1
# What a GPU machine brings, where its results go, and the seconds that `make gpu` may take.
KIT ?= gpu-kit
RESULTS ?= gpu-results
BUDGET ?= 420
# What `make proof` learns from: a folder with INDEX.csv (path, dataset, class, group, ...) and its videos; which of its
# sets, and the group that nothing learns from and that is asked.
DATA ?= ../shared/data
SET ?= handwash12
GROUP ?= scene_A
SEEDS ?= 2
PROOF ?= proof
# Of flow; empty: the recipe's.
PRESET ?=

ifeq ($(origin PY),command line)
READY :=
else
READY := $(VENV)/.ready-$(EXTRAS)
endif

.PHONY: demo proof test lint bench learn maclr gpu gpu-kit gpu-ablation gpu-dry
demo proof test lint bench learn maclr gpu gpu-kit gpu-ablation gpu-dry: $(READY)

$(VENV)/.ready-$(EXTRAS): setup.cfg constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; say make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--config-settings editable_mode=compat --editable ".[$(EXTRAS)]"
	touch $@

demo:
	$(PY) -m preprocess.run --dataset synthetic --videos $(DEMO)/videos --store $(DEMO)/store \
		--set generate.videos=$(VIDEOS) --set generate.seed=$(SEED) --set textures=1 --set generate.frames=48 \
		--set height=64 --set width=64 $(if $(PRESET),--set preset=$(PRESET))
	$(PY) -m preprocess.check $(DEMO)/store
	$(PY) -m preprocess.show $(DEMO)/store --out $(DEMO)/store.png
	$(PY) -m preprocess.show $(DEMO)/store --video circle/circle_0001.mp4 --out $(DEMO)/video.png
	$(PY) -m evaluate.ablation --store $(DEMO)/store --out $(DEMO)/results --rows $(ROWS) \
		--seeds 1 --first-seed $(SEED) --jobs 2 --protocols controls --set steps=$(STEPS) --set size=32 \
		--set bn_group=16 --set-evaluation features.size=64 --set-evaluation features.clips=2 \
		--set-evaluation moments=4 --set-evaluation untrained=1 --set-evaluation supervised_steps=0
	@echo
	@echo "The trainings in pictures:  $(dir $(PY))tensorboard --logdir $(DEMO)/results/runs"
	@echo "Your own videos (a folder of <class>/<video>):"
	@echo "  $(PY) -m preprocess.run --dataset folder --videos YOUR_VIDEOS --store stores/yours --plan"
	@echo "  $(PY) -m preprocess.run --dataset folder --videos YOUR_VIDEOS --store stores/yours"
	@echo "Open and look: $(DEMO)/video.png, $(DEMO)/store.png, and the report of this run, which ends the demo:"
	@echo "  $(DEMO)/results/report.html"

# The store is made once: another index, be it of the same videos, is another ablation's. Exit code 1: of its failures.
$(PROOF)/$(SET).made: | $(READY)
	@test -f $(DATA)/INDEX.csv || { echo "error: $(DATA)/INDEX.csv is missing; expected a folder with INDEX.csv (path,dataset,class,group,...) and its videos: make proof DATA=DIR" >&2; exit 2; }
	mkdir -p $(PROOF)
	awk -F, -v OFS=, 'NR == 1 { print "path,label,group" } \
		$$2 == "$(SET)" { sub("^videos/$(SET)/", "", $$1); print $$1, $$3, $$4 }' $(DATA)/INDEX.csv > $(PROOF)/$(SET).csv
	$(PY) -m preprocess.run --dataset folder --recipe maclr-tiny --videos $(DATA)/videos/$(SET) \
		--annotations $(PROOF)/$(SET).csv --store $(PROOF)/$(SET) --set packs.flow=false \
		--set 'clips.geometries=[16x2,8x2,4x4]' || [ $$? -eq 1 ]
	touch $@

proof: ROWS = untrained,mean-image,frame-difference,motion-history,moco-ta-sa,mcl-moco-v1,mcl-moco-smooth
proof: STEPS = 400
proof: $(PROOF)/$(SET).made
	$(PY) -m evaluate.ablation --family real --store $(PROOF)/$(SET) --leave-out group=$(GROUP) --rows $(ROWS) \
		--seeds $(SEEDS) --first-seed $(SEED) --jobs 2 --set steps=$(STEPS) --set-evaluation features.clips=5 \
		--set-evaluation features.grid=3 --out $(PROOF)/$(SET)-$(GROUP)
	@echo
	@echo "The report: $(PROOF)/$(SET)-$(GROUP)/report.html"

test:
	$(PY) -m pytest -q -m "not gpu" --durations=15

lint:
	$(PY) -m ruff check .

bench: export BENCH_RATIOS = bench.jsonl
bench:
	rm -f $(BENCH_RATIOS)
	$(PY) tests/bench/decode.py
	$(PY) tests/bench/store.py
	$(PY) tests/bench/flow.py
	$(PY) tests/bench/motion.py
	$(PY) tests/bench/edges.py
	$(PY) tests/bench/pipeline.py
	$(PY) tests/bench/pipeline.py --threads 1 2 --preset fast half
	$(PY) tests/bench/peers.py
	$(PY) tests/bench/roots.py
	$(PY) tests/bench/memory.py
	$(PY) tests/bench/clusters.py --rounds 1
	$(PY) tests/bench/engines.py
	$(PY) tests/bench/objects.py
	$(PY) tests/bench/loader.py
	$(PY) tests/bench/step.py
	$(PY) tests/bench/features.py
	$(PY) tests/bench/parts.py speed --rounds 1
	$(PY) tests/bench/floors.py $(BENCH_RATIOS)

learn:
	$(PY) tests/bench/learning.py

maclr:
	$(PY) tests/bench/maclr.py

# docs/gpu.md: on a machine without network, gpu-kit is made elsewhere and carried there.
gpu:
	$(PY) tests/bench/gpu/run.py --kit $(KIT) --out $(RESULTS) --budget $(BUDGET)

gpu-ablation:
	$(PY) tests/bench/gpu/run.py --kit $(KIT) --out $(RESULTS) --budget $(BUDGET) --stages ablation

gpu-kit:
	$(PY) tests/bench/gpu/kit.py $(KIT)

gpu-dry:
	$(PY) tests/bench/gpu/run.py --kit $(KIT) --out $(RESULTS) --budget 3000 --device cpu
