.DEFAULT_GOAL := help
.PHONY: help setup demo demo-down test compose-test lint bench clean

# rustup's folder may not be in PATH yet on a fresh machine.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

scripts := .ci/run demo/demo.sh demo/stack.sh demo/transcript.sh demo/processes.sh \
	demo/demo-agent.sh demo/scripted-agent.sh demo/try-agents.sh demo/generate-server-certs.sh \
	demo/compose/setup demo/compose/migrate demo/compose/enrol demo/compose/registry demo/compose/authz \
	demo/compose/sidecar demo/compose/ready demo/compose/tpm demo/compose/test .ci/docker/start-engine \
	.ci/docker/build-base-images testbed/setup testbed/postgres-cluster testbed/ports.sh testbed/run-tests permission/testdata/make \
	poca/testdata/make scripts/check-request deploy/systemd/check

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' Makefile | while read -r target what; do \
		printf '  make %-12s %s\n' "$$target" "$$what"; done

setup:  ## install what is missing: apt packages, and Envoy in .tools/
	@testbed/setup

demo:  ## run the whole gateway here, show what it allows and refuses, leave it running
	@demo/demo.sh setup

demo-down:  ## stop the demo and remove what it made
	@demo/demo.sh teardown

test: setup  ## build, and run all tests against real Postgres, Envoy and (simulated) TPMs
	@testbed/run-tests

compose-test:  ## build the images, run compose.yaml, break it, remove it again
	@demo/compose/test

lint: setup  ## formatting, clippy, the lock file, licences and dependencies, and the scripts
	cargo metadata --locked --format-version 1 >/dev/null
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	.tools/bin/cargo-deny --locked check bans licenses sources
	@for script in $(scripts); do bash -n "$$script" || exit; done
	@if command -v shellcheck >/dev/null; then shellcheck -x -S warning $(scripts); \
		else echo "lint: shellcheck is not installed, scripts were only parsed" >&2; fi
	@if command -v systemd-analyze >/dev/null; then deploy/systemd/check; \
		else echo "lint: systemd is not installed, its units were not looked at" >&2; fi

bench: setup  ## measure against an empty service and an open gateway; SHORT=1: within two minutes
	cargo build --release -p authz-service -p sidecar -p bench --bins
	"$${CARGO_TARGET_DIR:-target}"/release/agent-gateway-bench $(if $(SHORT),--short)

clean: demo-down  ## remove everything that was made in this folder
	cargo clean
	rm -rf .tools
