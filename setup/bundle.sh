#!/bin/sh
# Bundles the programs into the directory $1 (`dist/<hash of the sources>`), which appears complete or not at all.
# One chunk per lazily imported module, so that a command loads only what it needs.
set -eu
cd "$(dirname -- "$0")/.."
out=$1
work=$out.$$
trap 'rm -rf "$work"' EXIT

entries=
for entry in src/cli/main.ts src/host/daemon.ts src/host/link-process.ts src/host/image-scan-worker.ts src/host/evidence-worker.ts; do
  [ ! -f "$entry" ] || entries="$entries $entry"
done
# The banner gives CommonJS dependencies (yaml) their `require` of Node's own modules.
# shellcheck disable=SC2086 # a list of paths without spaces
node_modules/@esbuild/linux-x64/bin/esbuild $entries \
  --bundle --splitting --format=esm --platform=node --target=node26 --sourcemap --sources-content=false \
  --outbase=src --entry-names='[dir]/[name]' --chunk-names='[name]-[hash]' --outdir="$work" --log-level=warning \
  "--define:CT_BUILD=\"${out##*/}\"" \
  '--banner:js=import{createRequire as __createRequire}from"node:module";const require=__createRequire(import.meta.url);'
rm -rf "$out"
mv "$work" "$out"
