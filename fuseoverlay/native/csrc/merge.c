/* The names that several layers' directories show together: `merged.Merged` in C. */
#include "native.h"

#include <fcntl.h>
#include <unistd.h>

/* Python reads a directory that does not fit; this is enough for some 800 names. */
#define ROOM (32 << 10)

static int add_directory(PyObject *names, PyObject *name, PyObject *real)
{
    PyObject *above = PyDict_GetItemWithError(names, name), *reals;
    Py_ssize_t count = 0;
    int result;

    if (above && !PyTuple_CheckExact(above))
        return 0;
    if (above)
        count = PyTuple_Size(above);
    else if (PyErr_Occurred())
        return -1;
    if (!(reals = PyTuple_New(count + 1)))
        return -1;
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SetItem(reals, i, Py_NewRef(PyTuple_GetItem(above, i)));
    PyTuple_SetItem(reals, count, Py_NewRef(real));
    result = PyDict_SetItem(names, name, reals);
    Py_DECREF(reals);
    return result;
}

static int add_file(PyObject *names, PyObject *closed, PyObject *name, PyObject *real)
{
    PyObject *found = PyDict_GetItemWithError(names, name);

    if (found)
        return PyTuple_CheckExact(found) ? PySet_Add(closed, name) : 0;
    return PyErr_Occurred() ? -1 : PyDict_SetItem(names, name, real);
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

/* The number of entries; -1 if the directory is special, there was an error, or an exception is
 * set. */
static Py_ssize_t add_all(PyObject *names, PyObject *closed, PyObject *real, PyObject *descriptors)
{
    char buffer[ROOM] __attribute__((aligned(8)));
    int fd = open_real(real, descriptors, O_RDONLY | O_NOATIME);
    const struct entry *entry;
    Py_ssize_t count = 0;
    ssize_t size;

    if (fd < 0)
        return -1;
    size = scan_directory(fd, buffer, sizeof(buffer));
    close(fd);
    for (char *at = buffer; at < buffer + size; at += entry->length, count++) {
        entry = (struct entry *)at;
        if (!is_dot(entry->name) && add(names, closed, entry, real) < 0)
            return -1;
    }
    return size < 0 ? -1 : count;
}

PyDoc_STRVAR(merge_doc,
    "merge(names, closed, reals, position, descriptors, limit) -> (position, full)\n\n"
    "Add the directories from `position` on to what those above them show, as\n"
    "`merged.Merged.add` does. Returns the position of the first one that was not added. If full,\n"
    "the only reason is that there were more than `limit` entries; otherwise that directory has\n"
    "marks, whiteouts other than devices or many names, or cannot be read: Python reads it.");
static PyObject *merge(PyObject *self, PyObject *args)
{
    PyObject *names, *closed, *reals, *descriptors;
    Py_ssize_t position, limit, count = 0;

    if (!PyArg_ParseTuple(args, "O!O!O!nOn", &PyDict_Type, &names, &PySet_Type, &closed,
                          &PyTuple_Type, &reals, &position, &descriptors, &limit))
        return NULL;
    while (position < PyTuple_Size(reals) && limit >= 0) {
        count = add_all(names, closed, PyTuple_GetItem(reals, position), descriptors);
        if (count < 0)
            break;
        limit -= count;
        position++;
    }
    if (PyErr_Occurred())
        return NULL;
    return Py_BuildValue("nO", position, count >= 0 && limit < 0 ? Py_True : Py_False);
}

PyMethodDef merge_methods[] = {{"merge", merge, METH_VARARGS, merge_doc}, {NULL, NULL, 0, NULL}};
