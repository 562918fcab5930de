/*
 * Answers requests without Python's help, from what the overlay has prepared. The overlay withdraws
 * an answer that is no longer true before it answers the request that made it so. This code and the
 * overlay take turns in one thread.
 */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

/* Larger writes may make the page cache wait for the disk, so they go to a thread. */
#define INLINE_WRITE (128 << 10)
/* Copying a smaller READ is faster than sending it through a pipe. */
#define SPLICED (32 << 10)

struct prepared prepared = {.strange_uid = -1, .strange_gid = -1};

/* A buffer that grows to the largest READ so far. */
static char *room;
static size_t room_size;

/* Replace owners that the user namespace does not map; overlay/identity.py does the same. */
static void name_strangers(struct fuse_attr *attr)
{
    bool strange_uid = attr->uid == prepared.strange_uid;
    bool strange_gid = attr->gid == prepared.strange_gid;

    if (strange_uid)
        attr->uid = prepared.shown_uid;
    if (strange_gid)
        attr->gid = prepared.shown_gid;
    if ((strange_uid || strange_gid) && !S_ISDIR(attr->mode))
        attr->mode &= ~(S_ISUID | S_ISGID);
    if (strange_gid)
        attr->mode &= ~S_IRWXG | (attr->mode & S_IRWXO) << 3;
}

void fill_attr(struct fuse_attr *attr, uint64_t ino, const struct stat *st)
{
    *attr = (struct fuse_attr){
        .ino = ino, .size = st->st_size, .blocks = st->st_blocks,
        .atime = st->st_atim.tv_sec, .atimensec = st->st_atim.tv_nsec,
        .mtime = st->st_mtim.tv_sec, .mtimensec = st->st_mtim.tv_nsec,
        .ctime = st->st_ctim.tv_sec, .ctimensec = st->st_ctim.tv_nsec,
        .mode = st->st_mode, .nlink = st->st_nlink, .uid = st->st_uid, .gid = st->st_gid,
        .rdev = st->st_rdev, .blksize = st->st_blksize};
    name_strangers(attr);
}

static bool reply_attr(const struct fuse_in_header *in, const struct stat *st)
{
    struct fuse_attr_out out = {0};

    /* Nobody can look up a file without a name again, so the kernel need not keep this. */
    if (st->st_nlink) {
        out.attr_valid = prepared.valid;
        out.attr_valid_nsec = prepared.valid_nsec;
    }
    fill_attr(&out.attr, in->nodeid, st);
    send_reply(in->unique, 0, &out, sizeof(out));
    return true;
}

static bool reply_no_xattr(const struct fuse_in_header *in)
{
    const char *name = (const char *)(in + 1) + sizeof(struct fuse_getxattr_in);

    if (strncmp(name, "security.", 9) == 0)
        send_reply(in->unique, ENODATA, NULL, 0);
    else if (strncmp(name, "system.posix_acl_", 17) == 0)
        send_reply(in->unique, prepared.acls ? ENODATA : EOPNOTSUPP, NULL, 0);
    else
        return false;
    return true;
}

static bool reply_no_xattrs(const struct fuse_in_header *in)
{
    const struct fuse_getxattr_in *arg = (const void *)(in + 1);
    struct fuse_getxattr_out out = {0};

    /* Size 0 asks how much room the names need. */
    send_reply(in->unique, 0, &out, arg->size ? 0 : sizeof(out));
    return true;
}

static bool reply_spliced(const struct fuse_in_header *in, int fd)
{
    const struct fuse_read_in *arg = (const void *)(in + 1);
    struct stat st;
    size_t size = arg->size;

    if (size < SPLICED || fstat(fd, &st) < 0 || (off_t)arg->offset >= st.st_size)
        return false;
    if ((off_t)(arg->offset + size) > st.st_size)
        size = st.st_size - arg->offset;
    return size >= SPLICED && splice_reply(in->unique, fd, arg->offset, size);
}

/* Answers only with data in the page cache; a Python thread reads the rest. `whole`: the status of
 * a file that has to be read to its end or not at all. */
static bool reply_data(const struct fuse_in_header *in, int fd, const struct stat *whole)
{
    const struct fuse_read_in *arg = (const void *)(in + 1);
    struct iovec iov;
    struct stat st;
    ssize_t n;

    if (!whole && reply_spliced(in, fd))
        return true;
    if (arg->size > room_size) {
        char *more = realloc(room, arg->size);
        if (!more)
            return false;
        room = more;
        room_size = arg->size;
    }
    iov = (struct iovec){room, arg->size};
    n = preadv2(fd, &iov, 1, arg->offset, RWF_NOWAIT);
    if (n < 0 || (whole && (size_t)n == arg->size))
        return false;
    if ((size_t)n < arg->size) {
        if (!whole && fstat(fd, &st) < 0)
            return false;
        if ((off_t)(arg->offset + n) < (whole ? whole : &st)->st_size)
            return false;
    }
    send_reply(in->unique, 0, room, n);
    return true;
}

static bool reply_written(const struct fuse_in_header *in, int fd)
{
    const struct fuse_write_in *arg = (const void *)(in + 1);
    struct fuse_write_out out = {0};
    ssize_t n;

    if (arg->write_flags & FUSE_WRITE_KILL_SUIDGID || arg->size >= INLINE_WRITE)
        return false;
    n = pwrite(fd, arg + 1, arg->size, arg->offset);
    out.size = n < 0 ? 0 : n;
    send_reply(in->unique, n < 0 ? errno : 0, &out, sizeof(out));
    return true;
}

/* Changes of the owner, of the mode or of the times are made here. Python gets changes of size; a
 * change of nothing, which ends setuid; and several kinds at once, since the first must be undone
 * if the second fails. */
#define OWNER (FATTR_UID | FATTR_GID)
#define TIMES (FATTR_ATIME | FATTR_MTIME)
#define MEANINGLESS (FATTR_FH | FATTR_ATIME_NOW | FATTR_MTIME_NOW | FATTR_LOCKOWNER | FATTR_CTIME)

static struct timespec new_time(uint32_t given, uint32_t now, uint64_t seconds, uint32_t ns)
{
    if (!given)
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    if (now)
        return (struct timespec){.tv_nsec = UTIME_NOW};
    return (struct timespec){.tv_sec = seconds, .tv_nsec = ns};
}

static bool reply_changed(const struct fuse_in_header *in, int fd)
{
    const struct fuse_setattr_in *arg = (const void *)(in + 1);
    uint32_t valid = arg->valid;
    struct timespec times[2] = {
        new_time(valid & FATTR_ATIME, valid & FATTR_ATIME_NOW, arg->atime, arg->atimensec),
        new_time(valid & FATTR_MTIME, valid & FATTR_MTIME_NOW, arg->mtime, arg->mtimensec)};
    struct stat st;

    if (valid & OWNER) {
        valid &= ~FATTR_KILL_SUIDGID; /* chown(2) does that, unless the caller's groups matter */
        if (in->uid != 0 &&
            (fstat(fd, &st) < 0 || (st.st_mode & (S_ISGID | S_IXGRP)) == S_ISGID))
            return false;
    }
    if (valid & ~(OWNER | FATTR_MODE | TIMES | MEANINGLESS) ||
        !!(valid & OWNER) + !!(valid & FATTR_MODE) + !!(valid & TIMES) != 1)
        return false;
    if ((valid & OWNER && fchown(fd, valid & FATTR_UID ? arg->uid : (uid_t)-1,
                                 valid & FATTR_GID ? arg->gid : (gid_t)-1) < 0) ||
        (valid & FATTR_MODE && fchmod(fd, arg->mode & 07777) < 0) ||
        (valid & TIMES && futimens(fd, times) < 0)) {
        send_reply(in->unique, errno, NULL, 0);
        return true;
    }
    /* If fstat(2) fails, the change is made all the same; Python then makes it once more. */
    return fstat(fd, &st) == 0 && reply_attr(in, &st);
}

static bool answer_bound(const struct fuse_in_header *in, PyObject *value)
{
    long entry = PyLong_AsLong(value);
    int fd = entry >> BOUND_BITS;
    struct stat st;

    switch (in->opcode) {
    case FUSE_READ:
        return entry & BOUND_READ && reply_data(in, fd, NULL);
    case FUSE_WRITE:
        return entry & BOUND_WRITE && reply_written(in, fd);
    case FUSE_GETATTR:
        return entry & BOUND_ATTR && fstat(fd, &st) == 0 && reply_attr(in, &st);
    case FUSE_SETATTR:
        return entry & BOUND_ATTR && entry & BOUND_WRITE && reply_changed(in, fd);
    case FUSE_GETXATTR:
        return entry & BOUND_NO_XATTR && reply_no_xattr(in);
    case FUSE_LISTXATTR:
        return entry & BOUND_NO_XATTR && reply_no_xattrs(in);
    default:
        return false;
    }
}

static bool answer_plain(const struct fuse_in_header *in, PyObject *real)
{
    PyObject *fd = PyDict_GetItemWithError(prepared.directories, real);
    struct stat st;

    return in->opcode == FUSE_GETATTR && fd && fstat(PyLong_AsLong(fd), &st) == 0 &&
           reply_attr(in, &st);
}

/* Small files only: more of a larger one will be read, so its descriptor is worth keeping. */
static bool answer_listed_read(const struct fuse_in_header *in, PyObject *listed, int dir_fd,
                               const char *name)
{
    int flags = O_RDONLY | O_NOATIME | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = prepared.read_listed ? openat(dir_fd, name, flags) : -1;
    struct stat st;
    bool done;

    if (fd < 0)
        return false;
    done = fstat(fd, &st) == 0 && is_listed(in->nodeid, listed, &st) && reply_data(in, fd, &st);
    close(fd);
    return done;
}

static bool answer_listed(const struct fuse_in_header *in, PyObject *listed)
{
    PyObject *real = PyTuple_GetItem(listed, LISTED_REAL);
    PyObject *dir_fd = PyDict_GetItemWithError(prepared.directories, real);
    const char *name = PyBytes_AsString(PyTuple_GetItem(listed, LISTED_NAME));
    struct stat st;
    int fd;

    if (!dir_fd || !name)
        return false;
    fd = PyLong_AsLong(dir_fd);
    switch (in->opcode) {
    case FUSE_READ:
        return answer_listed_read(in, listed, fd, name);
    case FUSE_GETATTR:
        return fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
               is_listed(in->nodeid, listed, &st) && reply_attr(in, &st);
    case FUSE_GETXATTR:
        return PyTuple_GetItem(listed, LISTED_XATTRS) == Py_False && reply_no_xattr(in);
    case FUSE_LISTXATTR:
        return PyTuple_GetItem(listed, LISTED_XATTRS) == Py_False && reply_no_xattrs(in);
    default:
        return false;
    }
}

/* A name that a merged directory does not have gets a negative entry, which the kernel keeps. */
static bool answer_absent(const struct fuse_in_header *in, PyObject *key, size_t size)
{
    struct fuse_entry_out out = {.entry_valid = prepared.valid,
                                 .entry_valid_nsec = prepared.valid_nsec};
    PyObject *names = PyDict_GetItemWithError(prepared.names, key);
    const char *text = (const char *)(in + 1);
    size_t length = size - sizeof(*in) - 1;
    PyObject *name;
    int found;

    if (!names || length > NAME_MAX)
        return false;
    name = PyBytes_FromStringAndSize(text, length);
    found = name ? PyDict_Contains(names, name) : -1;
    Py_XDECREF(name);
    if (found != 0)
        return false;
    send_reply(in->unique, 0, &out, sizeof(out));
    return true;
}

/* Some language runtimes call isatty(3) on every file they open. */
static bool answer_ioctl(const struct fuse_in_header *in)
{
    const struct fuse_ioctl_in *arg = (const void *)(in + 1);

    if (arg->cmd != TCGETS)
        return false;
    send_reply(in->unique, ENOTTY, NULL, 0);
    return true;
}

bool answer(const struct fuse_in_header *in, size_t size)
{
    PyObject *key, *value;
    bool done = false;

    if (!prepared.inodes)
        return false;
    switch (in->opcode) {
    case FUSE_LOOKUP:
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_GETATTR:
    case FUSE_SETATTR:
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
        break;
    case FUSE_IOCTL:
        return answer_ioctl(in);
    default:
        return false;
    }
    key = PyLong_FromUnsignedLongLong(in->nodeid);
    if (key && in->opcode == FUSE_LOOKUP)
        done = answer_absent(in, key, size);
    else if (key && (value = PyDict_GetItemWithError(prepared.bound, key)))
        done = answer_bound(in, value);
    else if (key && (value = PyDict_GetItemWithError(prepared.plain, key)))
        done = answer_plain(in, value);
    else if (key && (value = PyDict_GetItemWithError(prepared.inodes, key)) &&
             PyTuple_CheckExact(value))
        done = answer_listed(in, value);
    Py_XDECREF(key);
    PyErr_Clear();
    return done;
}
