/*
 * The filter between /dev/fuse and libfuse. It decides nothing: `extension.py` says how each kind
 * of request is handled.
 */
#include "native.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Waiting for the next request here is cheaper than in Python's event loop. At first we poll
 * without sleeping: falling asleep and waking up takes as long as most clients need until their
 * next request, and they would wait for it. After ROW_NS whatever else is ready in the loop gets
 * its turn. */
#define AWAKE_NS 100000
#define ASLEEP_NS 1000000
#define ROW_NS 2000000

struct filter filter = {.event_fd = -1};

/* A file opened without a handle has handle 0. All I/O is by inode. */
static void set_handle(const struct fuse_in_header *in)
{
    uint64_t *fh = (uint64_t *)(in + 1);

    switch (in->opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
        *fh = in->nodeid;
    }
}

static void note_flags(const struct fuse_in_header *in)
{
    const void *arg = in + 1;

    filter.last_flags = 0;
    filter.last_uid = in->uid;
    filter.last_gid = in->gid;
    filter.last_pid = in->pid;
    if (in->opcode == FUSE_WRITE)
        filter.last_flags = ((const struct fuse_write_in *)arg)->write_flags;
    else if (in->opcode == FUSE_SETATTR)
        filter.last_flags = ((const struct fuse_setattr_in *)arg)->valid;
}

static void note_init(const struct fuse_in_header *in)
{
    const struct fuse_init_in *arg = (const void *)(in + 1);

    filter.init_unique = in->unique;
    filter.kernel_major = arg->major;
    filter.kernel_minor = arg->minor;
    filter.offered = arg->flags;
}

static bool take(const struct fuse_in_header *in, size_t size)
{
    uint64_t one = 1;
    PyObject *request = PyBytes_FromStringAndSize((const char *)in, size);

    if (!request || PyList_Append(filter.taken, request) < 0 ||
        write(filter.event_fd, &one, sizeof(one)) < 0) {
        PyErr_Clear();
        send_reply(in->unique, ENOMEM, NULL, 0);
    } else
        filter.pending++;
    Py_XDECREF(request);
    return true;
}

static bool send_result(const struct fuse_in_header *in, PyObject *result)
{
    Py_buffer payload;

    if (in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET)
        return true; /* These have no reply. */
    if (result == Py_None)
        send_reply(in->unique, 0, NULL, 0);
    else if (PyLong_Check(result))
        send_reply(in->unique, PyLong_AsLong(result), NULL, 0);
    else if (PyObject_GetBuffer(result, &payload, PyBUF_SIMPLE) == 0) {
        send_reply(in->unique, 0, payload.buf, payload.len);
        PyBuffer_Release(&payload);
    } else {
        PyErr_Clear();
        send_reply(in->unique, EIO, NULL, 0);
    }
    return true;
}

static bool call(const struct fuse_in_header *in, size_t size)
{
    PyObject *result = PyObject_CallFunction(
        filter.function[in->opcode], "KIIIy#", (unsigned long long)in->nodeid, in->uid, in->gid,
        in->pid, (const char *)(in + 1), (Py_ssize_t)(size - sizeof(*in)));
    bool done;

    if (!result)
        PyErr_WriteUnraisable(filter.function[in->opcode]);
    done = result && result != Py_NotImplemented && send_result(in, result);
    Py_XDECREF(result);
    return done;
}

/* Whether the request was dealt with here, so that libfuse need not see it. */
static bool decide(const struct fuse_in_header *in, size_t size)
{
    if (in->opcode == FUSE_INIT)
        note_init(in);
    if (in->opcode >= OPCODES)
        return false;
    switch (filter.action[in->opcode]) {
    case ANSWER:
        send_reply(in->unique, filter.error[in->opcode], NULL, 0);
        return true;
    case TAKE:
        return answer(in, size) || take(in, size);
    default:
        set_handle(in);
        note_flags(in);
        if (answer(in, size))
            return true;
        return filter.action[in->opcode] == CALL && call(in, size);
    }
}

static void log_answer(const struct fuse_in_header *in, size_t size)
{
    PyObject *result = PyObject_CallFunction(
        filter.log, "IKIIIy#ii", in->opcode, (unsigned long long)in->nodeid, in->uid, in->gid,
        in->pid, (const char *)(in + 1), (Py_ssize_t)(size - sizeof(*in)), replies.last_error,
        in->opcode == FUSE_LOOKUP && replies.last_absent);

    if (!result)
        PyErr_WriteUnraisable(filter.log);
    Py_XDECREF(result);
}

static bool dispatch(const struct fuse_in_header *in, size_t size)
{
    int pending = filter.pending;
    bool done;

    replies.last_error = 0;
    done = decide(in, size);
    /* A request that was handed to Python is logged by its handler. */
    if (filter.log && done && filter.pending == pending)
        log_answer(in, size);
    return done;
}

static bool handled(const struct fuse_in_header *in, size_t size)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    bool done = dispatch(in, size);

    PyGILState_Release(gil);
    return done;
}

static long long now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* If the CPUs have other work, polling keeps the client from going on. So each poll in vain doubles
 * the number of times that polling is left out, up to 63. */
static bool wait_awake(struct pollfd *poll_fd)
{
    static unsigned int in_vain, left_out;
    long long until;
    int ready;

    if (left_out) {
        left_out--;
        return false;
    }
    until = now_ns() + AWAKE_NS;
    do
        ready = poll(poll_fd, 1, 0);
    while (!ready && now_ns() < until);
    in_vain = ready > 0 ? 0 : (2 * in_vain + 1) & 63;
    left_out = in_vain;
    return ready > 0;
}

static bool wait_for_request(bool idle)
{
    struct pollfd poll_fd = {.fd = replies.fd, .events = POLLIN};
    struct timespec asleep = {.tv_nsec = ASLEEP_NS};

    if (!idle)
        return poll(&poll_fd, 1, 0) > 0;
    return wait_awake(&poll_fd) || ppoll(&poll_fd, 1, &asleep, NULL) > 0;
}

/* Count a request that is answered later. */
static void note_pending(const struct fuse_in_header *in)
{
    if (in->opcode != FUSE_FORGET && in->opcode != FUSE_BATCH_FORGET &&
        in->opcode != FUSE_INTERRUPT)
        filter.pending++;
}

void note_answered(void)
{
    if (filter.pending)
        filter.pending--;
}

bool another_request(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    /* Requests that Python is working on need a turn of its event loop, so do not wait here. */
    bool idle = !filter.pending;
    bool ready;

    Py_BEGIN_ALLOW_THREADS
    ready = wait_for_request(idle);
    Py_END_ALLOW_THREADS
    PyGILState_Release(gil);
    return ready;
}

/* The kernel has ended the connection: no more requests will come, and whoever has unmounted may
 * want to unmount what lies below the layers. */
static void tell_end(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *ended = filter.ended;
    PyObject *result;

    filter.ended = NULL;
    result = ended ? PyObject_CallNoArgs(ended) : NULL;
    if (ended && !result)
        PyErr_WriteUnraisable(ended);
    Py_XDECREF(result);
    Py_XDECREF(ended);
    PyGILState_Release(gil);
}

/* Hooks: libfuse calls these in place of read(2) and writev(2). */

static ssize_t filtered_read(int fd, void *buf, size_t size, void *userdata)
{
    long long until = now_ns() + ROW_NS;

    do {
        ssize_t n = read(fd, buf, size);
        if (n < (ssize_t)sizeof(struct fuse_in_header)) {
            if (n < 0 && errno == EAGAIN)
                errno = EINTR; /* pyfuse3 takes this for "come again" */
            else if (n < 0 && errno == ENODEV) {
                tell_end();
                errno = ENODEV;
            }
            return n;
        }
        if (!handled(buf, n)) {
            note_pending(buf);
            return n;
        }
    } while (now_ns() < until && another_request());
    errno = EINTR;
    return -1;
}

static ssize_t filtered_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    const struct fuse_out_header *out = iov[0].iov_base;

    if (filter.init_unique && out->unique == filter.init_unique) {
        filter.init_unique = 0;
        if (!out->error && count > 1 && iov[1].iov_len >= FUSE_COMPAT_22_INIT_OUT_SIZE) {
            struct fuse_init_out *init = iov[1].iov_base;
            /* max_pages stays: it bounds READ as well. */
            if (filter.max_write && filter.max_write < init->max_write)
                init->max_write = filter.max_write;
            init->flags |= filter.set_flags & filter.offered;
            init->flags &= ~filter.clear_flags;
            filter.agreed = init->flags;
            filter.minor = init->minor;
        }
    }
    if (out->unique)
        note_answered();
    return writev(fd, iov, count);
}

/* The mount */

struct custom_io {
    ssize_t (*writev)(int fd, struct iovec *iov, int count, void *userdata);
    ssize_t (*read)(int fd, void *buf, size_t buf_len, void *userdata);
    void *splice_receive, *splice_send, *clone_fd;
};

static bool attach(void *libfuse, struct fuse_session *session)
{
    struct custom_io io = {.writev = filtered_writev, .read = filtered_read};
    int (*get_fd)(struct fuse_session *) = dlsym(libfuse, "fuse_session_fd");
    int (*custom_io)(struct fuse_session *, const struct custom_io *, int) =
        dlsym(libfuse, "fuse_session_custom_io");
    int (*custom_io_317)(struct fuse_session *, const struct custom_io *, size_t, int) =
        dlsym(libfuse, "fuse_session_custom_io_317");
    int fd = get_fd ? get_fd(session) : -1;

    if (fd < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        return false;
    replies.fd = fd;
    if (custom_io_317)
        return custom_io_317(session, &io, sizeof(io), fd) == 0;
    return custom_io && custom_io(session, &io, fd) == 0;
}

__attribute__((visibility("default"))) int fuse_session_mount(struct fuse_session *session,
                                                              const char *mountpoint)
{
    int (*mount)(struct fuse_session *, const char *);
    void *libfuse;
    Dl_info caller;
    int result;

    /* Look up through the caller: it may have brought a libfuse of its own. */
    if (!dladdr(__builtin_return_address(0), &caller))
        return -1;
    libfuse = dlopen(caller.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    mount = libfuse ? dlsym(libfuse, "fuse_session_mount") : NULL;
    if (!mount || mount == fuse_session_mount)
        return -1;
    result = mount(session, mountpoint);
    if (result == 0 && filter.event_fd >= 0)
        filter.attached = attach(libfuse, session);
    dlclose(libfuse);
    return result;
}
