/*
 * The parts of `_native`; docs/native.md explains it.
 *
 * module.c   what Python calls
 * filter.c   between /dev/fuse and libfuse: what becomes of each request
 * listing.c  replies to READDIRPLUS
 * answers.c  requests that are answered here, from what the overlay has prepared
 * merge.c    what several directories show together
 * scan.c     reading one
 * real.c     directories of layers: opening them
 * reply.c    replies to the kernel
 *
 * Each calls only what stands below it.
 *
 * Structures and constants: <linux/fuse.h>, the kernel's ABI. Of Python only the stable ABI:
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

/* What becomes of a request, by opcode. */
enum action {
    PASS,   /* libfuse and pyfuse3 see it */
    ANSWER, /* answered with a fixed error number, 0 for success */
    TAKE,   /* handed to Python as it is, to be answered later */
    CALL,   /* a function of Python's answers at once, or passes it on */
};

struct filter {
    bool attached; /* libfuse reads and writes through us */
    int event_fd;  /* counts requests in `taken` */
    enum action action[OPCODES];
    int error[OPCODES];
    PyObject *function[OPCODES];
    PyObject *taken; /* list of bytes: whole requests */
    PyObject *log; /* called with each request that was answered, and the error; NULL: no log */
    PyObject *ended; /* called once when the kernel has ended the connection */
    int pending;     /* requests that Python is at work on */
    /* INIT */
    uint64_t init_unique;
    uint32_t kernel_major, kernel_minor, minor, offered, agreed, set_flags, clear_flags;
    uint32_t max_write; /* bytes, at most; 0: whatever libfuse takes */
    /* Flags of the WRITE, `valid` of the SETATTR that was passed on last. */
    uint32_t last_flags;
    uint32_t last_uid, last_gid, last_pid; /* and whose that was */
};
extern struct filter filter;

/* Let go of what was there, and keep the reference `value`. */
static inline void set_reference(PyObject **where, PyObject *value)
{
    PyObject *old = *where;

    *where = value;
    Py_XDECREF(old);
}

/* Called by pyfuse3 in place of libfuse's own. */
struct fuse_session;
int fuse_session_mount(struct fuse_session *session, const char *mountpoint);

/* Wait a little for another request, without the GIL. */
bool another_request(void);

/* One of the pending requests is being answered. */
void note_answered(void);

struct replies {
    int fd; /* /dev/fuse */
    /* The last one, for the log */
    int last_error;
    bool last_absent; /* a reply to LOOKUP that said that there is no such name, without an error */
};
extern struct replies replies;

void send_reply(uint64_t unique, int error, const void *payload, size_t size);

/* Answer a READ with that much of a file, without a copy here; false: no answer was sent. */
bool splice_reply(uint64_t unique, int fd, off_t offset, size_t size);

/* What the overlay has prepared: overlay/prepared.py. */
enum { BOUND_READ = 1, BOUND_WRITE = 2, BOUND_ATTR = 4, BOUND_NO_XATTR = 8, BOUND_BITS = 4 };

struct prepared {
    PyObject *bound;       /* dict: nodeid -> descriptor << BOUND_BITS | BOUND_... */
    PyObject *names;       /* dict: nodeid of a directory -> dict whose keys are its names */
    PyObject *inodes;      /* dict: nodeid -> inode, or a tuple of a listed file, below;
                              NULL: nothing is answered here yet */
    PyObject *directories; /* dict: real directory -> O_PATH descriptor */
    PyObject *plain;       /* dict: nodeid of a directory that only the upper has -> it there */
    bool read_listed;      /* whether listed files may be read here */
    bool acls;             /* whether the mount has ACLs */
    uint32_t strange_uid, strange_gid; /* in a status: the user namespace has no id for the owner */
    uint32_t shown_uid, shown_gid;     /* who is shown instead */
    uint64_t valid;        /* how long the kernel may keep what it is told */
    uint32_t valid_nsec;
};
extern struct prepared prepared;

/* Of an inode number the real one; the rest says on which filesystem: overlay/inodetable.py. */
#define INO_BITS 56

/* A file of a lower that the kernel knows from a listing or a look-up, and of which nothing else is
 * known: (directory, name, real directory, look-up count, type, whether it has attributes,
 * user id << 32 | group id): overlay/listed.py. */
enum {
    LISTED_PARENT,
    LISTED_NAME,
    LISTED_REAL,
    LISTED_LOOKUPS,
    LISTED_KIND,
    LISTED_XATTRS,
    LISTED_OWNER
};

/* Whether the request has been answered. */
bool answer(const struct fuse_in_header *in, size_t size);

void fill_attr(struct fuse_attr *attr, uint64_t ino, const struct stat *st);

/* Add what `listing.c` has for Python; -1: an exception. */
int add_listing(PyObject *module);

/* struct linux_dirent64, getdents64(2) */
struct entry {
    uint64_t ino;
    int64_t off;
    unsigned short length;
    unsigned char type; /* DT_WHT: a whiteout */
    char name[];
};

/* Read an open directory; bytes of entries, -1: it does not fit, an overlay has marked it, it
 * holds whiteouts other than devices, or there was an error. */
ssize_t scan_directory(int fd, char *buffer, size_t room);

/* Open a real directory, from the nearest that `descriptors` has. No component of the way may be
 * a symbolic link. -1: an error, or an exception. */
int open_real(PyObject *real, PyObject *descriptors, int flags);

/* Whether that is the listed file that was told the kernel as `nodeid`; see objects.sighting. */
bool is_listed(uint64_t nodeid, PyObject *listed, const struct stat *st);

/* Add what `real.c` has for Python; -1: an exception. */
int add_real(PyObject *module);
extern PyMethodDef merge_methods[];

#endif
