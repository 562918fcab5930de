/* Finds the way to real directories of layers, `layers.RealDir`, and opens them. */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sys/syscall.h>

static PyObject *device_name, *seen_name, *layer_name, *name_name, *parent_name, *root_fd_name;

/* A borrowed reference to an attribute; the object keeps it alive. */
static PyObject *borrowed(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);

    Py_XDECREF(value);
    return value;
}

static int root_of(PyObject *real)
{
    PyObject *layer = borrowed(real, layer_name);
    PyObject *fd = layer ? borrowed(layer, root_fd_name) : NULL;

    return fd ? PyLong_AsLong(fd) : -1;
}

bool is_listed(uint64_t nodeid, PyObject *listed, const struct stat *st)
{
    PyObject *layer = borrowed(PyTuple_GetItem(listed, LISTED_REAL), layer_name);
    PyObject *device = layer ? borrowed(layer, device_name) : NULL;
    uint64_t owner = PyLong_AsUnsignedLongLong(PyTuple_GetItem(listed, LISTED_OWNER));

    return device && st->st_ino == (nodeid & ((1ULL << INO_BITS) - 1)) &&
           st->st_dev == PyLong_AsUnsignedLongLong(device) &&
           (st->st_mode & S_IFMT) == PyLong_AsLong(PyTuple_GetItem(listed, LISTED_KIND)) &&
           owner == ((uint64_t)st->st_uid << 32 | st->st_gid);
}

/* Prepend a name to `*path`, which ends at the end of `room`. False if there is too little room. */
static bool prepend(char **path, const char *room, PyObject *name)
{
    Py_ssize_t length = PyBytes_Size(name);

    if (*path - room < length + 1)
        return false;
    if (**path)
        *--*path = '/';
    *path -= length;
    memcpy(*path, PyBytes_AsString(name), length);
    return true;
}

/* The descriptor of the nearest open directory at or above `real`; *path leads on from there. -1 if
 * the path is too long, if it passes a directory that was opened before and may be another one by
 * now, or with an exception. */
static int nearest(PyObject *real, PyObject *descriptors, char room[PATH_MAX], const char **path)
{
    PyObject *fd, *parent, *name;
    char *way = room + PATH_MAX - 1;

    *way = 0;
    while (!(fd = PyDict_GetItemWithError(descriptors, real))) {
        if (PyErr_Occurred() || !(parent = borrowed(real, parent_name)))
            return -1;
        if (parent == Py_None)
            break;
        if (borrowed(real, seen_name) != Py_None)
            return -1;
        name = borrowed(real, name_name);
        if (!name || !PyBytes_Check(name) || !prepend(&way, room, name))
            return -1;
        real = parent;
    }
    *path = *way ? way : ".";
    return fd ? PyLong_AsLong(fd) : root_of(real);
}

int open_real(PyObject *real, PyObject *descriptors, int flags)
{
    struct open_how how = {
        .flags = flags | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    char room[PATH_MAX];
    const char *path;
    int dir_fd = nearest(real, descriptors, room, &path), fd;

    if (dir_fd < 0)
        return -1;
    fd = syscall(SYS_openat2, dir_fd, path, &how, sizeof(how));
    if (fd < 0 && errno == EPERM && flags & O_NOATIME) {
        /* Only the owner may use O_NOATIME. */
        how.flags &= ~O_NOATIME;
        fd = syscall(SYS_openat2, dir_fd, path, &how, sizeof(how));
    }
    return fd;
}

PyDoc_STRVAR(open_real_doc,
    "open_real(real, descriptors, flags) -> int\n\n"
    "Open a real directory, starting from its nearest ancestor in `descriptors`; -1: an error.");
static PyObject *py_open_real(PyObject *self, PyObject *args)
{
    PyObject *real, *descriptors;
    int flags, fd;

    if (!PyArg_ParseTuple(args, "OOi", &real, &descriptors, &flags))
        return NULL;
    fd = open_real(real, descriptors, flags);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(fd);
}

static PyMethodDef methods[] = {
    {"open_real", py_open_real, METH_VARARGS, open_real_doc}, {NULL, NULL, 0, NULL}};

int add_real(PyObject *module)
{
    device_name = PyUnicode_InternFromString("device");
    seen_name = PyUnicode_InternFromString("seen");
    layer_name = PyUnicode_InternFromString("layer");
    name_name = PyUnicode_InternFromString("name");
    parent_name = PyUnicode_InternFromString("parent");
    root_fd_name = PyUnicode_InternFromString("root_fd");
    if (!device_name || !seen_name || !layer_name || !name_name || !parent_name || !root_fd_name)
        return -1;
    return PyModule_AddFunctions(module, methods);
}
