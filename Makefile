# make demo   the main job on the sample documents; DOCS=folder Q="a question" for your own
# make test   everything the tests need, then the tests
# make lowest what the databases' and the frameworks' own objects are tested with, the oldest that pyproject.toml claims
# make finesse-conformance  our FINESSE against the public package finesse-benchmark
# make ray-conformance      data sets and databases merged on a local Ray
# make report-browser  the report of the quality lab in a real browser: needs chromium and chromium-driver
# make check  lint, types, import contracts, the wheel, a base-only install
# make bench  the figures of the README: DATA=folder of the evaluation sets
PYTHON ?= python3
DATA ?= ../shared/data
WORKERS ?= 2
DOCS ?=
Q ?=

# Packages are compiled at their first import, not all at once; many tests start processes, which must find them so.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lowest finesse-conformance ray-conformance report-browser check bench clean

demo: .venv/demo/.done
	@.venv/demo/bin/merger-plugins demo $(if $(DOCS),--docs "$(DOCS)") $(if $(Q),--question "$(Q)")

test: .venv/test/.done
	scratch=$$(.ci/scratch); trap 'rm -rf "$$scratch"' EXIT; \
	TMPDIR=$$scratch OMP_NUM_THREADS=1 .venv/test/bin/python -m pytest -n $(WORKERS) --dist loadfile

lowest: .venv/lowest/.done
	scratch=$$(.ci/scratch); trap 'rm -rf "$$scratch"' EXIT; \
	TMPDIR=$$scratch OMP_NUM_THREADS=1 .venv/lowest/bin/python -m pytest -n $(WORKERS) --dist loadscope integrations tests/langchain/test_history.py tests/langchain/test_vectorstore.py tests/stores/test_ranking.py

finesse-conformance: .venv/test/.done .venv/finesse/.done
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=.venv/finesse .venv/test/bin/python -m pytest integrations/finesse-benchmark

ray-conformance: .venv/ray/.done
	PYTHONPATH=. OMP_NUM_THREADS=1 .venv/ray/bin/python -m pytest integrations/ray

report-browser: .venv/test/.done
	OMP_NUM_THREADS=1 .venv/test/bin/python -m pytest tests/finesse/test_report_browser.py

check: .venv/test/.done
	.venv/test/bin/ruff check .
	.venv/test/bin/ruff format --check .
	.venv/test/bin/mypy
	.venv/test/bin/lint-imports
	.venv/test/bin/python -m benchmarks.readme --check
	rm -rf dist && .venv/test/bin/python -m build --wheel --quiet
	.venv/test/bin/python .ci/check_wheel.py dist
	.ci/check_install "$(PYTHON)" dist

bench: .venv/bench/.done
	.venv/bench/bin/python -m benchmarks.retrieval --data "$(DATA)"
	.venv/bench/bin/python -m benchmarks.retrieval --data "$(DATA)" --sets xquad_de xquad_es xquad_ru xquad_zh --result retrieval-languages
	.venv/bench/bin/python -m benchmarks.passages --data "$(DATA)"
	.venv/bench/bin/python -m benchmarks.long_texts --data "$(DATA)"
	.venv/bench/bin/python -m benchmarks.conversation --data "$(DATA)"
	.venv/bench/bin/python -m benchmarks.chat --data "$(DATA)"
	.venv/bench/bin/python -m benchmarks.frameworks --data "$(DATA)"
	.venv/bench/bin/python -m benchmarks.speed
	.venv/bench/bin/python -m benchmarks.readme

.venv/bench/.done: pyproject.toml
	$(PYTHON) -m venv .venv/bench
	.venv/bench/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test,bench]"
	@touch $@

.venv/demo/.done: pyproject.toml
	$(PYTHON) -m venv .venv/demo
	@echo "Installing merger-plugins[cpu,qdrant,cli] ..."
	.venv/demo/bin/python -m pip install --quiet --disable-pip-version-check -e ".[cpu,qdrant,cli]"
	@touch $@

.venv/test/.done: pyproject.toml
	$(PYTHON) -m venv .venv/test
	@echo "Installing what the tests and checks need ..."
	.venv/test/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[test,dev]"
	@touch $@

.venv/lowest/.done: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv .venv/lowest
	.venv/lowest/bin/python -m pip install --quiet --disable-pip-version-check -e ".[frameworks]" $$(.venv/lowest/bin/python .ci/lowest.py qdrant chroma langchain llama-index frameworks)
	@touch $@

.venv/finesse/.done: integrations/finesse-benchmark/requirements.txt | .venv/test/.done
	.venv/test/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target .venv/finesse -r $<
	@touch $@

.venv/ray/.done: pyproject.toml
	$(PYTHON) -m venv .venv/ray
	.venv/ray/bin/python -m pip install --quiet --disable-pip-version-check -e ".[ray,cli,contract,export]"
	@touch $@

clean:
	rm -rf .venv dist .demo
