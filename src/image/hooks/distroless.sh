#!/bin/sh
# Hook of mmdebstrap for images that are `distroless`, when packages have been unpacked: $1 is the root. No maintainer script
# runs in such an image, so this does what those of base-passwd, base-files and ca-certificates would have done that a
# static program needs, and writes dpkg's database, which says what is there.
set -eu
umask 022
cd "$1"
export LC_ALL=C
mkdir -p etc var/lib/dpkg/info

if [ -d usr/share/base-passwd ]; then
  cp usr/share/base-passwd/passwd.master etc/passwd
  cp usr/share/base-passwd/group.master etc/group
  # There is no shell to log in with, and nobody is to look for a password.
  sed -i -e 's/^\([^:]*\):[^:]*:\(.*\):[^:]*$/\1:x:\2:\/usr\/sbin\/nologin/' etc/passwd
  sed -i -e 's/^\([^:]*\):[^:]*:/\1:x:/' etc/group
fi
for directory in run lock; do
  [ ! -d "var/$directory" ] || rmdir "var/$directory"
done
if [ -d var ]; then
  ln -s /run var/run
  ln -s /run/lock var/lock
fi
# What a libc does without this file differs from one to the next.
printf '%s\n' 'passwd: files' 'group: files' 'hosts: files dns' 'services: files' 'protocols: files' >etc/nsswitch.conf
if [ -d usr/share/ca-certificates ]; then
  mkdir -p etc/ssl/certs
  find usr/share/ca-certificates -name '*.crt' -print | sort | xargs cat >etc/ssl/certs/ca-certificates.crt
fi
# What only maintainer scripts and shells that somebody logs in to call. None of it could run.
rm -f usr/sbin/update-ca-certificates usr/sbin/update-passwd usr/bin/locale-check
rm -rf etc/ca-certificates etc/update-motd.d var/log/apt

: >var/lib/dpkg/status
for deb in /proc/self/fd/3/debs/*.deb; do
  name=$(dpkg-deb --field "$deb" Package)
  {
    dpkg-deb --field "$deb" | sed -e '1a Status: install ok installed'
    echo
  } >>var/lib/dpkg/status
  dpkg-deb --fsys-tarfile "$deb" | tar --list | sed -e 's|^\.||' -e 's|/$||' -e 's|^$|/.|' >"var/lib/dpkg/info/$name.list"
done
