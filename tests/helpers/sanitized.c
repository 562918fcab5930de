/*
 * A Python whose memory AddressSanitizer watches, for an extension that was built so:
 * scripts/sanitized.sh. The library has to be there before anything else, and an interpreter that
 * was linked with it needs no LD_PRELOAD, which the environment of some daemon would lack.
 *
 * FINDINGS: where it writes what it finds, which ends the process.
 */
#include <Python.h>

#include <stdlib.h>

/* Called by the libraries. */
const char *__asan_default_options(void);
const char *__ubsan_default_options(void);

/* What Python itself never frees is no leak. A mapping of a file whose daemon is gone is a bus error,
 * which tests of that expect. Libraries of the tests come before this one's. */
const char *__asan_default_options(void)
{
    return "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=1:handle_sigbus=0:"
           "verify_asan_link_order=0:quarantine_size_mb=16:log_path=" FINDINGS;
}

const char *__ubsan_default_options(void)
{
    return "halt_on_error=1:print_stacktrace=1:log_path=" FINDINGS;
}

int main(int argc, char **argv)
{
    /* Each object is a block of its own, whose end is watched. */
    setenv("PYTHONMALLOC", "malloc", 1);
    return Py_BytesMain(argc, argv);
}
