/*
 * The parts of `_native`; docs/native.md explains it.
 *
 * module.c   the functions that Python calls
 * filter.c   between /dev/fuse and libfuse: how each request is handled
 * listing.c  replies to READDIRPLUS
 * answers.c  answering requests here, from what the overlay has prepared
 * merge.c    what several directories show together
 * scan.c     reading one directory
 * real.c     opening directories of layers
 * reply.c    replies to the kernel
 *
 * Each calls only what stands below it.
 *
 * Structures and constants: <linux/fuse.h>, the kernel's ABI. Only Python's stable ABI is used:
 * setup.py defines Py_LIMITED_API.
 */
#ifndef FUSEOVERLAY_NATIVE_H
#define FUSEOVERLAY_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dirent.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#define OPCODES 64

/* How requests with an opcode are handled, unless a prepared answer serves (ANSWER: always) */
enum action {
    PASS,   /* libfuse and pyfuse3 see it */
    ANSWER, /* answered with a fixed error number, 0 for success */
    TAKE,   /* handed to Python as it is, to be answered later */
    CALL,   /* a Python function answers at once, or passes it on */
};

struct filter {
    bool attached; /* libfuse reads and writes through us */
    int event_fd;  /* counts requests in `taken` */
    enum action action[OPCODES];
    int error[OPCODES];
    PyObject *function[OPCODES];
    PyObject *taken; /* list of bytes: whole requests */
    PyObject *log; /* called with each answered request and the error; NULL: no log */
    PyObject *ended; /* called once when the kernel has ended the connection */
    int pending;     /* requests that Python is working on */
    /* INIT */
    uint64_t init_unique;
    uint32_t kernel_major, kernel_minor, minor, offered, agreed, set_flags, clear_flags;
    uint32_t max_write; /* bytes, at most; 0: what libfuse allows */
    /* Of the request given to Python last: flags of a WRITE, `valid` of a SETATTR, else 0 */
    uint32_t last_flags;
    uint32_t last_uid, last_gid, last_pid; /* and its caller */
};
extern struct filter filter;

/* Replace the reference at `where` by `value`, which it takes over, and release the old one. */
static inline void set_reference(PyObject **where, PyObject *value)
{
    PyObject *old = *where;

    *where = value;
    Py_XDECREF(old);
}

/* pyfuse3 calls this in place of libfuse's own. */
struct fuse_session;
int fuse_session_mount(struct fuse_session *session, const char *mountpoint);

/* Wait a little for another request, without the GIL; whether one has come. */
bool another_request(void);

/* Count a pending request as answered. */
void note_answered(void);

struct replies {
    int fd; /* /dev/fuse */
    /* Of the last reply, for the log: */
    int last_error;
    bool last_absent; /* a negative entry: no such name, without an error */
};
extern struct replies replies;

void send_reply(uint64_t unique, int error, const void *payload, size_t size);

/* Answer a READ with `size` bytes of a file without copying them here. False if no answer was
 * sent. */
bool splice_reply(uint64_t unique, int fd, off_t offset, size_t size);

/* What the overlay has prepared: overlay/prepared.py. */
enum { BOUND_READ = 1, BOUND_WRITE = 2, BOUND_ATTR = 4, BOUND_NO_XATTR = 8, BOUND_BITS = 4 };

struct prepared {
    PyObject *bound;       /* dict: nodeid -> descriptor << BOUND_BITS | BOUND_... */
    PyObject *names;       /* dict: nodeid of a directory -> dict whose keys are its names */
    PyObject *inodes;      /* dict: nodeid -> inode, or a tuple of a listed file, below;
                              NULL: nothing is answered here yet */
    PyObject *directories; /* dict: real directory -> O_PATH descriptor */
    PyObject *plain;       /* dict: nodeid of a directory only of the upper -> its RealDir */
    bool read_listed;      /* whether listed files may be read here */
    bool acls;             /* whether the mount has ACLs */
    uint32_t strange_uid, strange_gid; /* what a status has for unmapped owners */
    uint32_t shown_uid, shown_gid;     /* what is shown instead */
    uint64_t valid;        /* how long the kernel may keep what it is told, in s and ns */
    uint32_t valid_nsec;
};
extern struct prepared prepared;

/* The low bits of an inode number are the file's own; the rest says on which filesystem it is:
 * overlay/inodetable.py. */
#define INO_BITS 56

/* A plain file of a lower that the kernel knows only from a listing or a look-up. A tuple of
 * directory, name, real directory, look-up count, type, whether it has attributes, and
 * user id << 32 | group id: overlay/listed.py. */
enum {
    LISTED_PARENT,
    LISTED_NAME,
    LISTED_REAL,
    LISTED_LOOKUPS,
    LISTED_KIND,
    LISTED_XATTRS,
    LISTED_OWNER
};

/* Answer from what is prepared, if possible; whether the request has been answered. */
bool answer(const struct fuse_in_header *in, size_t size);

void fill_attr(struct fuse_attr *attr, uint64_t ino, const struct stat *st);

/* Add the type of `listing.c` to the module; -1 with an exception. */
int add_listing(PyObject *module);

/* struct linux_dirent64, getdents64(2) */
struct entry {
    uint64_t ino;
    int64_t off;
    unsigned short length;
    unsigned char type; /* DT_WHT: a whiteout */
    char name[];
};

/* Read an open directory. Returns the number of bytes of entries; -1 if it does not fit, an overlay
 * has marked it, it holds whiteouts other than devices, or there was an error. */
ssize_t scan_directory(int fd, char *buffer, size_t room);

/* Open a real directory, starting from its nearest ancestor in `descriptors`. No component on the
 * way may be a symbolic link. Returns -1 on an error or with an exception. */
int open_real(PyObject *real, PyObject *descriptors, int flags);

/* Whether `st` is of the listed file that the kernel knows as `nodeid`; see objects.sighting. */
bool is_listed(uint64_t nodeid, PyObject *listed, const struct stat *st);

/* Add the functions of `real.c` to the module; -1 with an exception. */
int add_real(PyObject *module);
extern PyMethodDef merge_methods[];

#endif
