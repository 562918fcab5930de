/* The names that directories of layers show together: `merge.Merged` in C. */
#include "native.h"

#include <limits.h>

/* A directory that does not fit is Python's to read: some 800 names. */
#define ROOM (32 << 10)

static PyObject *layer_name, *name_name, *parent_name, *root_fd_name;

/* Attribute of an object that keeps it alive. */
static PyObject *borrowed(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);

    Py_XDECREF(value);
    return value;
}

/* The nearest open directory above or at `real`; *path is the way from there, which is written
 * into the end of `room`. -1: that is too long, or an exception. */
static int nearest(PyObject *real, PyObject *descriptors, char room[PATH_MAX], char **path)
{
    PyObject *fd, *parent, *name;
    char *at = room + PATH_MAX - 1;
    Py_ssize_t length;

    *at = 0;
    while (!(fd = PyDict_GetItemWithError(descriptors, real))) {
        if (PyErr_Occurred() || !(parent = borrowed(real, parent_name)))
            return -1;
        if (parent == Py_None) {
            fd = borrowed(real, layer_name);
            fd = fd ? borrowed(fd, root_fd_name) : NULL;
            break;
        }
        if (!(name = borrowed(real, name_name)) || !PyBytes_Check(name))
            return -1;
        length = PyBytes_GET_SIZE(name);
        if (at - room < length + 1)
            return -1;
        if (*at)
            *--at = '/';
        at -= length;
        memcpy(at, PyBytes_AS_STRING(name), length);
        real = parent;
    }
    *path = *at ? at : ".";
    return fd ? PyLong_AsLong(fd) : -1;
}

static int add_directory(PyObject *names, PyObject *name, PyObject *real)
{
    PyObject *above = PyDict_GetItemWithError(names, name), *reals;
    Py_ssize_t count = 0;
    int result;

    if (above && !PyTuple_CheckExact(above))
        return 0;
    if (above)
        count = PyTuple_GET_SIZE(above);
    else if (PyErr_Occurred())
        return -1;
    if (!(reals = PyTuple_New(count + 1)))
        return -1;
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SET_ITEM(reals, i, Py_NewRef(PyTuple_GET_ITEM(above, i)));
    PyTuple_SET_ITEM(reals, count, Py_NewRef(real));
    result = PyDict_SetItem(names, name, reals);
    Py_DECREF(reals);
    return result;
}

static int add_file(PyObject *names, PyObject *closed, PyObject *name, PyObject *real)
{
    PyObject *found = PyDict_SetDefault(names, name, real);

    if (found && PyTuple_CheckExact(found))
        return PySet_Add(closed, name);
    return found ? 0 : -1;
}

static int add(PyObject *names, PyObject *closed, const struct entry *entry, PyObject *real)
{
    PyObject *name = PyBytes_FromString(entry->name);
    int result = name ? PySet_Contains(closed, name) : -1;

    if (result == 0 && entry->type == DT_WHT)
        result = PySet_Add(closed, name);
    else if (result == 0 && entry->type == DT_DIR)
        result = add_directory(names, name, real);
    else if (result == 0)
        result = add_file(names, closed, name, real);
    Py_XDECREF(name);
    return result;
}

static bool is_dot(const char *name)
{
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* Number of entries, -1: something special, or an exception. */
static Py_ssize_t add_all(PyObject *names, PyObject *closed, PyObject *real, PyObject *descriptors)
{
    char buffer[ROOM] __attribute__((aligned(8))), room[PATH_MAX], *path;
    int dir_fd = nearest(real, descriptors, room, &path);
    ssize_t size = dir_fd < 0 ? -1 : scan_directory(dir_fd, path, buffer, sizeof(buffer));
    const struct entry *entry;
    Py_ssize_t count = 0;

    if (size < 0)
        return -1;
    for (char *at = buffer; at < buffer + size; at += entry->length, count++) {
        entry = (struct entry *)at;
        if (!is_dot(entry->name) && add(names, closed, entry, real) < 0)
            return -1;
    }
    return count;
}

PyDoc_STRVAR(merge_doc,
    "merge(names, closed, reals, position, descriptors, limit) -> (position, full)\n\n"
    "Add what the directories from `position` on hold to what those above them show, as\n"
    "`merge.Merged.add` does: the first one that was not added holds whiteouts other than\n"
    "devices, or marks, or is large or cannot be read, and is the overlay's to look at. Full:\n"
    "it is not, but there were more than `limit` entries.");
static PyObject *merge(PyObject *self, PyObject *args)
{
    PyObject *names, *closed, *reals, *descriptors;
    Py_ssize_t position, limit, count = 0;

    if (!PyArg_ParseTuple(args, "O!O!O!nOn", &PyDict_Type, &names, &PySet_Type, &closed,
                          &PyTuple_Type, &reals, &position, &descriptors, &limit))
        return NULL;
    while (position < PyTuple_GET_SIZE(reals) && limit >= 0) {
        count = add_all(names, closed, PyTuple_GET_ITEM(reals, position), descriptors);
        if (count < 0)
            break;
        limit -= count;
        position++;
    }
    if (PyErr_Occurred())
        return NULL;
    return Py_BuildValue("nO", position, count >= 0 && limit < 0 ? Py_True : Py_False);
}

static PyMethodDef methods[] = {{"merge", merge, METH_VARARGS, merge_doc}, {NULL, NULL, 0, NULL}};

int add_merge(PyObject *module)
{
    layer_name = PyUnicode_InternFromString("layer");
    name_name = PyUnicode_InternFromString("name");
    parent_name = PyUnicode_InternFromString("parent");
    root_fd_name = PyUnicode_InternFromString("root_fd");
    if (!layer_name || !name_name || !parent_name || !root_fd_name)
        return -1;
    return PyModule_AddFunctions(module, methods);
}
