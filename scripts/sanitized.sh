# The extension under AddressSanitizer and UndefinedBehaviorSanitizer. Sourced by scripts/test.

# The compiler's flags for both; a finding ends the process.
FO_SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1'

# fo_sanitized SOURCES DIRECTORY: make in DIRECTORY a copy of the sources with a sanitized extension
# (src), a Python to run it with (venv/bin/python), and a directory for what it finds (findings).
fo_sanitized() {
  local sources=$1 dir=$2 python=$2/venv/bin/python
  mkdir -p "$dir/src" "$dir/venv/bin"
  mkdir -m 1777 "$dir/findings"
  fo_copy "$sources" "$dir/src"
  ln -s "${FO_PYTHON%/bin/*}/lib" "$dir/venv/lib"
  cp "${FO_PYTHON%/bin/*}/pyvenv.cfg" "$dir/venv/"
  # shellcheck disable=SC2046,SC2086
  gcc -Wall -Wextra -Werror $FO_SANITIZE -DFINDINGS="\"$dir/findings/finding\"" -o "$python" \
    "$sources/tests/helpers/sanitized.c" -Wl,--export-dynamic \
    $("$FO_PYTHON" -c 'from sysconfig import *; v = get_config_vars()
print("-I" + get_paths()["include"], "-L" + v["LIBDIR"], "-lpython" + v["LDVERSION"])') ||
    die "no Python with sanitizers: it needs a shared libpython with its headers, and gcc's libasan"
  (cd "$dir/src" && CFLAGS=$FO_SANITIZE FUSEOVERLAY_EXTENSION=required \
    "$FO_PYTHON" -W ignore setup.py -q build_ext --inplace --force) >&2 ||
    die "the extension could not be built with sanitizers"
  grep -q __asan_report "$dir"/src/fuseoverlay/native/*.so &&
    grep -q __ubsan_handle "$dir"/src/fuseoverlay/native/*.so ||
    die "the extension was built without sanitizers"
  # Check that a fault is found: a run that cannot fail is worth nothing.
  if "$python" -c 'import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ctypes.memmove(libc.malloc(8), bytes(9), 9)' 2>/dev/null || [ -z "$(ls -A "$dir/findings")" ]; then
    die "AddressSanitizer does not find what it should"
  fi
  rm -f "$dir"/findings/*
}
