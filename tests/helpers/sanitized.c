/*
 * A Python whose memory AddressSanitizer watches, for an extension built with sanitizers: see
 * scripts/sanitized.sh. The sanitizer's library has to be loaded before anything else. An
 * interpreter that is linked with it needs no LD_PRELOAD, which some daemons' environment would
 * lack.
 *
 * FINDINGS is the prefix of the files that findings are written to. A finding ends the process.
 */
#include <Python.h>

#include <stdlib.h>

/* Called by the libraries. */
const char *__asan_default_options(void);
const char *__ubsan_default_options(void);

/* What Python itself never frees is no leak. Tests whose daemon is gone expect the bus error that
 * its mapped files give. Preloaded libraries of the tests come before the sanitizer's. */
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
    /* Each object gets its own block of memory, whose bounds are watched. */
    setenv("PYTHONMALLOC", "malloc", 1);
    return Py_BytesMain(argc, argv);
}
