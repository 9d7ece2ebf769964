#!/bin/sh
# supervise.sh DIRECTORY COMMAND…
#
# Runs COMMAND in a session of its own, and whatever happens - it ends, or our standard input closes because
# whoever started us wants to stop or was killed - leaves neither a process of it nor DIRECTORY, where it builds.
# Exits as COMMAND did.
#
# DIRECTORY may be empty. Unprivileged builds leave files of subordinate user ids there, which only root of their user
# namespace can remove.
set -u
umask 022
directory=$1
shift

exec 9<&0
setsid "$@" </dev/null 9<&- &
leader=$! # setsid(1) does not fork here, so this is also the process group
{
  # Nobody writes to us: this ends at end of file.
  read -r _
  # Again until it is gone: it may not lead a group yet.
  while kill -0 "$leader"; do
    kill -s KILL -- "-$leader"
    sleep 0.05
  done
} <&9 >/dev/null 2>&1 &
watcher=$!
# Nobody may be left to read what the shell says about killed children, and writing would kill us.
exec 9<&- >/dev/null 2>&1

wait "$leader"
status=$?
kill -s KILL -- "-$leader"
kill -s KILL "$watcher"

# The last processes of the PID namespace may still be dying.
attempts=0
while [ -n "$directory" ] && [ -e "$directory" ] && [ "$attempts" -lt 50 ]; do
  if [ "$(id -u)" -ne 0 ]; then
    for tree in "$directory"/mmdebstrap.*; do
      [ ! -d "$tree" ] || mmdebstrap --unshare-helper find "$tree" -mindepth 1 -delete
    done
  fi
  rm -rf "$directory"
  [ ! -e "$directory" ] || sleep 0.1
  attempts=$((attempts + 1))
done
exit "$status"
