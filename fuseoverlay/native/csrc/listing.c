/*
 * Builds a reply to READDIRPLUS. The overlay adds entries whose attributes it knows; plain files of
 * a lower, by far the most in an image, are looked up here.
 */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Linux 6.13 */
#ifndef __NR_listxattrat
#define __NR_listxattrat 465
#endif

struct listing {
    PyObject_HEAD
    PyObject *buffer; /* a bytes object of the requested size */
    size_t used;
};

static struct fuse_direntplus *reserve(struct listing *self, size_t name_length)
{
    size_t length = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + name_length);
    struct fuse_direntplus *entry;

    if (!self->buffer || length > PyBytes_Size(self->buffer) - self->used)
        return NULL;
    entry = (void *)(PyBytes_AsString(self->buffer) + self->used);
    memset(entry, 0, length);
    self->used += length;
    return entry;
}

static bool put(struct listing *self, const char *name, size_t name_length, uint64_t cookie,
                uint64_t generation, const struct fuse_attr *attr)
{
    struct fuse_direntplus *entry = reserve(self, name_length);

    if (!entry)
        return false;
    entry->entry_out.attr = *attr;
    entry->entry_out.nodeid = attr->ino;
    entry->entry_out.generation = generation;
    if (attr->nlink) {
        entry->entry_out.entry_valid = entry->entry_out.attr_valid = prepared.valid;
        entry->entry_out.entry_valid_nsec = entry->entry_out.attr_valid_nsec = prepared.valid_nsec;
    }
    entry->dirent.ino = attr->ino;
    entry->dirent.off = cookie;
    entry->dirent.namelen = name_length;
    entry->dirent.type = (attr->mode & S_IFMT) >> 12;
    memcpy(entry->dirent.name, name, name_length);
    return true;
}

PyDoc_STRVAR(add_doc,
    "add(name, cookie, generation, attr) -> bool\n\n"
    "Add an entry; `attr` holds a struct fuse_attr. False if the reply is full.");
static PyObject *listing_add(struct listing *self, PyObject *args)
{
    unsigned long long cookie, generation;
    struct fuse_attr attr;
    const char *name, *bytes;
    Py_ssize_t length, size;

    if (!PyArg_ParseTuple(args, "y#KKy#", &name, &length, &cookie, &generation, &bytes, &size))
        return NULL;
    if (size != sizeof(attr))
        return PyErr_Format(PyExc_ValueError, "attr has %zd bytes", size);
    memcpy(&attr, bytes, sizeof(attr));
    return PyBool_FromLong(put(self, name, length, cookie, generation, &attr));
}

/* The names of the attributes; -1 if there was an error, or the kernel has no such call. */
static ssize_t list_attributes(int dir_fd, const char *name, char *list, size_t size)
{
    return syscall(__NR_listxattrat, dir_fd, name, AT_SYMLINK_NOFOLLOW, list, size);
}

/* Whether the name still leads to the object with this status, and has done so all the time:
 * exchanging it for another and back changes its ctime. */
static bool is_unmoved(int dir_fd, const char *name, const struct stat *st)
{
    struct stat now;

    return fstatat(dir_fd, name, &now, AT_SYMLINK_NOFOLLOW) == 0 && now.st_ino == st->st_ino &&
           now.st_dev == st->st_dev && now.st_ctim.tv_sec == st->st_ctim.tv_sec &&
           now.st_ctim.tv_nsec == st->st_ctim.tv_nsec;
}

static bool has_overlay_attribute(const char *list, ssize_t size)
{
    for (const char *name = list; name < list + size; name += strlen(name) + 1)
        if (strstr(name, ".overlay.") || !strncmp(name, "user.fuseoverlayfs.", 19))
            return true;
    return false;
}

/* Add one to the look-up count of a listed file. */
static int count_listed(PyObject *key, PyObject *known, PyObject *parent, PyObject *name,
                        PyObject *real, const struct stat *st, bool has_attributes)
{
    long count = known ? PyLong_AsLong(PyTuple_GetItem(known, LISTED_LOOKUPS)) : 0;
    PyObject *listed = Py_BuildValue("(OOOlIOK)", parent, name, real, count + 1,
                                     st->st_mode & S_IFMT, has_attributes ? Py_True : Py_False,
                                     (unsigned long long)st->st_uid << 32 | st->st_gid);
    int result = listed ? PyDict_SetItem(prepared.inodes, key, listed) : -1;

    Py_XDECREF(listed);
    return result;
}

PyDoc_STRVAR(add_lower_doc,
    "add_lower(name, cookie, parent, real, dir_fd, base, device) -> bool | None\n\n"
    "Add a file of the lower directory `dir_fd`, and enter it as a listed file. False if the\n"
    "reply is full; None if it is not a plain file on `device` with one name, or is known as\n"
    "something else. Its inode number is the file's own, combined with `base`.");
static PyObject *listing_add_lower(struct listing *self, PyObject *args)
{
    PyObject *name, *parent, *real, *key = NULL, *known, *result = NULL;
    unsigned long long cookie, base, device;
    char list[1024];
    ssize_t list_size;
    size_t used = self->used;
    struct fuse_attr attr;
    struct stat st;
    const char *text;
    int dir_fd;

    if (!PyArg_ParseTuple(args, "SKOOiKK", &name, &cookie, &parent, &real, &dir_fd, &base, &device))
        return NULL;
    text = PyBytes_AsString(name);
    if (fstatat(dir_fd, text, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_nlink != 1 ||
        !(S_ISREG(st.st_mode) || S_ISLNK(st.st_mode)) || st.st_dev != device || !st.st_ino ||
        st.st_ino >> INO_BITS)
        Py_RETURN_NONE;
    list_size = list_attributes(dir_fd, text, list, sizeof(list));
    if (list_size < 0 || has_overlay_attribute(list, list_size) || !is_unmoved(dir_fd, text, &st))
        Py_RETURN_NONE;
    fill_attr(&attr, base | st.st_ino, &st);
    key = PyLong_FromUnsignedLongLong(attr.ino);
    if (!key)
        return NULL;
    known = PyDict_GetItemWithError(prepared.inodes, key);
    if (known && !(PyTuple_CheckExact(known) && PyTuple_GetItem(known, LISTED_REAL) == real &&
                   is_listed(attr.ino, known, &st) &&
                   PyObject_RichCompareBool(PyTuple_GetItem(known, LISTED_NAME), name, Py_EQ) == 1))
        result = Py_NewRef(Py_None);
    else if (!put(self, text, PyBytes_Size(name), cookie, 0, &attr))
        result = Py_NewRef(Py_False);
    else if (count_listed(key, known, parent, name, real, &st, list_size > 0) < 0)
        self->used = used;
    else
        result = Py_NewRef(Py_True);
    Py_DECREF(key);
    return result;
}

PyDoc_STRVAR(payload_doc, "payload() -> bytes\n\nThe reply.");
static PyObject *listing_payload(struct listing *self, PyObject *unused)
{
    return PyBytes_FromStringAndSize(PyBytes_AsString(self->buffer), self->used);
}

static int listing_init(struct listing *self, PyObject *args, PyObject *keywords)
{
    unsigned int size;

    if (!PyArg_ParseTuple(args, "I", &size))
        return -1;
    set_reference(&self->buffer, PyBytes_FromStringAndSize(NULL, size));
    self->used = 0;
    return self->buffer ? 0 : -1;
}

static void listing_dealloc(struct listing *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);

    Py_XDECREF(self->buffer);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef listing_methods[] = {
    {"add", (PyCFunction)listing_add, METH_VARARGS, add_doc},
    {"add_lower", (PyCFunction)listing_add_lower, METH_VARARGS, add_lower_doc},
    {"payload", (PyCFunction)listing_payload, METH_NOARGS, payload_doc},
    {NULL, NULL, 0, NULL}};

PyDoc_STRVAR(listing_doc, "Listing(size)\n\nA reply to READDIRPLUS of at most `size` bytes.");
static PyType_Slot listing_slots[] = {
    {Py_tp_doc, (void *)listing_doc},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, listing_init},
    {Py_tp_dealloc, listing_dealloc},
    {Py_tp_methods, listing_methods},
    {0, NULL}};

static PyType_Spec listing_spec = {
    .name = "fuseoverlay.native._native.Listing",
    .basicsize = sizeof(struct listing),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = listing_slots,
};

int add_listing(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&listing_spec);
    int result = type ? PyModule_AddObjectRef(module, "Listing", type) : -1;

    Py_XDECREF(type);
    return result;
}
