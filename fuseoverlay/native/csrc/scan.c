/* Reads a layer's directory that holds nothing special, as most do. */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Whether an overlay has marked the directory, or we cannot tell. */
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

/* Set the type of character devices 0:0 to DT_WHT. False if the entry is special: a `.wh.` file, or
 * of a type that is unknown or cannot be found out. */
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

/* Read the whole directory at once; -1 if it does not fit or holds something special. */
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
    /* Nothing follows the greatest position, which ext4 gives to its last entry. */
    if (position != INT64_MAX && syscall(SYS_getdents64, fd, more, sizeof(more)) != 0)
        return -1;
    return size;
}

ssize_t scan_directory(int fd, char *buffer, size_t room)
{
    return may_be_marked(fd) ? -1 : read_entries(fd, buffer, room);
}
