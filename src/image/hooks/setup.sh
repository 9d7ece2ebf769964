#!/bin/sh
# Hook of mmdebstrap, before any package is unpacked, in its mount (and user) namespace: $1 is the root.
#
# Descriptor 3 is the build's directory. Going through it needs no access to the directories above, which the root of
# a user namespace does not have. There must be no further descriptor: mmdebstrap has apt redirect to one whose
# number grows with those that are open, and dash takes only one digit there.
set -eu
umask 022
root=$1
inputs=/proc/self/fd/3

mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial" "$root/etc/dpkg/dpkg.cfg.d"
# Where packages without a base system find the links that one has.
if [ -n "${CT_DISTROLESS-}" ]; then
  for directory in bin lib lib64 sbin; do
    mkdir -p "$root/usr/$directory"
    ln -s "usr/$directory" "$root/$directory"
  done
fi
cp -R "$inputs/lists/." "$root/var/lib/apt/lists/"
cp -R "$inputs/debs/." "$root/var/cache/apt/archives/"
cp "$inputs/hooks/dpkg.cfg" "$root/etc/dpkg/dpkg.cfg.d/ct-build"
cp "$inputs/hooks/apt.conf" "$root/etc/apt/apt.conf.d/98ct-build"
