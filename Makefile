# make demo | make demo WORLD=webnav | make demo WORLD=robot | make seeds | make play | make bench |
# make test | make soak: everything else is set up on the way (python 3.11 or later with venv is all
# they need).
# WORLD is the name of any page in runs/.
WORLD ?= textgame
PYTHON ?= python3
SEEDS ?= 1 2
RUN = .venv/bin/python
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check -r
PAGE = PATH="$(CURDIR)/.venv/bin:$$PATH" bash runs/$(WORLD).sh

comma = ,
name = $(WORLD)$(if $(CHANCE),-$(CHANCE))
others = $(foreach s,$(SEEDS),$(name)-seed$(s)-results)
results = $(subst $(eval ) ,$(comma),$(name)-results $(others))

.PHONY: demo seeds play bench test soak clean

# data, maximum likelihood, reinforcement learning, its rival, the table
demo: .venv/installed
	$(PAGE)

# after `make demo`: the same for more training seeds, and one table of mean ± std over all of them
seeds: .venv/installed
	for s in $(SEEDS); do $(PAGE) $$s || exit 1; done
	$(RUN) evaluate.py --average=$(results)

# worlds and runs in the browser; make play ARGS=--world=data/mine
play: .venv/installed
	$(RUN) use/play.py $(ARGS)

# speed and memory; make bench ARGS=--peer=hf,trl runs others beside (they are installed then)
bench: .venv/installed
	$(if $(findstring peer,$(ARGS)),$(INSTALL) requirements-bench.txt)
	$(RUN) bench.py $(ARGS)

test: .venv/installed-dev
	.venv/bin/ruff format --check --quiet .
	.venv/bin/ruff check --quiet .
	$(RUN) -m pytest -q -n 2 --dist loadfile

# kills, resumes and corrupts training runs for ten minutes; make soak ARGS="--minutes=60 --seed=1"
soak: .venv/installed
	$(RUN) tests/soak.py $(ARGS)

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or later is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	rm -rf .venv  # the link, where it is one, not what it leads to
	$(PYTHON) -m venv .venv
	$(INSTALL) requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(INSTALL) requirements-dev.txt
	touch $@

clean:
	rm -rf out
