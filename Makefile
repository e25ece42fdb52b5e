# demo, test, lint, bench, learn, maclr and gpu each create the virtual environment first; `make gpu PY=python3` uses yours.
PYTHON ?= python3
comma := ,
VENV ?= .venv
EXTRAS ?= $(if $(filter gpu,$(MAKECMDGOALS)),test$(comma)cuda13,test)
PY ?= $(VENV)/bin/python
DEMO ?= demo

ifeq ($(origin PY),command line)
READY :=
else
READY := $(VENV)/.ready-$(EXTRAS)
endif

.PHONY: demo test lint bench learn maclr gpu
demo test lint bench learn maclr gpu: $(READY)

$(VENV)/.ready-$(EXTRAS): setup.cfg constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; say make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--config-settings editable_mode=compat --editable ".[$(EXTRAS)]"
	touch $@

demo:
	$(PY) -m preprocess.run --dataset synthetic --videos $(DEMO)/videos --store $(DEMO)/store
	$(PY) -m preprocess.check $(DEMO)/store
	$(PY) -m preprocess.show $(DEMO)/store --out $(DEMO)/store.png
	$(PY) -m preprocess.show $(DEMO)/store --video circle/circle_0001.mp4 --out $(DEMO)/video.png
	$(PY) train/main.py --pipeline mcl-tiny --store $(DEMO)/store --out $(DEMO)/run --resume auto --set steps=40
	$(PY) -m evaluate.run --protocol linear,retrieval,saliency,controls --checkpoint $(DEMO)/run/last.pt \
		--store $(DEMO)/store --out $(DEMO)/results --set supervised_steps=100
	@echo
	@echo "The training in pictures:  $(dir $(PY))tensorboard --logdir $(DEMO)/run"
	@echo "Your own videos (a folder of <class>/<video>):"
	@echo "  $(PY) -m preprocess.run --dataset folder --videos YOUR_VIDEOS --store stores/yours --plan"
	@echo "  $(PY) -m preprocess.run --dataset folder --videos YOUR_VIDEOS --store stores/yours"
	@echo "Open and look: $(DEMO)/video.png, $(DEMO)/store.png, and the report of this run, which ends the demo:"
	@echo "  $(DEMO)/results/report.html"

test:
	$(PY) -m pytest -q -m "not gpu" --durations=15

lint:
	$(PY) -m ruff check .

bench:
	$(PY) tests/bench/decode.py
	$(PY) tests/bench/store.py
	$(PY) tests/bench/flow.py
	$(PY) tests/bench/motion.py
	$(PY) tests/bench/edges.py
	$(PY) tests/bench/pipeline.py
	$(PY) tests/bench/memory.py
	$(PY) tests/bench/clusters.py --rounds 1
	$(PY) tests/bench/engines.py
	$(PY) tests/bench/objects.py
	$(PY) tests/bench/loader.py
	$(PY) tests/bench/step.py
	$(PY) tests/bench/features.py

learn:
	$(PY) tests/bench/learning.py

maclr:
	$(PY) tests/bench/maclr.py

gpu:
	$(PY) -m pytest -q -n 0 -m gpu
	$(PY) tests/bench/gpu_flow.py
