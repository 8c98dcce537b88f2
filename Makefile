# make demo | make demo WORLD=webnav | make demo WORLD=robot | make seeds | make matrix | make bench | make test | make soak: everything else is set up on the way (python3 with venv is all it needs)
WORLD ?= textgame
PYTHON ?= python3
RUN = .venv/bin/python

# three worlds of robot video: they need a tokenizer, and two share one larger data set
VIDEO = $(filter robot robot-large robot-large-multi,$(WORLD))
SOURCE = $(if $(VIDEO),robot,$(WORLD))
PREPARE = $(if $(filter robot-large%,$(WORLD)),--preset=robot-large)
METRICS = mae mse psnr ssim
comma = ,

SEEDS ?= 1 2

.PHONY: demo seeds matrix bench test soak clean

# prepare -> maximum likelihood -> reinforcement learning -> its rival, likelihood for the same wall-clock at two rates -> the table
demo: .venv/installed
	$(RUN) data/$(SOURCE)/prepare.py $(PREPARE)
	$(if $(VIDEO),$(RUN) tokenizer_vq.py --preset=$(WORLD))
	$(RUN) train_mle.py --preset=$(WORLD)
	$(RUN) train_rlvr.py --preset=$(WORLD)
	$(RUN) train_mle.py --preset=$(WORLD) --init_from=out/$(WORLD)-mle/best.pt --match=out/$(WORLD)-rlvr/last.pt --name=$(WORLD)-mle-more-1 --lr=0.01
	$(RUN) train_mle.py --preset=$(WORLD) --init_from=out/$(WORLD)-mle/best.pt --match=out/$(WORLD)-rlvr/last.pt --name=$(WORLD)-mle-more-2 --lr=0.002
	$(RUN) sample.py --world=$(WORLD)
	$(RUN) sample.py --world=$(WORLD) --eval

# after `make demo` of a text world (seed 0): the same from train_mle.py on for more training seeds, and one table of mean ± std over all of them
seeds: .venv/installed
	for s in $(SEEDS); do run=$(WORLD)-seed$$s; rival="--preset=$(WORLD) --seed=$$s --init_from=out/$$run-mle/best.pt --match=out/$$run-rlvr/last.pt"; \
	$(RUN) train_mle.py --preset=$(WORLD) --seed=$$s --name=$$run-mle && \
	$(RUN) train_rlvr.py --preset=$(WORLD) --seed=$$s --init_from=out/$$run-mle/best.pt --name=$$run-rlvr && \
	$(RUN) train_mle.py $$rival --name=$$run-more-1 --lr=0.01 && \
	$(RUN) train_mle.py $$rival --name=$$run-more-2 --lr=0.002 && \
	$(RUN) sample.py --world=$(WORLD) --eval --best_of=0 --out=out/$$run-results --mle=out/$$run-mle/best.pt --rlvr=out/$$run-rlvr/best.pt \
	--more=out/$$run-more-1/best.pt,out/$$run-more-2/best.pt || exit 1; done
	$(RUN) sample.py --average=$(subst $(eval ) ,$(comma),out/$(WORLD)-results $(foreach s,$(SEEDS),out/$(WORLD)-seed$s-results))

# the world model of `make demo WORLD=robot`, post-trained on each metric and judged on all of them; each reward should be best on its own
matrix: .venv/installed
	for metric in $(METRICS); do $(RUN) train_rlvr.py --preset=robot --reward=$$metric --choose=$$metric --name=robot-rlvr-$$metric || exit 1; done
	$(RUN) sample.py --world=robot --eval --best_of=0 --out=out/robot-matrix --each --rlvr=$(subst $(eval ) ,$(comma),$(foreach m,$(METRICS),out/robot-rlvr-$(m)/best.pt))

# speed and memory; make bench ARGS=--peer=hf,trl runs others beside (they are installed then)
bench: .venv/installed
	$(if $(findstring peer,$(ARGS)),$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt)
	$(RUN) bench.py $(ARGS)

test: .venv/installed-dev
	$(RUN) -m pytest -q

# kills, resumes and corrupts training runs for ten minutes; make soak ARGS="--minutes=60 --seed=1"
soak: .venv/installed
	$(RUN) tests/soak.py $(ARGS)

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf out
