/* Read a directory of a layer that holds nothing special, as most do. */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Whether an overlay has marked the directory, or that cannot be told. */
static bool may_be_marked(int fd)
{
    char list[1024];
    ssize_t size = flistxattr(fd, list, sizeof(list));

    if (size < 0)
        return errno != EOPNOTSUPP;
    for (const char *name = list; name < list + size; name += strlen(name) + 1)
        if (strstr(name, ".opaque") || strstr(name, ".redirect"))
            return true;
    return false;
}

/* Mark character devices 0:0 as what they are; false: there is something special. */
static bool sort_out(int fd, struct entry *entry)
{
    struct stat st;

    switch (entry->type) {
    case DT_REG:
    case DT_DIR:
    case DT_LNK:
    case DT_BLK:
    case DT_FIFO:
    case DT_SOCK:
        break;
    case DT_CHR:
        if (fstatat(fd, entry->name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISCHR(st.st_mode))
            return false;
        if (st.st_rdev == makedev(0, 0))
            entry->type = DT_WHT;
        break;
    default:
        return false;
    }
    return strncmp(entry->name, ".wh.", 4) != 0;
}

/* The whole directory at once; -1: it does not fit, or there is something special. */
static ssize_t read_entries(int fd, char *buffer, size_t room)
{
    ssize_t size = syscall(SYS_getdents64, fd, buffer, room);
    int64_t position = 0;
    char more[1024];

    for (char *at = buffer; at < buffer + size; at += ((struct entry *)at)->length) {
        if (!sort_out(fd, (struct entry *)at))
            return -1;
        position = ((struct entry *)at)->off;
    }
    /* Behind the last position that there is, where ext4 has its end, comes nothing. */
    if (position != INT64_MAX && syscall(SYS_getdents64, fd, more, sizeof(more)) != 0)
        return -1;
    return size;
}

ssize_t scan_directory(int fd, char *buffer, size_t room)
{
    return may_be_marked(fd) ? -1 : read_entries(fd, buffer, room);
}
