# The entry point. `make up` and `make test` set up what they need themselves.

.PHONY: help up down build test deny fmt bench deb rpm test-vm setup

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

up: ## start a cluster of one machine, with an example in it (as root)
	@make/up

down: ## stop it, and remove all that it left
	@make/down

build: setup ## release binaries in target/release
	cargo build --locked --release -p stoker -p stoker-control-plane

test: ## everything that must hold; the last line counts
	@make/test

test-vm: deb ## the packages in an emulated Debian machine
	tests/vm/smoke

bench: build ## the benches (as root)
	make/images
	cargo bench --locked --no-fail-fast -p stoker --bench services --bench service_cluster --bench dns --bench pod_start --bench many_pods --bench probes --bench node_api

deny: ## licenses, bans and sources of the dependencies
	PATH="$$(make/tools cargo-deny):$$PATH" cargo deny --workspace --locked check bans licenses sources

fmt: ## format the code
	cargo fmt --all

deb: setup ## Debian packages in target/debian
	make/packages deb

rpm: setup ## RPM packages in target/generate-rpm
	make/packages rpm

setup: ## Debian packages that are missing
	@make/setup
