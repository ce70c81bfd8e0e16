# The entry point. `make up` and `make test` set up what they need themselves.

.PHONY: help up down build profile test deny fmt bench deb rpm test-vm setup

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

up: ## start a cluster of one machine, with an example in it (as root)
	@make/up

down: ## stop it, and remove all that it left
	@make/down

build: setup ## release binaries in target/release
	make/release

profile: setup ## learn what of the programs runs often, for release builds from then on (as root)
	make/profile

test: ## everything that must hold; the last line counts
	@make/test

test-vm: deb ## the packages in an emulated Debian machine
	tests/vm/smoke

bench: setup ## the benches (as root)
	make/bench

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
