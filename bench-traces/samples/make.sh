#!/usr/bin/env bash
# Makes the sample again: the program, its recording and the recorder's count of what truly ran.
# Needs musl-tools and qemu-user (./test installs both). Thread ids and times differ from run to run; the work does not.
set -euo pipefail
cd "$(dirname "$0")/requests"
workspace=$(cd ../../.. && pwd)

# -fno-inline and the three after it keep every function of the source whole and under its own name.
musl-gcc -std=c11 -Wall -Wextra -Werror -O2 -g1 -static -no-pie -pthread \
    -fno-inline -fno-partial-inlining -fno-ipa-sra -fno-ipa-cp -fno-reorder-blocks-and-partition \
    -ffile-prefix-map="$PWD"=. -Wl,--build-id=sha1 -o requests requests.c

cargo build --release --locked --manifest-path "$workspace/Cargo.toml" -p ptflow-bench-traces -p ptflow-recorder-plugin

# The capture names the program by the path it ran from: one that says nothing of this machine.
place=/tmp/ptflow-sample
mkdir -p "$place"
cp requests "$place/requests"
"${CARGO_TARGET_DIR:-$workspace/target}/release/bench-traces" record --cyc -o "$place/recorded" -- "$place/requests"
mv "$place/recorded"/{perf.data,truth.edges,totals.json} .
rm -r "$place"
