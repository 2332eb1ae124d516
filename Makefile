# The commands that people type; continuous integration runs the same ones.
# Each starts a throwaway PostgreSQL (scripts/with-postgres) unless it is given a database.

CARGO ?= $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
ARGS ?=

# What is tested on each major version of PostgreSQL, and of that the few minutes that `make test` spends on the oldest
# and the newest. The programs of the versions include neither pg_dump nor pg_basebackup nor pg_upgrade, so failover::
# and standby:: need the version of the machine.
VERSIONS ?= 13 14 15 16 17 18
VERSION_TESTS = actions:: addresses:: alerts:: attach:: backfill:: check:: commits:: database:: delivery:: errors:: fence:: groups:: \
	health:: hostile:: invalid_start:: ledgers:: mapping:: maps:: migrate:: moves:: notify::delivery:: page::many:: \
	page::numbers:: page::rights:: plans:: pooler:: promises:: prune:: \
	record_key:: reference:: row:: schema:: seal:: session_settings:: skipped:: statement_counts:: unreadable:: \
	unknown_names:: unwritten:: verify:: versions:: watermark:: workers:: zones:: --skip run_survives_a_failover \
	--skip servers_of_the_wrong_kind_are_found
VERSION_TESTS_SHORT = versions:: schema:: attach:: promises:: watermark:: session_settings:: migrate:: seal:: plans::

.PHONY: help demo test test-answers test-versions soak simulate bench micro writer-cost sqlx docs zoneinfo fmt

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## the whole story on a scratch database and a local API (ARGS=--keep leaves the database)
	scripts/with-postgres $(CARGO) run --quiet --locked -- demo $(ARGS)

# A database of yours is used only when TEST_DATABASE_URL names it, never because DATABASE_URL does.
test: ## formatting, lints and all tests
	$(CARGO) fmt --check
	$(CARGO) clippy --locked -- -D warnings # as it is shipped, without what only tests switch on
	$(CARGO) clippy --all-targets --locked -- -D warnings
	@scripts/kubernetes-validate || echo "NOT TESTED: the manifests of Kubernetes" >&2
	DATABASE_URL="$$TEST_DATABASE_URL" ELVEN_PG_FSYNC=off ELVEN_PG_ALSO="pgbouncer promtool chromium" scripts/with-postgres \
		sh -c 'TEST_DATABASE_URL=$$DATABASE_URL exec "$$@"' sh $(CARGO) test --locked $(ARGS)
ifeq ($(ARGS),)
	$(MAKE) test-answers
	$(MAKE) test-versions VERSIONS="13 18" VERSION_TESTS="$(VERSION_TESTS_SHORT)"
endif

# The API's pages disagree about the envelope, and the import has two versions; the tests before were run under the bare
# envelope and version 3.
test-answers: ## the acceptance tests with the API's answers wrapped in the other ways, and with version 4 of the import
	DATABASE_URL="$$TEST_DATABASE_URL" ELVEN_PG_FSYNC=off scripts/with-postgres \
		sh -ec 'export TEST_DATABASE_URL=$$DATABASE_URL; for answers in wrapped wrapped-true; do \
			ELVEN_TEST_ANSWERS=$$answers "$$@" answers:: backfill:: errors:: crashes:: row::; done; \
			ELVEN_TEST_API_VERSION=4 "$$@" verify::' sh \
		$(CARGO) test --locked --test it -- promises:: delivery::

# Without npm, it says what was not tested, and goes on. With ELVEN_PG_VERSIONS=required it fails, so that nobody takes
# that for a test of all versions.
test-versions: ## the tests of the database on each major version of PostgreSQL (VERSIONS="13 18"; needs npm)
	@for version in $(VERSIONS); do \
		if bin=$$(scripts/postgres-version $$version); then \
			echo "PostgreSQL $$version:"; \
			PATH="$$bin:$$PATH" DATABASE_URL= ELVEN_PG_FSYNC=off ELVEN_PG_ALSO=pgbouncer ELVEN_TEST_PG_VERSION=$$version \
				scripts/with-postgres sh -c 'TEST_DATABASE_URL=$$DATABASE_URL exec "$$@"' sh \
				$(CARGO) test --locked --test it -- $(VERSION_TESTS) $(ARGS) || exit 1; \
		elif [ "$$ELVEN_PG_VERSIONS" = required ]; then exit 1; \
		else echo "NOT TESTED: PostgreSQL $$version" >&2; \
		fi; \
	done

soak: ## crashes, freezes, faults and restarts under load for some minutes (ELVEN_SOAK_SECONDS=600 ELVEN_SOAK_ROWS=200000 ELVEN_SEED=7)
	DATABASE_URL="$$TEST_DATABASE_URL" ELVEN_PG_FSYNC=off scripts/with-postgres \
		$(CARGO) test --locked --test it -- --ignored --nocapture soak $(ARGS)

simulate: ## lanes against models, under faults that a seed decides (SEEDS=1000000 SEED=7 MANY=1 LINES=200)
	ELVEN_SIMULATION_SEEDS=$(or $(SEEDS),10000) ELVEN_SIMULATION_MANY=$(or $(MANY),0) \
		ELVEN_SIMULATION_LINES=$(or $(LINES),60) $(if $(SEED),ELVEN_SIMULATION_SEED=$(SEED)) \
		$(CARGO) test --locked --test it -- simulation::lanes

# The connector is measured as it is shipped; what an example is built with has fault points besides.
bench: ## speed, cost and memory beside the limits of database and wire (ARGS="--only upload,idle --runs 5", ARGS=--help)
	$(CARGO) build --release --quiet --locked
	scripts/with-postgres $(CARGO) run --release --quiet --locked --example bench -- $(ARGS)

micro: ## decode, align, encode and sign alone (ARGS=encode; ARGS="--save-baseline before")
	$(CARGO) bench --quiet --locked --bench micro -- $(ARGS)

writer-cost: ## what attach costs those who write to the ledger (ARGS="--rows 200000")
	scripts/with-postgres $(CARGO) run --release --quiet --locked --example writer_cost -- $(ARGS)

sqlx: ## describe the checked queries anew in .sqlx, after a query or a migration has changed
	DATABASE_URL= ELVEN_PG_FSYNC=off scripts/with-postgres sh -ec ' \
		columns="version bigint, description text, installed_on timestamptz, success boolean, checksum bytea, \
			execution_time bigint"; \
		psql "$$DATABASE_URL" -v ON_ERROR_STOP=1 -q -c "create schema elven_sync" \
			-c "create table elven_sync._migrations ($$columns)" \
			-c "create table elven_sync._ledger_migrations ($$columns)" \
			$(foreach f,$(sort $(wildcard migrations/*/*.sql)),-f $(f)); \
		rm -f .sqlx/query-*.json; touch src/lib.rs; \
		SQLX_OFFLINE=false SQLX_OFFLINE_DIR=$(CURDIR)/.sqlx $(CARGO) check --all-targets --locked'

docs: ## write the generated parts of the documents, after a help text or a setting has changed
	ELVEN_REWRITE_DOCS=1 $(CARGO) test --quiet --locked --test it -- documents:: --skip recipes

zoneinfo: ## compile the zone rules that tests use, after a source in tests/data/zoneinfo has changed
	cd tests/data/zoneinfo && for rules in newer:fat older:slim; do \
		name=$${rules%:*} && rm -rf $$name && zic -b $${rules#*:} -d $$name $$name.zi && cp $$name.zi $$name/tzdata.zi || exit 1; \
	done

fmt: ## format the sources
	$(CARGO) fmt
