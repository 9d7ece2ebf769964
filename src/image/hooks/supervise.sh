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
    kill -KILL -- "-$leader"
    sleep 0.05
  done
} <&9 2>/dev/null &
watcher=$!
exec 9<&-

wait "$leader"
status=$?
kill -KILL -- "-$leader" 2>/dev/null
kill -KILL "$watcher" 2>/dev/null

# The last processes of the PID namespace may still be dying.
attempts=0
while [ -n "$directory" ] && [ -e "$directory" ] && [ "$attempts" -lt 50 ]; do
  if [ "$(id -u)" -ne 0 ]; then
    for tree in "$directory"/mmdebstrap.*; do
      [ ! -d "$tree" ] || mmdebstrap --unshare-helper rm -rf "$tree" 2>/dev/null
    done
  fi
  rm -rf "$directory" 2>/dev/null
  [ ! -e "$directory" ] || sleep 0.1
  attempts=$((attempts + 1))
done
exit "$status"
