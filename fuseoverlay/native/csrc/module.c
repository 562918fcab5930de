/* The functions that Python calls. */
#include "native.h"

#include <sys/eventfd.h>

PyDoc_STRVAR(setup_doc,
    "setup(valid_ns, max_write) -> int\n\n"
    "Attach to the next mount. The kernel may then keep what it is told for `valid_ns`, and\n"
    "write at most `max_write` bytes at once; 0: what libfuse allows. Returns an eventfd(2) that\n"
    "counts requests in `taken`.");
static PyObject *py_setup(PyObject *self, PyObject *args)
{
    unsigned long long valid;

    if (!PyArg_ParseTuple(args, "KI", &valid, &filter.max_write))
        return NULL;
    prepared.valid = valid / 1000000000;
    prepared.valid_nsec = valid % 1000000000;
    if (filter.event_fd < 0)
        filter.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (filter.event_fd < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromLong(filter.event_fd);
}

PyDoc_STRVAR(prepare_doc,
    "prepare(bound, names, plain, inodes, directories, read_listed, acls)\n\n"
    "Start to answer requests without Python. `bound`, `names` and `plain` are the tables of\n"
    "overlay/prepared.py; `inodes`: inode number -> inode or listed file; `directories`: real\n"
    "directory -> O_PATH descriptor; `read_listed`: listed files may be read without asking\n"
    "Python; `acls`: the mount has ACLs.");
static PyObject *py_prepare(PyObject *self, PyObject *args)
{
    PyObject *bound, *names, *plain, *inodes, *directories;
    int read_listed, acls;

    if (!PyArg_ParseTuple(args, "O!O!O!O!Opp", &PyDict_Type, &bound, &PyDict_Type, &names,
                          &PyDict_Type, &plain, &PyDict_Type, &inodes, &directories, &read_listed,
                          &acls))
        return NULL;
    if (!PyDict_Check(directories)) {
        PyErr_SetString(PyExc_TypeError, "directories must be a dictionary");
        return NULL;
    }
    set_reference(&prepared.bound, Py_NewRef(bound));
    set_reference(&prepared.names, Py_NewRef(names));
    set_reference(&prepared.plain, Py_NewRef(plain));
    set_reference(&prepared.inodes, Py_NewRef(inodes));
    set_reference(&prepared.directories, Py_NewRef(directories));
    prepared.read_listed = read_listed;
    prepared.acls = acls;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(name_strangers_doc,
    "name_strangers(uid, gid, shown_uid, shown_gid)\n\n"
    "Set the ids that a status has for owners that the user namespace does not map (2**32 - 1 if\n"
    "there is no such id), and the ids to show instead.");
static PyObject *py_name_strangers(PyObject *self, PyObject *args)
{
    if (!PyArg_ParseTuple(args, "IIII", &prepared.strange_uid, &prepared.strange_gid,
                          &prepared.shown_uid, &prepared.shown_gid))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(init_flags_doc,
    "init_flags(set, clear)\n\n"
    "Set INIT flags that the kernel offers, and clear others, in the answer to INIT.");
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
    "answer(opcode, error)\n\n"
    "Answer requests with this opcode with this errno; 0: success.");
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

PyDoc_STRVAR(take_doc,
    "take(opcode)\n\n"
    "Append requests with this opcode to `taken`, unless a prepared answer serves.");
static PyObject *py_take(PyObject *self, PyObject *args)
{
    unsigned int opcode;

    if (!PyArg_ParseTuple(args, "I", &opcode) || !valid_opcode(opcode))
        return NULL;
    filter.action[opcode] = TAKE;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(call_doc,
    "call(opcode, function)\n\n"
    "Have requests with this opcode answered by `function(nodeid, uid, gid, pid, body)`, unless a\n"
    "prepared answer serves. It returns the payload of the reply, None for an empty one, an\n"
    "errno, or NotImplemented to have pyfuse3 serve the request. It must not suspend.");
static PyObject *py_call(PyObject *self, PyObject *args)
{
    unsigned int opcode;
    PyObject *function;

    if (!PyArg_ParseTuple(args, "IO", &opcode, &function) || !valid_opcode(opcode))
        return NULL;
    set_reference(&filter.function[opcode], Py_NewRef(function));
    filter.action[opcode] = CALL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(log_doc,
    "log(function)\n\n"
    "Call `function(opcode, nodeid, uid, gid, pid, body, error, absent)` for each request that\n"
    "was answered without pyfuse3. `absent`: the answer to LOOKUP was a negative entry.");
static PyObject *py_log(PyObject *self, PyObject *function)
{
    set_reference(&filter.log, Py_NewRef(function));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(at_end_doc,
    "at_end(function)\n\nCall `function()` once the kernel has ended the connection.");
static PyObject *py_at_end(PyObject *self, PyObject *function)
{
    set_reference(&filter.ended, Py_NewRef(function));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_doc,
    "reply(unique, error, payload)\n\nAnswer a request from `taken`.");
static PyObject *py_reply(PyObject *self, PyObject *args)
{
    unsigned long long unique;
    Py_buffer payload;
    int error;

    if (!PyArg_ParseTuple(args, "Kiy*", &unique, &error, &payload))
        return NULL;
    note_answered();
    send_reply(unique, error, payload.buf, payload.len);
    PyBuffer_Release(&payload);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(another_request_doc,
    "another_request() -> bool\n\nWait at most a millisecond for a request; whether one has come.");
static PyObject *py_another_request(PyObject *self, PyObject *unused)
{
    return PyBool_FromLong(another_request());
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
    "Of the request that Python was given last: the flags of a WRITE, `valid` of a SETATTR,\n"
    "else 0.");
static PyObject *py_last_flags(PyObject *self, PyObject *unused)
{
    return PyLong_FromUnsignedLong(filter.last_flags);
}

PyDoc_STRVAR(last_caller_doc,
    "last_caller() -> (uid, gid, pid)\n\nWho made the request that Python was given last.");
static PyObject *py_last_caller(PyObject *self, PyObject *unused)
{
    return Py_BuildValue("III", filter.last_uid, filter.last_gid, filter.last_pid);
}

static PyMethodDef methods[] = {
    {"setup", py_setup, METH_VARARGS, setup_doc},
    {"prepare", py_prepare, METH_VARARGS, prepare_doc},
    {"name_strangers", py_name_strangers, METH_VARARGS, name_strangers_doc},
    {"init_flags", py_init_flags, METH_VARARGS, init_flags_doc},
    {"answer", py_answer, METH_VARARGS, answer_doc},
    {"take", py_take, METH_VARARGS, take_doc},
    {"call", py_call, METH_VARARGS, call_doc},
    {"log", py_log, METH_O, log_doc},
    {"at_end", py_at_end, METH_O, at_end_doc},
    {"reply", py_reply, METH_VARARGS, reply_doc},
    {"another_request", py_another_request, METH_NOARGS, another_request_doc},
    {"attached", py_attached, METH_NOARGS, attached_doc},
    {"protocol", py_protocol, METH_NOARGS, protocol_doc},
    {"last_flags", py_last_flags, METH_NOARGS, last_flags_doc},
    {"last_caller", py_last_caller, METH_NOARGS, last_caller_doc},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "FUSE features that pyfuse3 does not pass on.", -1, methods,
    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);

    filter.taken = PyList_New(0);
    if (!module || !filter.taken || add_real(module) < 0 ||
        add_listing(module) < 0 || PyModule_AddFunctions(module, merge_methods) < 0 ||
        PyModule_AddObjectRef(module, "taken", filter.taken) < 0)
        Py_CLEAR(module);
    return module;
}
