/*
 * A filter on the wire between /dev/fuse and libfuse, for what pyfuse3 does not pass on.
 * docs/native.md explains it, and what happens when it does not take effect.
 *
 * It decides nothing: `native.py` says what to do with each kind of request, and which
 * descriptors may be read and written here. Structures and constants: <linux/fuse.h>, the
 * kernel's ABI. Every function but the hooks is called with the GIL held.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define OPCODES 64

/* What becomes of a request, by opcode. */
enum action {
    PASS,   /* libfuse and pyfuse3 see it */
    ANSWER, /* answered with a fixed error number, 0 for success */
    TAKE,   /* handed to Python as it is */
};

/* What may be answered from a bound descriptor, see `bound`. */
enum { BOUND_READ = 1, BOUND_WRITE = 2, BOUND_ATTR = 4, BOUND_NO_XATTR = 8, BOUND_BITS = 4 };

/* After an answer of ours the next request is waited for here, not in Python's event loop: so
 * long, and so many in a row, that nobody else waits for more than about a millisecond. */
#define LINGER_NS 50000
#define IN_A_ROW 32

static struct {
    bool attached; /* libfuse reads and writes through us */
    int fd;
    int event_fd; /* counts requests in `taken` */
    enum action action[OPCODES];
    int error[OPCODES];
    uint64_t passed[OPCODES], answered[OPCODES];
    /* INIT */
    uint64_t init_unique;
    uint32_t kernel_major, kernel_minor, minor, offered, agreed, set_flags, clear_flags;
    /* The request that was passed on last. */
    uint32_t last_flags;
    uint64_t attr_valid;
    uint32_t attr_valid_nsec;
    char *reply; /* room for the largest READ */
    size_t reply_size;
} filter = {.fd = -1, .event_fd = -1};

static PyObject *bound; /* dict: nodeid -> descriptor << BOUND_BITS | BOUND_... */
static PyObject *taken; /* list of bytes: whole requests */

/* Replies */

static void send_reply(uint64_t unique, int error, const void *payload, size_t size)
{
    struct fuse_out_header out = {
        .len = sizeof(out) + (error ? 0 : size), .error = -error, .unique = unique};
    struct iovec iov[2] = {{&out, sizeof(out)}, {(void *)payload, error ? 0 : size}};

    /* ENOENT: the caller was interrupted and waits no more. */
    if (writev(filter.fd, iov, 2) < 0 && error == 0 && errno != ENOENT)
        send_reply(unique, errno, NULL, 0);
}

static void copy_time(uint64_t *seconds, uint32_t *nanoseconds, const struct timespec *from)
{
    *seconds = from->tv_sec;
    *nanoseconds = from->tv_nsec;
}

static bool answer_getattr(const struct fuse_in_header *in, int fd)
{
    struct fuse_attr_out out = {0};
    struct stat st;

    if (fstat(fd, &st) < 0)
        return false;
    /* Nobody can find a file without a name again: nothing to keep. */
    out.attr_valid = st.st_nlink ? filter.attr_valid : 0;
    out.attr_valid_nsec = st.st_nlink ? filter.attr_valid_nsec : 0;
    out.attr = (struct fuse_attr){
        .ino = in->nodeid, .size = st.st_size, .blocks = st.st_blocks, .mode = st.st_mode,
        .nlink = st.st_nlink, .uid = st.st_uid, .gid = st.st_gid, .blksize = st.st_blksize};
    copy_time(&out.attr.atime, &out.attr.atimensec, &st.st_atim);
    copy_time(&out.attr.mtime, &out.attr.mtimensec, &st.st_mtim);
    copy_time(&out.attr.ctime, &out.attr.ctimensec, &st.st_ctim);
    send_reply(in->unique, 0, &out, sizeof(out));
    return true;
}

/* Only what is in the page cache: the rest is read in a thread of Python's. */
static bool answer_read(const struct fuse_in_header *in, const struct fuse_read_in *arg, int fd)
{
    struct iovec iov;
    struct stat st;
    ssize_t n;

    if (arg->size > filter.reply_size) {
        char *more = realloc(filter.reply, arg->size);
        if (!more)
            return false;
        filter.reply = more;
        filter.reply_size = arg->size;
    }
    iov = (struct iovec){filter.reply, arg->size};
    n = preadv2(fd, &iov, 1, arg->offset, RWF_NOWAIT);
    if (n < 0)
        return false;
    if ((size_t)n < arg->size && (fstat(fd, &st) < 0 || (off_t)(arg->offset + n) < st.st_size))
        return false;
    send_reply(in->unique, 0, filter.reply, n);
    return true;
}

static bool answer_write(const struct fuse_in_header *in, const struct fuse_write_in *arg, int fd)
{
    struct fuse_write_out out = {0};
    ssize_t n;

    if (arg->write_flags & FUSE_WRITE_KILL_SUIDGID)
        return false;
    n = pwrite(fd, arg + 1, arg->size, arg->offset);
    out.size = n < 0 ? 0 : n;
    send_reply(in->unique, n < 0 ? errno : 0, &out, sizeof(out));
    return true;
}

/* Larger writes may make the page cache wait for the disk: a thread's work. */
#define INLINE_WRITE (128 << 10)

static bool answer_from_bound(const struct fuse_in_header *in, size_t size)
{
    const void *arg = in + 1;
    PyObject *key, *value;
    long entry;
    int fd;

    if (in->opcode != FUSE_READ && in->opcode != FUSE_WRITE && in->opcode != FUSE_GETATTR &&
        in->opcode != FUSE_GETXATTR)
        return false;
    key = PyLong_FromUnsignedLongLong(in->nodeid);
    value = key ? PyDict_GetItemWithError(bound, key) : NULL;
    entry = value ? PyLong_AsLong(value) : 0;
    Py_XDECREF(key);
    PyErr_Clear();
    if (entry <= 0)
        return false;
    fd = entry >> BOUND_BITS;
    switch (in->opcode) {
    case FUSE_READ:
        return entry & BOUND_READ && answer_read(in, arg, fd);
    case FUSE_WRITE:
        return entry & BOUND_WRITE && size < INLINE_WRITE && answer_write(in, arg, fd);
    case FUSE_GETATTR:
        return entry & BOUND_ATTR && answer_getattr(in, fd);
    default:
        if (!(entry & BOUND_NO_XATTR) ||
            strncmp((const char *)arg + sizeof(struct fuse_getxattr_in), "security.", 9) != 0)
            return false;
        send_reply(in->unique, ENODATA, NULL, 0);
        return true;
    }
}

/* Requests */

/* A file that was opened without a handle has handle 0. All I/O is by inode. */
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

    if (!request || PyList_Append(taken, request) < 0 ||
        write(filter.event_fd, &one, sizeof(one)) < 0) {
        PyErr_Clear();
        send_reply(in->unique, ENOMEM, NULL, 0);
    }
    Py_XDECREF(request);
    return true;
}

/* Whether the request needs nobody else. */
static bool dispatch(const struct fuse_in_header *in, size_t size)
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
        return take(in, size);
    default:
        set_handle(in);
        note_flags(in);
        return answer_from_bound(in, size);
    }
}

static bool handled(const struct fuse_in_header *in, size_t size)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    bool done = dispatch(in, size);

    if (in->opcode < OPCODES)
        ++*(done ? &filter.answered[in->opcode] : &filter.passed[in->opcode]);
    PyGILState_Release(gil);
    return done;
}

static bool another_request(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    struct timespec linger = {.tv_nsec = LINGER_NS};
    PyGILState_STATE gil = PyGILState_Ensure();
    int ready;

    Py_BEGIN_ALLOW_THREADS
    ready = ppoll(&poll_fd, 1, &linger, NULL);
    Py_END_ALLOW_THREADS
    PyGILState_Release(gil);
    return ready > 0;
}

/* Hooks: libfuse calls these in place of read(2) and writev(2) */

static ssize_t filtered_read(int fd, void *buf, size_t size, void *userdata)
{
    int answers = 0;

    do {
        ssize_t n = read(fd, buf, size);
        if (n < (ssize_t)sizeof(struct fuse_in_header)) {
            if (n < 0 && errno == EAGAIN)
                errno = EINTR; /* which pyfuse3 takes for "come again" */
            return n;
        }
        if (!handled(buf, n))
            return n;
    } while (++answers < IN_A_ROW && another_request(fd));
    errno = EINTR;
    return -1;
}

static ssize_t filtered_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    const struct fuse_out_header *out = iov[0].iov_base;

    if (filter.init_unique && out->unique == filter.init_unique) {
        filter.init_unique = 0;
        if (!out->error && count > 1 && iov[1].iov_len >= 16) {
            struct fuse_init_out *init = iov[1].iov_base;
            init->flags |= filter.set_flags & filter.offered;
            init->flags &= ~filter.clear_flags;
            filter.agreed = init->flags;
            filter.minor = init->minor;
        }
    }
    return writev(fd, iov, count);
}

/* The mount: called by pyfuse3, because this symbol is found before libfuse's own */

struct fuse_session;

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
    filter.fd = fd;
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

    /* Ask in the name of the caller: it may have brought a libfuse of its own. */
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

/* What Python calls */

PyDoc_STRVAR(setup_doc,
    "setup(attr_valid_ns)\n\nAttach to the next mount.");
static PyObject *py_setup(PyObject *self, PyObject *args)
{
    unsigned long long valid;

    if (!PyArg_ParseTuple(args, "K", &valid))
        return NULL;
    filter.attr_valid = valid / 1000000000;
    filter.attr_valid_nsec = valid % 1000000000;
    if (filter.event_fd < 0)
        filter.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (filter.event_fd < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromLong(filter.event_fd);
}

PyDoc_STRVAR(init_flags_doc,
    "init_flags(set, clear)\n\nINIT flags to agree to if the kernel offers them, and not to.");
static PyObject *py_init_flags(PyObject *self, PyObject *args)
{
    if (!PyArg_ParseTuple(args, "II", &filter.set_flags, &filter.clear_flags))
        return NULL;
    Py_RETURN_NONE;
}

static bool valid_opcode(unsigned int opcode)
{
    if (opcode < OPCODES)
        return true;
    PyErr_SetString(PyExc_ValueError, "no such opcode");
    return false;
}

PyDoc_STRVAR(answer_doc,
    "answer(opcode, error)\n\nAnswer such requests with this error number; 0: success.");
static PyObject *py_answer(PyObject *self, PyObject *args)
{
    unsigned int opcode;
    int error;

    if (!PyArg_ParseTuple(args, "Ii", &opcode, &error) || !valid_opcode(opcode))
        return NULL;
    filter.action[opcode] = ANSWER;
    filter.error[opcode] = error;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(take_doc, "take(opcode)\n\nHand such requests over in `taken`.");
static PyObject *py_take(PyObject *self, PyObject *args)
{
    unsigned int opcode;

    if (!PyArg_ParseTuple(args, "I", &opcode) || !valid_opcode(opcode))
        return NULL;
    filter.action[opcode] = TAKE;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_doc,
    "reply(unique, error, payload)\n\nAnswer a request that was taken.");
static PyObject *py_reply(PyObject *self, PyObject *args)
{
    unsigned long long unique;
    Py_buffer payload;
    int error;

    if (!PyArg_ParseTuple(args, "Kiy*", &unique, &error, &payload))
        return NULL;
    send_reply(unique, error, payload.buf, payload.len);
    PyBuffer_Release(&payload);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(attached_doc,
    "attached() -> bool\n\nWhether the mount was made with the filter in place.");
static PyObject *py_attached(PyObject *self, PyObject *unused)
{
    return PyBool_FromLong(filter.attached);
}

PyDoc_STRVAR(protocol_doc,
    "protocol() -> (kernel's major, kernel's minor, agreed minor, offered flags, agreed flags)");
static PyObject *py_protocol(PyObject *self, PyObject *unused)
{
    return Py_BuildValue("IIIII", filter.kernel_major, filter.kernel_minor, filter.minor,
                         filter.offered, filter.agreed);
}

PyDoc_STRVAR(last_flags_doc,
    "last_flags() -> int\n\n"
    "Flags of the WRITE, `valid` of the SETATTR that pyfuse3 was given last, else 0.");
static PyObject *py_last_flags(PyObject *self, PyObject *unused)
{
    return PyLong_FromUnsignedLong(filter.last_flags);
}

PyDoc_STRVAR(counts_doc,
    "counts() -> {opcode: (answered here, passed on)}");
static PyObject *py_counts(PyObject *self, PyObject *unused)
{
    PyObject *counts = PyDict_New();

    for (unsigned int i = 0; counts && i < OPCODES; i++) {
        PyObject *key, *value;
        if (!filter.answered[i] && !filter.passed[i])
            continue;
        key = PyLong_FromUnsignedLong(i);
        value = Py_BuildValue("KK", filter.answered[i], filter.passed[i]);
        if (!key || !value || PyDict_SetItem(counts, key, value) < 0)
            Py_CLEAR(counts);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return counts;
}

static PyMethodDef methods[] = {
    {"setup", py_setup, METH_VARARGS, setup_doc},
    {"init_flags", py_init_flags, METH_VARARGS, init_flags_doc},
    {"answer", py_answer, METH_VARARGS, answer_doc},
    {"take", py_take, METH_VARARGS, take_doc},
    {"reply", py_reply, METH_VARARGS, reply_doc},
    {"attached", py_attached, METH_NOARGS, attached_doc},
    {"protocol", py_protocol, METH_NOARGS, protocol_doc},
    {"last_flags", py_last_flags, METH_NOARGS, last_flags_doc},
    {"counts", py_counts, METH_NOARGS, counts_doc},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "FUSE features that pyfuse3 does not pass on.", -1, methods,
    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *m = PyModule_Create(&module);

    bound = PyDict_New();
    taken = PyList_New(0);
    if (!m || !bound || !taken || PyModule_AddObjectRef(m, "bound", bound) < 0 ||
        PyModule_AddObjectRef(m, "taken", taken) < 0 ||
        PyModule_AddIntMacro(m, BOUND_READ) < 0 || PyModule_AddIntMacro(m, BOUND_WRITE) < 0 ||
        PyModule_AddIntMacro(m, BOUND_ATTR) < 0 || PyModule_AddIntMacro(m, BOUND_NO_XATTR) < 0 ||
        PyModule_AddIntMacro(m, BOUND_BITS) < 0) {
        Py_XDECREF(m);
        return NULL;
    }
    return m;
}
