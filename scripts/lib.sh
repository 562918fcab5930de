# Shared by the scripts: everything that a fresh Debian 12 needs. Source it, do not run it.
#
# Settings, all optional:
#   FUSEOVERLAY_HOME        the directory of the virtual environment (root: /opt/fuseoverlay,
#                           others: ${XDG_CACHE_HOME:-~/.cache}/fuseoverlay)
#   FUSEOVERLAY_NO_INSTALL  when not empty: install no Debian packages, only name them

FO_CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What running needs; what the tests use, of which some are skipped if it is missing.
FO_PACKAGES_RUN=(fuse3 libfuse3-dev pkg-config gcc libc6-dev python3 python3-venv python3-dev)
FO_PACKAGES_TEST=(acl apache2-utils attr btrfs-progs buildah busybox-static ca-certificates crun debootstrap
  docker-registry docker.io e2fsprogs fish fuse-overlayfs groff-base libcap2-bin openssl podman
  skopeo strace tmux uidmap umoci xfsprogs zsh zstd)
# Contenders and tools of the benchmarks.
FO_PACKAGES_BENCH=(btrfs-progs curl fio fuse-overlayfs git iproute2 unionfs-fuse)

# The plain user as whom root runs tests and benchmarks.
FO_TEST_USER=fuseoverlay-test

if [ -z "${FUSEOVERLAY_HOME:-}" ]; then
  if [ "$(id -u)" = 0 ]; then
    # Not in root's home: a plain test user has to run the same interpreter.
    FUSEOVERLAY_HOME=/opt/fuseoverlay
  else
    FUSEOVERLAY_HOME=${XDG_CACHE_HOME:-$HOME/.cache}/fuseoverlay
  fi
fi
export FUSEOVERLAY_HOME
FO_PYTHON=$FUSEOVERLAY_HOME/venv/bin/python

say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

# fo_retry COMMAND...: try up to three times, because mirrors fail now and then.
fo_retry() {
  local try
  for try in 1 2 3; do
    "$@" && return 0
    [ "$try" = 3 ] || sleep $((try * 5))
  done
  return 1
}

fo_missing_packages() {
  local name
  for name in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || echo "$name"
  done
}

# Set FO_SUDO, the prefix that runs a command as root; fails if this user may not.
fo_as_root() {
  if [ "$(id -u)" = 0 ]; then
    FO_SUDO=()
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    FO_SUDO=(sudo -n)
  else
    return 1
  fi
}

# fo_install NAME...: install Debian packages; if that is not possible, name them and fail.
fo_install() {
  local missing
  command -v dpkg-query >/dev/null || {
    say "this is not Debian: please see to what these packages hold: $*"
    return 0
  }
  mapfile -t missing < <(fo_missing_packages "$@")
  [ ${#missing[@]} = 0 ] && return 0
  if [ -n "${FUSEOVERLAY_NO_INSTALL:-}" ] || ! fo_as_root; then
    say "please have these packages installed: apt-get install ${missing[*]}"
    return 1
  fi
  say "installing the Debian packages ${missing[*]}: this may take a minute"
  # No failure: one broken third-party source must not stop an installation that would work.
  fo_retry "${FO_SUDO[@]}" apt-get update -qq >&2 || true
  fo_retry "${FO_SUDO[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# The system's interpreter: other users cannot run one in somebody's home directory.
fo_system_python() {
  local candidate
  for candidate in /usr/bin/python3 /usr/local/bin/python3; do
    if [ -x "$candidate" ] &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or later in /usr/bin or /usr/local/bin"
}

# Can somebody who is neither the owner nor in the group read the checkout?
fo_checkout_is_public() {
  setpriv --reuid=65534 --regid=65534 --clear-groups \
    test -r "$FO_CHECKOUT/pyproject.toml" -a -r "$FO_CHECKOUT/fuseoverlay/__init__.py" 2>/dev/null
}

# fo_copy FROM TO: copy the sources, without build products and caches.
fo_copy() {
  tar -C "$1" --exclude=.git --exclude=__pycache__ --exclude='.*_cache' \
    --exclude='*.egg-info' --exclude=.hypothesis --exclude='*.so' --exclude=./build -cf - . |
    tar -C "$2" -xf - --no-same-owner
}

# Set FO_SRC to the checkout, or to a fresh copy if the plain test user cannot read the checkout or
# if we cannot write to it.
fo_source() {
  FO_SRC=$FO_CHECKOUT
  if [ "$(id -u)" = 0 ]; then
    fo_checkout_is_public && return
  elif [ -w "$FO_CHECKOUT" ]; then
    return
  fi
  FO_SRC=$FUSEOVERLAY_HOME/src
  local fresh=$FUSEOVERLAY_HOME/src.$$
  mkdir -p "$fresh"
  fo_copy "$FO_CHECKOUT" "$fresh"
  # Keep the extension built in the last copy; fo_venv finds out whether it is still good.
  cp -p "$FO_SRC"/fuseoverlay/native/*.so "$fresh/fuseoverlay/native/" 2>/dev/null || true
  chmod -R a+rX,go-w "$fresh"
  rm -rf "$FO_SRC"
  mv "$fresh" "$FO_SRC"
}

# What an installation depends on: interpreter, metadata, sources to compile, paths.
fo_stamp() {
  {
    echo "$FO_SRC" "$*"
    "$1" -VV
    cd "$FO_SRC" && cat pyproject.toml
    find . -maxdepth 4 \( -name setup.py -o -name '*.c' -o -name '*.h' \) \
      -not -path './.*' -not -path './build/*' -print0 | sort -z | xargs -0r sha256sum
  } | sha256sum
}

# A digest of the extension that the installation built in the sources, where others may build or
# clean up, too.
fo_built() {
  cat "$FO_SRC"/fuseoverlay/native/*.so 2>/dev/null | sha256sum
}

# fo_venv [EXTRA]...: make the virtual environment, with the project installed in place (editable)
# and its extras: `dev`, the tools of the tests; `bench`, of the benchmarks. Sets FO_SRC.
fo_venv() {
  local extras had python stamp file
  python=$(fo_system_python) || exit 1
  mkdir -p "$FUSEOVERLAY_HOME"
  fo_source
  file=$FUSEOVERLAY_HOME/venv/stamp
  stamp=$(fo_stamp "$python")
  # Extras that are installed stay: scripts/demo must not remove the tools of the tests.
  had=$(sed -n 's/^extras \([a-z ]*\)$/\1/p' "$file" 2>/dev/null || true)
  extras=$(printf '%s\n' $had "$@" | sort -u | paste -sd ' ')
  if [ -x "$FO_PYTHON" ] && [ "$(sed -n 1p "$file" 2>/dev/null)" = "$stamp" ] &&
    [ "$(sed -n 2p "$file")" = "$(fo_built)" ] && [ "$extras" = "$had" ]; then
    return
  fi
  say "preparing a virtual environment in $FUSEOVERLAY_HOME/venv, once"
  if ! "$FO_PYTHON" -c 'import pip' 2>/dev/null; then
    rm -rf "$FUSEOVERLAY_HOME/venv"
    "$python" -m venv "$FUSEOVERLAY_HOME/venv" || die "python3 -m venv failed"
  fi
  # We build for the stable ABI, but Python would prefer a file built for its version alone.
  rm -f "$file" "$FO_SRC"/fuseoverlay/native/_native.cpython-*.so
  say "installing fuseoverlay${extras:+ ($extras)} in it, with the Python packages that it needs:" \
    "this may take a minute"
  # Editable by a path entry: setuptools' default, an import finder, costs each start of Python 15
  # ms.
  fo_retry env PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    "$FO_PYTHON" -m pip install -q --config-settings editable_mode=compat \
    --editable "$FO_SRC${extras:+[${extras// /,}]}" >&2 ||
    die "installing the Python packages failed"
  printf '%s\n%s\nextras %s\n' "$stamp" "$(fo_built)" "$extras" >"$file"
}

# fo_test_user NAME: as root, make that user, with subordinate ids, if it does not exist.
fo_test_user() {
  id "$1" >/dev/null 2>&1 || useradd --create-home --shell /bin/sh "$1"
  grep -qs "^$1:" /etc/subuid || usermod --add-subuids 700000-765535 "$1"
  grep -qs "^$1:" /etc/subgid || usermod --add-subgids 700000-765535 "$1"
}

# Choose a TMPDIR on a filesystem that can hold everything in a layer, unlike tmpfs and overlayfs.
fo_tmpdir() {
  local dir
  for dir in ${TMPDIR:-} /tmp /var/tmp; do
    case $(stat -f -c %T "$dir" 2>/dev/null) in
      ext2/ext3 | xfs | btrfs)
        export TMPDIR=$dir
        return
        ;;
    esac
  done
  say "warning: no ext4, xfs or btrfs at /tmp or /var/tmp (set TMPDIR): expect failures"
}

# Open /dev/fuse to everybody, as udev does where it runs, and make /etc/mtab, without which
# fusermount3 cannot unmount: systemd makes it, and a bare debootstrap tree lacks it.
fo_fuse_device() {
  if [ "$(id -u)" = 0 ] && [ ! -e /etc/mtab ]; then
    ln -sf ../proc/self/mounts /etc/mtab
  fi
  if [ ! -e /dev/fuse ] && [ "$(id -u)" = 0 ]; then
    modprobe fuse 2>/dev/null || mknod /dev/fuse c 10 229 2>/dev/null || true
  fi
  [ -e /dev/fuse ] || die "no /dev/fuse: the kernel's fuse module is not loaded"
  if [ "$(id -u)" = 0 ]; then
    chmod 666 /dev/fuse
  elif [ ! -w /dev/fuse ]; then
    die "/dev/fuse may not be opened by you: have 'chmod 666 /dev/fuse' run as root"
  fi
}
