/*
 * The clients of the benchmark: each does one thing to a mounted tree at the speed of C and
 * prints the seconds it took (CLOCK_MONOTONIC) and its CPU seconds. An error ends it with exit
 * code 1 and a line on stderr.
 *
 * usage: client COMMAND ARGUMENT...
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, READ = 1 << 17 };

static char buffer[BUFFER];

static void fail(const char *what, const char *name)
{
    fprintf(stderr, "%s %s: %s\n", what, name, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec * 1e-9;
}

static double seconds(struct timeval time)
{
    return time.tv_sec + time.tv_usec * 1e-6;
}

/* User and system time of this process and of the children that it waited for. */
static double cpu_time(void)
{
    struct rusage self, children;
    getrusage(RUSAGE_SELF, &self);
    getrusage(RUSAGE_CHILDREN, &children);
    return seconds(self.ru_utime) + seconds(self.ru_stime) + seconds(children.ru_utime) +
           seconds(children.ru_stime);
}

/* What a walk does with regular files. Other files only get a stat(2). */
struct walk {
    int read;            /* read each file to its end */
    int part, parts;     /* take every parts-th file */
    long files, bytes;
};

static void read_all(int fd, struct walk *walk)
{
    ssize_t got;
    while ((got = read(fd, buffer, READ)) > 0)
        walk->bytes += got;
    if (got < 0)
        fail("read", "");
    close(fd);
}

static void walk_entry(int dir, const char *name, struct walk *walk);

static void walk_directory(int fd, struct walk *walk)
{
    DIR *dir = fdopendir(fd);
    struct dirent *entry;
    if (!dir)
        fail("fdopendir", "");
    while (errno = 0, (entry = readdir(dir))) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") && strcmp(name, ".."))
            walk_entry(fd, name, walk);
    }
    if (errno)
        fail("readdir", "");
    closedir(dir);
}

static int open_below(int dir, const char *name, int flags)
{
    int fd = openat(dir, name, flags | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        fail("open", name);
    return fd;
}

static void walk_entry(int dir, const char *name, struct walk *walk)
{
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW))
        fail("stat", name);
    if (S_ISDIR(st.st_mode))
        walk_directory(open_below(dir, name, O_RDONLY | O_DIRECTORY), walk);
    else if (S_ISREG(st.st_mode) && walk->files++ % walk->parts == walk->part && walk->read)
        read_all(open_below(dir, name, O_RDONLY), walk);
}

static void walk_root(const char *root, struct walk *walk)
{
    walk_directory(open_below(AT_FDCWD, root, O_RDONLY | O_DIRECTORY), walk);
}

static void reap(int count)
{
    int status;
    for (int i = 0; i < count; i++)
        if (wait(&status) < 0 || status)
            exit(1);
}

/* Each of several clients reads its share of the files. */
static void read_in_parallel(const char *root, int clients)
{
    for (int i = 0; i < clients; i++)
        if (fork() == 0) {
            struct walk walk = {.read = 1, .part = i, .parts = clients};
            walk_root(root, &walk);
            _exit(0);
        }
    reap(clients);
}

/* The lines of a file: paths relative to the current directory. */
static char **read_list(const char *list, long *count)
{
    FILE *in = fopen(list, "r");
    char *line = NULL, **names = NULL;
    size_t size = 0;
    ssize_t length;
    if (!in)
        fail("open", list);
    for (*count = 0; (length = getline(&line, &size, in)) > 0; ++*count) {
        line[length - 1] = 0;
        if (*count % 4096 == 0)
            names = realloc(names, (*count + 4096) * sizeof *names);
        names[*count] = strdup(line);
    }
    fclose(in);
    return names;
}

static void stat_all(char **names, long count)
{
    struct stat st;
    for (long i = 0; i < count; i++)
        if (lstat(names[i], &st))
            fail("lstat", names[i]);
}

static void look_up_absent(char **names, long count, long look_ups)
{
    struct stat st;
    for (long i = 0; i < look_ups; i++)
        if (lstat(names[i % count], &st) == 0 || errno != ENOENT)
            fail("should be absent:", names[i % count]);
}

static void append_all(char **names, long count)
{
    for (long i = 0; i < count; i++) {
        int fd = open_below(AT_FDCWD, names[i], O_WRONLY | O_APPEND);
        if (write(fd, "one more line\n", 14) != 14)
            fail("append", names[i]);
        if (close(fd))
            fail("close", names[i]);
    }
}

/* New files of 100 bytes each: DIR/0, DIR/1 ... */
static void create_files(const char *dir, long count)
{
    char name[4096];
    for (long i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%s/%ld", dir, i);
        int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0)
            fail("create", name);
        if (write(fd, buffer, 100) != 100)
            fail("write", name);
        if (close(fd))
            fail("close", name);
    }
}

/* Make a file, look at the directory and at a name that nobody asked for before, remove it. */
static void change_names(const char *dir, long count)
{
    char name[4096], absent[4096];
    struct stat st;
    snprintf(name, sizeof name, "%s/new", dir);
    for (long i = 0; i < count; i++) {
        int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0)
            fail("create", name);
        if (close(fd))
            fail("close", name);
        snprintf(absent, sizeof absent, "%s/absent%ld", dir, i);
        if (stat(dir, &st) || stat(absent, &st) == 0)
            fail("stat", dir);
        if (unlink(name))
            fail("unlink", name);
    }
}

static void small_writes(const char *name, long count)
{
    int fd = open_below(AT_FDCWD, name, O_WRONLY | O_APPEND);
    for (long i = 0; i < count; i++)
        if (write(fd, buffer, 100) != 100)
            fail("write", name);
    if (close(fd))
        fail("close", name);
}

static void read_sequentially(const char *name)
{
    struct walk walk = {.parts = 1};
    read_all(open_below(AT_FDCWD, name, O_RDONLY), &walk);
}

static void write_sequentially(const char *name, long mib)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        fail("create", name);
    for (long i = 0; i < mib; i++)
        if (write(fd, buffer, BUFFER) != BUFFER)
            fail("write", name);
    if (fsync(fd) || close(fd))
        fail("fsync", name);
}

static void write_first_byte(const char *name)
{
    int fd = open_below(AT_FDCWD, name, O_WRONLY);
    if (pwrite(fd, "x", 1, 0) != 1)
        fail("write", name);
    if (close(fd))
        fail("close", name);
}

static pid_t start(char **argv)
{
    pid_t pid = fork();
    if (pid == 0) {
        /* Standard output is for the seconds only. */
        dup2(open("/dev/null", O_WRONLY), 1);
        execvp(argv[0], argv);
        fail("exec", argv[0]);
    }
    return pid;
}

static void run(char **argv)
{
    int status;
    pid_t pid = start(argv);
    if (waitpid(pid, &status, 0) < 0 || status) {
        fprintf(stderr, "%s failed: status %x\n", argv[0], status);
        exit(1);
    }
}

/*
 * Start a command that mounts; done when another filesystem answers there. A command
 * that goes on running in the foreground is left alone.
 */
static void mount_and_wait(const char *mnt, char **argv)
{
    struct stat before, after;
    struct timespec pause = {.tv_nsec = 200000};
    int status, ended = 0;
    if (stat(mnt, &before))
        fail("stat", mnt);
    pid_t pid = start(argv);
    for (;;) {
        if (!ended && waitpid(pid, &status, WNOHANG) == pid) {
            ended = 1;
            if (status) {
                fprintf(stderr, "%s failed: status %x\n", argv[0], status);
                exit(1);
            }
        }
        if (stat(mnt, &after) == 0 && after.st_dev != before.st_dev)
            return;
        nanosleep(&pause, NULL);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: client COMMAND ARGUMENT...\n");
        return 2;
    }
    const char *command = argv[1], *what = argv[2];
    long number = argc > 3 ? atol(argv[3]) : 0, count = 0;
    char **names = NULL;
    struct walk stats = {.parts = 1}, reads = {.read = 1, .parts = 1};
    memset(buffer, 'b', sizeof buffer);
    if (!strcmp(command, "statlist") || !strcmp(command, "absent") || !strcmp(command, "append"))
        names = read_list(what, &count);

    double begin = now(), used = cpu_time();
    if (!strcmp(command, "statwalk"))
        walk_root(what, &stats);
    else if (!strcmp(command, "readall"))
        walk_root(what, &reads);
    else if (!strcmp(command, "readparallel"))
        read_in_parallel(what, number);
    else if (!strcmp(command, "statlist"))
        stat_all(names, count);
    else if (!strcmp(command, "absent"))
        look_up_absent(names, count, number);
    else if (!strcmp(command, "append"))
        append_all(names, count);
    else if (!strcmp(command, "create"))
        create_files(what, number);
    else if (!strcmp(command, "names"))
        change_names(what, number);
    else if (!strcmp(command, "smallwrites"))
        small_writes(what, number);
    else if (!strcmp(command, "seqread"))
        read_sequentially(what);
    else if (!strcmp(command, "seqwrite"))
        write_sequentially(what, number);
    else if (!strcmp(command, "firstbyte"))
        write_first_byte(what);
    else if (!strcmp(command, "chmod")) {
        if (chmod(what, 0600))
            fail("chmod", what);
    } else if (!strcmp(command, "run"))
        run(argv + 2);
    else if (!strcmp(command, "mount"))
        mount_and_wait(what, argv + 3);
    else {
        fprintf(stderr, "no such command: %s\n", command);
        return 2;
    }
    printf("%.6f", now() - begin);
    printf(" %.6f\n", cpu_time() - used);
    return 0;
}
