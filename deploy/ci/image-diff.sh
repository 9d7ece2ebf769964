#!/bin/sh
# image-diff.sh BASE HEAD
#
# Prints, as Markdown for a pull request, what the revision HEAD does to the image locks of BASE, and nothing if it leaves
# them alone. It reads both from git and runs nothing of either, so it may look at the work of strangers.
#
# Environment: CT, path of ct; /opt/ct/ct if absent.
set -eu
base=$(git merge-base "$1" "$2")
head=$(git rev-parse --verify --end-of-options "$2^{commit}")
ct=${CT:-/opt/ct/ct}

git diff --name-only --no-renames "$base" "$head" -- ':(glob)**/*.lock.json' |
  grep -E '(^|/)images/[a-z0-9][a-z0-9._-]*\.lock\.json$' |
  while IFS= read -r path; do
    before=git:$base:$path
    after=git:$head:$path
    git cat-file -e "$base:$path" 2>/dev/null || before=/dev/null
    git cat-file -e "$head:$path" 2>/dev/null || after=/dev/null
    printf '## `%s`\n\n' "$path"
    "$ct" image diff "$before" "$after" </dev/null
  done
