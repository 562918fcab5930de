/*
 * Makes one call of a program fail: a library preloaded into a daemon, controlled by a file that
 * the test and the daemon map: the one that FUSEOVERLAY_FAULTS names.
 *
 * Once armed it counts the calls below. The one at which `left` reaches zero fails with `error`
 * instead of being made, and so do the next ones until `times` calls have failed. With `full` only
 * calls that take room on a disk are counted, and all of them fail from there on, until the file
 * is disarmed.
 *
 * With two paths in `exchanged` no call fails: the paths are exchanged before that call, and
 * exchanged back when `times` calls have been made; if `times` is zero, never.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* __NR_listxattrat, since Linux 6.13 */
#define LISTXATTRAT 465

struct control {
    atomic_int armed, left, error, full, times, fired;
    char name[40]; /* of the first call that failed */
    char exchanged[2][1024];
};

static struct control *control;

/* Not when the library is loaded: a warm interpreter learns the file only after it has forked. */
static bool map_control(void)
{
    static _Thread_local bool busy; /* with open, which is counted, too */
    const char *path = busy ? NULL : getenv("FUSEOVERLAY_FAULTS");
    int fd, saved = errno;
    void *found;

    if (!path)
        return false;
    busy = true;
    fd = open(path, O_RDWR | O_CLOEXEC);
    found = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || found == MAP_FAILED)
        abort();
    close(fd);
    control = found;
    busy = false;
    errno = saved;
    return true;
}

static void exchange(const char *name)
{
    int left = atomic_fetch_sub(&control->left, 1), saved = errno;

    if (left != 1 && (!control->times || left != 1 - control->times))
        return;
    if (left == 1)
        strncpy(control->name, name, sizeof(control->name) - 1);
    syscall(SYS_renameat2, AT_FDCWD, control->exchanged[0], AT_FDCWD, control->exchanged[1],
            RENAME_EXCHANGE);
    control->fired++;
    errno = saved;
}

static bool fails(const char *name, bool takes_room)
{
    if (!control && !map_control())
        return false;
    if (!control->armed || (control->full && !takes_room))
        return false;
    if (control->exchanged[0][0]) {
        exchange(name);
        return false;
    }
    if (control->fired && (control->full || control->fired < control->times)) {
        control->fired++;
        errno = control->error;
        return true;
    }
    if (atomic_fetch_sub(&control->left, 1) != 1)
        return false;
    strncpy(control->name, name, sizeof(control->name) - 1);
    errno = control->error;
    control->fired = 1;
    return true;
}

#define FIND(name)                                                                                 \
    if (!next)                                                                                     \
    next = dlsym(RTLD_NEXT, #name)

/* A function of the C library, its parameters and arguments, and whether it takes room. */
#define CALL(type, name, parameters, arguments, takes_room)                                        \
    type name parameters                                                                           \
    {                                                                                              \
        static type(*next) parameters;                                                             \
        FIND(name);                                                                                \
        return fails(#name, takes_room) ? -1 : next arguments;                                     \
    }

#define OPEN(name, before, given)                                                                  \
    int name(before const char *path, int flags, ...)                                              \
    {                                                                                              \
        static int (*next)(before const char *, int, ...);                                         \
        va_list more;                                                                              \
        mode_t mode;                                                                               \
        va_start(more, flags);                                                                     \
        mode = va_arg(more, mode_t);                                                               \
        va_end(more);                                                                              \
        FIND(name);                                                                                \
        return fails(#name, flags & O_CREAT) ? -1 : next(given path, flags, mode);                 \
    }
#define NOTHING
#define FIRST int dir,
#define GIVEN dir,
OPEN(open, NOTHING, NOTHING)
OPEN(open64, NOTHING, NOTHING)
OPEN(openat, FIRST, GIVEN)
OPEN(openat64, FIRST, GIVEN)

struct stat;
struct stat64;
struct statx;
struct timespec;
struct file_handle;
CALL(int, stat, (const char *p, struct stat *s), (p, s), false)
CALL(int, stat64, (const char *p, struct stat64 *s), (p, s), false)
CALL(int, lstat, (const char *p, struct stat *s), (p, s), false)
CALL(int, lstat64, (const char *p, struct stat64 *s), (p, s), false)
CALL(int, fstat, (int f, struct stat *s), (f, s), false)
CALL(int, fstat64, (int f, struct stat64 *s), (f, s), false)
CALL(int, fstatat, (int d, const char *p, struct stat *s, int f), (d, p, s, f), false)
CALL(int, fstatat64, (int d, const char *p, struct stat64 *s, int f), (d, p, s, f), false)
CALL(int, statx, (int d, const char *p, int f, unsigned m, struct statx *s), (d, p, f, m, s), false)
CALL(ssize_t, readlink, (const char *p, char *b, size_t n), (p, b, n), false)
CALL(ssize_t, readlinkat, (int d, const char *p, char *b, size_t n), (d, p, b, n), false)
CALL(int, mkdir, (const char *p, mode_t m), (p, m), true)
CALL(int, mkdirat, (int d, const char *p, mode_t m), (d, p, m), true)
CALL(int, mknod, (const char *p, mode_t m, dev_t r), (p, m, r), true)
CALL(int, mknodat, (int d, const char *p, mode_t m, dev_t r), (d, p, m, r), true)
CALL(int, symlink, (const char *t, const char *p), (t, p), true)
CALL(int, symlinkat, (const char *t, int d, const char *p), (t, d, p), true)
CALL(int, link, (const char *a, const char *b), (a, b), true)
CALL(int, linkat, (int c, const char *a, int d, const char *b, int f), (c, a, d, b, f), true)
CALL(int, unlink, (const char *p), (p), false)
CALL(int, unlinkat, (int d, const char *p, int f), (d, p, f), false)
CALL(int, rmdir, (const char *p), (p), false)
/* A rename to a name that is there, or was a moment ago, takes no room. */
CALL(int, rename, (const char *a, const char *b), (a, b), false)
CALL(int, renameat, (int c, const char *a, int d, const char *b), (c, a, d, b), false)
CALL(int, renameat2, (int c, const char *a, int d, const char *b, unsigned f), (c, a, d, b, f),
     f & RENAME_NOREPLACE)
CALL(int, chmod, (const char *p, mode_t m), (p, m), false)
CALL(int, fchmod, (int f, mode_t m), (f, m), false)
CALL(int, fchmodat, (int d, const char *p, mode_t m, int f), (d, p, m, f), false)
CALL(int, chown, (const char *p, uid_t u, gid_t g), (p, u, g), false)
CALL(int, lchown, (const char *p, uid_t u, gid_t g), (p, u, g), false)
CALL(int, fchown, (int f, uid_t u, gid_t g), (f, u, g), false)
CALL(int, fchownat, (int d, const char *p, uid_t u, gid_t g, int f), (d, p, u, g, f), false)
CALL(int, utimensat, (int d, const char *p, const struct timespec *t, int f), (d, p, t, f), false)
CALL(int, futimens, (int f, const struct timespec *t), (f, t), false)
CALL(int, truncate, (const char *p, off_t n), (p, n), true)
CALL(int, truncate64, (const char *p, off_t n), (p, n), true)
CALL(int, ftruncate, (int f, off_t n), (f, n), true)
CALL(int, ftruncate64, (int f, off_t n), (f, n), true)
CALL(int, fallocate, (int f, int m, off_t o, off_t n), (f, m, o, n), true)
CALL(int, fsync, (int f), (f), false)
CALL(int, fdatasync, (int f), (f), false)
CALL(int, sync_file_range, (int f, off_t o, off_t n, unsigned m), (f, o, n, m), false)
CALL(ssize_t, pread, (int f, void *b, size_t n, off_t o), (f, b, n, o), false)
CALL(ssize_t, pread64, (int f, void *b, size_t n, off_t o), (f, b, n, o), false)
CALL(ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), (f, b, n, o), true)
CALL(ssize_t, pwrite64, (int f, const void *b, size_t n, off_t o), (f, b, n, o), true)
CALL(ssize_t, copy_file_range, (int a, off_t *p, int b, off_t *q, size_t n, unsigned f),
     (a, p, b, q, n, f), true)
CALL(ssize_t, getxattr, (const char *p, const char *k, void *v, size_t n), (p, k, v, n), false)
CALL(ssize_t, lgetxattr, (const char *p, const char *k, void *v, size_t n), (p, k, v, n), false)
CALL(ssize_t, fgetxattr, (int f, const char *k, void *v, size_t n), (f, k, v, n), false)
CALL(ssize_t, listxattr, (const char *p, char *v, size_t n), (p, v, n), false)
CALL(ssize_t, llistxattr, (const char *p, char *v, size_t n), (p, v, n), false)
CALL(ssize_t, flistxattr, (int f, char *v, size_t n), (f, v, n), false)
CALL(int, setxattr, (const char *p, const char *k, const void *v, size_t n, int f), (p, k, v, n, f),
     true)
CALL(int, lsetxattr, (const char *p, const char *k, const void *v, size_t n, int f),
     (p, k, v, n, f), true)
CALL(int, fsetxattr, (int d, const char *k, const void *v, size_t n, int f), (d, k, v, n, f), true)
CALL(int, removexattr, (const char *p, const char *k), (p, k), false)
CALL(int, lremovexattr, (const char *p, const char *k), (p, k), false)
CALL(int, fremovexattr, (int f, const char *k), (f, k), false)
CALL(int, name_to_handle_at, (int d, const char *p, struct file_handle *h, int *m, int f),
     (d, p, h, m, f), false)
CALL(int, open_by_handle_at, (int m, struct file_handle *h, int f), (m, h, f), false)

/* Flags of inodes, reflinks. */
int ioctl(int fd, unsigned long request, ...)
{
    static int (*next)(int, unsigned long, ...);
    va_list more;
    void *argument;

    va_start(more, request);
    argument = va_arg(more, void *);
    va_end(more);
    FIND(ioctl);
    return fails("ioctl", false) ? -1 : next(fd, request, argument);
}

/* System calls on files that the C library has no function for. */
long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long a[6];
    va_list more;

    va_start(more, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(more, long);
    va_end(more);
    if ((number == SYS_openat2 || number == SYS_getdents64 || number == LISTXATTRAT) && fails("syscall", false))
        return -1;
    FIND(syscall);
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
