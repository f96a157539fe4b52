#!/usr/bin/env bash
# The quick tests with the lowest versions of everything that setup.cfg allows; the highest are what make setup installs.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[symbols,test,fast]'
# What this numba compiles is kept apart from what the other one does.
NUMBA_CACHE_DIR="$folder/numba" "$folder/venv/bin/python" -m pytest -p no:cacheprovider -m "not boot and not faults" --deselect tests/test_docs.py "$@"
