#!/bin/sh
# The package manager does not know of the bytecode that compile.sh made.
set -e
[ ! -d /usr/lib/ckp ] || find /usr/lib/ckp -type d -name __pycache__ -prune -exec rm -rf {} +
