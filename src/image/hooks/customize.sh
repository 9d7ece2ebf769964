#!/bin/sh
# Hook of mmdebstrap, when all packages are configured, in its mount (and user) namespace: $1 is the root.
# Adds npm packages, cleans the tree, makes mount points and the job user, and writes the file system image to the file `rootfs` of the
# build's directory, which is descriptor 3 (see setup.sh).
#
# Environment: CT_USER_NAME, CT_USER_UID, CT_USER_GID, CT_USER_HOME, SOURCE_DATE_EPOCH. Names and numbers were
# checked by the definition's parser; they are used as data only.
set -eu
umask 022
root=$1
say() { printf 'ct: %s\n' "$1" >&2; }
# find(1) in a directory that an image without a base system may lack.
below() { [ ! -d "$1" ] || find "$@"; }

# A view of the tree without what is mounted below it (/dev, /proc, /sys).
work=$root/.ct
mkdir -p "$work/view"
mount --bind "$root" "$work/view"
cd "$work/view"

# npm packages, where `npm install --global` puts them. Names and paths were checked by whoever wrote the plan.
say npm
modules=usr/local/lib/node_modules
while read -r kind first second third; do
  case $kind in
  archive)
    mkdir -p "$modules/$second"
    tar --extract --gzip --file="/proc/self/fd/3/npm/$first" --directory="$modules/$second" --strip-components=1 \
      --no-same-owner --no-same-permissions
    # Some archives have odd modes; npm evens them out, too.
    chmod -R u+rwX,go+rX,go-w "$modules/$second"
    ;;
  program)
    chmod 0755 "$modules/$second/$third"
    ln -s "../lib/node_modules/$second/$third" "usr/local/bin/$first"
    ;;
  esac
done </proc/self/fd/3/npm/plan

# Files of no package. None replaces one, and none ends up elsewhere by way of a link.
while read -r number mode path; do
  if [ -e "$path" ] || [ "$(realpath -m -- "$path")" != "$(realpath -- .)/$path" ]; then
    say "cannot add /$path: it is there, or it leads elsewhere"
    exit 1
  fi
  mkdir -p "$(dirname -- "$path")"
  cp "/proc/self/fd/3/files/$number" "$path"
  chmod "$mode" "$path"
done </proc/self/fd/3/files/plan

say cleaning
# Files of the build, and of package management that is over.
rm -rf etc/dpkg/dpkg.cfg.d/ct-build etc/apt/apt.conf.d/98ct-build \
  etc/apt/apt.conf.d/00mmdebstrap etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap \
  etc/apt/sources.list etc/apt/sources.list.d/*
rm -rf var/cache/apt var/lib/apt
# What mmdebstrap puts there while packages are installed, so that no service starts; it puts things right later, and finds
# nothing left to do.
rm -f usr/sbin/policy-rc.d
[ ! -e usr/sbin/start-stop-daemon.REAL ] || mv -f usr/sbin/start-stop-daemon.REAL usr/sbin/start-stop-daemon
if [ -x usr/bin/apt-get ]; then
  mkdir -p var/cache/apt/archives/partial var/lib/apt/lists/partial
else
  rm -rf etc/apt
fi
[ -x usr/bin/dpkg ] || rm -rf etc/dpkg
below var/lib/dpkg -name '*-old' -delete
below var/cache/debconf -name '*-old' -delete
rm -f var/lib/dpkg/lock var/lib/dpkg/lock-frontend var/lib/dpkg/triggers/Lock var/lib/dpkg/available
# Logs and caches.
below var/log -type f -delete
rm -rf var/cache/ldconfig/* var/cache/man/* var/backups/* var/lib/systemd/catalog/database usr/share/info/dir*
# Documents of packages that were unpacked before dpkg's exclusions applied. Copyright files stay: they are the
# licences of what the image distributes.
rm -rf usr/share/man/* usr/share/info/* usr/share/lintian usr/share/linda
below usr/share/locale -mindepth 1 -maxdepth 1 ! -name locale.alias -exec rm -rf {} +
below usr/share/doc -mindepth 1 ! -type d ! -name copyright ! -type l -delete
below usr/share/doc -mindepth 2 -type l ! -name copyright -delete
below usr/share/doc -mindepth 1 -type d -empty -delete
# Copies of the account files from before the last change.
rm -f etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid- etc/subgid- etc/.pwd.lock
# Secrets and identity: every VM makes its own.
rm -rf etc/ssh/ssh_host_* etc/ssl/private/* root/.gnupg root/.ssh root/.rnd root/.cache root/.wget-hsts \
  var/lib/dbus/machine-id var/lib/systemd/random-seed var/lib/systemd/credential.secret etc/machine-id
# The root is mounted nosuid, and jobs cannot gain privileges: these bits would only look like something. Those of files
# that the definition names stay.
find . -xdev -type f -perm /6000 -printf '/%P\n' | grep -vxFf /proc/self/fd/3/setuid | while IFS= read -r path; do
  chmod a-s ".$path"
done

say accounts
shell=/bin/bash
[ -x usr/bin/bash ] || shell=/usr/sbin/nologin
printf '%s:x:%s:%s:%s:%s:%s\n' \
  "$CT_USER_NAME" "$CT_USER_UID" "$CT_USER_GID" "$CT_USER_NAME" "$CT_USER_HOME" "$shell" >>etc/passwd
printf '%s:x:%s:\n' "$CT_USER_NAME" "$CT_USER_GID" >>etc/group
[ ! -e etc/gshadow ] || printf '%s:!::\n' "$CT_USER_NAME" >>etc/gshadow
if [ -e etc/shadow ]; then
  # "!" locks the account. The day of the last change would be the day of the build.
  printf '%s:!::0:99999:7:::\n' "$CT_USER_NAME" >>etc/shadow
  awk -F: -v OFS=: -v day="$((SOURCE_DATE_EPOCH / 86400))" '{ $3 = day; print }' etc/shadow >"$work/shadow"
  cat "$work/shadow" >etc/shadow
fi

# Mount points, empty; and files that the guest agent covers with its own.
rm -rf tmp/* tmp/.[!.]* run/* var/tmp/* home/*
for directory in proc sys dev run tmp var/tmp home workspace; do
  [ ! -L "$directory" ] || rm "$directory"
  mkdir -p "$directory"
  chmod 0755 "$directory"
done
chmod 1777 tmp var/tmp
for file in etc/hostname etc/machine-id etc/hosts etc/resolv.conf; do
  rm -f "$file"
  : >"$file"
done

# What there is now, for the inventory (tree.ts): every file, its digests, keys, and what packages say of themselves.
say inventory
{
  find . -xdev -path ./.ct -prune -o -path './dev/*' -prune -o -printf '%y %m %U %G %s\0%P\0%l\0'
} >/proc/self/fd/3/tree
find . -xdev -path ./.ct -prune -o -path './dev/*' -prune -o -type f -print0 >"$work/names"
xargs -0r sha256sum -z <"$work/names" >/proc/self/fd/3/sha256
xargs -0r sha1sum -z <"$work/names" >/proc/self/fd/3/sha1
{
  xargs -0r grep -IlZ -D skip -E -e '^-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----' <"$work/names" || true
} >/proc/self/fd/3/keys
grep -zE '^\./(var/lib/dpkg/(status|diversions|info/[^/]*\.list)|usr/share/doc/.*/copyright|usr/local/lib/node_modules/.*/package\.json)$' \
  <"$work/names" | tar --create --null --no-recursion --files-from=- --file=/proc/self/fd/3/metadata.tar

say filesystem
# No extended attributes: file capabilities are as useless as set-uid bits, and look different from a user
# namespace. One time for all files: that of the build says nothing. The nodes in dev are mmdebstrap's, and mounted
# over in its namespace, so they cannot be removed now.
mkfs.erofs --quiet -x-1 "-T$SOURCE_DATE_EPOCH" -U63740000-0000-4000-8000-000000000001 \
  --exclude-path=.ct '--exclude-regex=^dev/.' "/proc/self/fd/3/rootfs" "$work/view"
cd /
umount "$work/view"
rm -rf "$work"
say done
