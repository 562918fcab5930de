/* Read a directory of a layer that holds nothing special, as most do. */
#include "native.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

/* struct linux_dirent64, getdents64(2) */
struct entry {
    uint64_t ino;
    int64_t off;
    unsigned short length;
    unsigned char type;
    char name[];
};

/* Whether an overlay has marked the directory, or that cannot be told. */
static bool may_be_marked(int fd)
{
    char list[1024];
    ssize_t size = flistxattr(fd, list, sizeof(list));

    if (size < 0)
        return errno != EOPNOTSUPP;
    for (const char *name = list; name < list + size; name += strlen(name) + 1)
        if (strstr(name, ".opaque"))
            return true;
    return false;
}

static bool is_dot(const char *name)
{
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* 1: entered or skipped, 0: something special, -1: an exception. */
static int enter(PyObject *names, const struct entry *entry)
{
    PyObject *name;
    int result;

    if (is_dot(entry->name))
        return 1;
    if (!strncmp(entry->name, ".wh.", 4) ||
        (entry->type != DT_REG && entry->type != DT_DIR && entry->type != DT_LNK))
        return 0;
    name = PyBytes_FromString(entry->name);
    result = name ? PyDict_SetItem(names, name, entry->type == DT_DIR ? Py_True : Py_False) : -1;
    Py_XDECREF(name);
    return result < 0 ? -1 : 1;
}

static int read_entries(PyObject *names, int fd, Py_ssize_t limit)
{
    char buffer[32768] __attribute__((aligned(8)));
    long size;
    int result;

    while ((size = syscall(SYS_getdents64, fd, buffer, sizeof(buffer))) > 0)
        for (long at = 0; at < size; at += ((struct entry *)(buffer + at))->length)
            if ((result = enter(names, (struct entry *)(buffer + at))) <= 0 ||
                (result = PyDict_GET_SIZE(names) <= limit) == 0)
                return result;
    return size == 0;
}

/* No component of the path may be a symbolic link. */
static int open_directory(int dir_fd, const char *path)
{
    struct open_how how = {
        .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NOATIME,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};

    return syscall(SYS_openat2, dir_fd, path, &how, sizeof(how));
}

PyDoc_STRVAR(scan_doc,
    "scan(dir_fd, path, limit) -> {name: is a directory} | None\n\n"
    "What the directory `path` below `dir_fd` holds, in its order; None: more than `limit`\n"
    "entries, or whiteouts, marks, devices or errors, which are the overlay's to look at.");
static PyObject *scan(PyObject *self, PyObject *args)
{
    PyObject *names = NULL;
    const char *path;
    Py_ssize_t limit;
    int dir_fd, fd, result = 0;

    if (!PyArg_ParseTuple(args, "iyn", &dir_fd, &path, &limit))
        return NULL;
    fd = open_directory(dir_fd, path);
    if (fd < 0)
        Py_RETURN_NONE;
    if (!may_be_marked(fd) && (names = PyDict_New()))
        result = read_entries(names, fd, limit);
    close(fd);
    if (result == 1)
        return names;
    Py_XDECREF(names);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

PyMethodDef scan_methods[] = {{"scan", scan, METH_VARARGS, scan_doc}, {NULL, NULL, 0, NULL}};
