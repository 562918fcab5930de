/*
 * Replies to the kernel. Large READs are answered without copying the data here: splice(2) sends
 * the pages of the real file through a pipe, and the kernel copies them once, into its own.
 */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Linux 6.5 */
#ifndef __NR_cachestat
#define __NR_cachestat 451
#endif

/* Any user may have a pipe of this size (/proc/sys/fs/pipe-max-size by default). */
#define PIPE_SIZE (1 << 20)

struct replies replies = {.fd = -1};

void send_reply(uint64_t unique, int error, const void *payload, size_t size)
{
    struct fuse_out_header out = {
        .len = sizeof(out) + (error ? 0 : size), .error = -error, .unique = unique};
    struct iovec iov[2] = {{&out, sizeof(out)}, {(void *)payload, error ? 0 : size}};

    replies.last_error = error;
    replies.last_absent = !error && size >= sizeof(struct fuse_entry_out) &&
                         !((const struct fuse_entry_out *)payload)->nodeid;
    /* ENOENT: the caller was interrupted and no longer waits. */
    if (writev(replies.fd, iov, 2) < 0 && error == 0 && errno != ENOENT)
        send_reply(unique, errno, NULL, 0);
}

static int pipe_read = -1, pipe_write = -1;

/* Close the pipe, with what is in it. */
static void drop_pipe(void)
{
    close(pipe_read);
    close(pipe_write);
    pipe_read = pipe_write = -1;
}

static bool open_pipe(void)
{
    static bool refused;
    int ends[2];

    if (pipe_read >= 0 || refused)
        return !refused;
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    pipe_read = ends[0];
    pipe_write = ends[1];
    refused = fcntl(pipe_read, F_SETPIPE_SZ, PIPE_SIZE) < 0;
    if (refused)
        drop_pipe();
    return !refused;
}

static size_t page_size(void)
{
    static size_t size;

    if (!size)
        size = sysconf(_SC_PAGESIZE);
    return size;
}

/* Whether all pages are cached and the last one is up to date: splice(2) would wait for the rest.
 * The kernel does not tell about files of other users. */
static bool in_page_cache(int fd, off_t offset, size_t size)
{
    /* linux/mman.h: struct cachestat_range, struct cachestat */
    uint64_t range[2] = {offset, size}, found[5];
    struct iovec last = {&(char){0}, 1};
    size_t page = page_size();

    return syscall(__NR_cachestat, fd, range, found, 0) == 0 &&
           found[0] >= (offset + size - 1) / page - offset / page + 1 &&
           preadv2(fd, &last, 1, offset + size - 1, RWF_NOWAIT) == 1;
}

static bool fill_pipe(const struct fuse_out_header *out, int fd, off_t offset, size_t size)
{
    if (write(pipe_write, out, sizeof(*out)) != sizeof(*out))
        return false;
    while (size) {
        ssize_t n = splice(fd, &offset, pipe_write, NULL, size, SPLICE_F_NONBLOCK);
        if (n <= 0)
            return false; /* the file was truncated just now */
        size -= n;
    }
    return true;
}

bool splice_reply(uint64_t unique, int fd, off_t offset, size_t size)
{
    struct fuse_out_header out = {.len = sizeof(out) + size, .unique = unique};
    ssize_t sent;

    /* The header takes one page of the pipe, and the data may begin and end inside a page. */
    if (size > PIPE_SIZE - 3 * page_size() || !in_page_cache(fd, offset, size) || !open_pipe())
        return false;
    if (!fill_pipe(&out, fd, offset, size)) {
        drop_pipe();
        return false;
    }
    sent = splice(pipe_read, NULL, replies.fd, NULL, out.len, 0);
    if (sent != out.len) {
        /* ENOENT: the caller was interrupted and no longer waits. */
        bool gone = sent < 0 && errno == ENOENT;
        drop_pipe();
        return gone;
    }
    return true;
}
