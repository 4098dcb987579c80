/*
 * A disk that fails when it is told to: loaded into a process by LD_PRELOAD, it stands before the C library's calls on
 * files below one directory. What fails, and from which call on, is in a file that both sides map (disk.py writes it).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* errno of each kind of call, 0: it works; how many calls work before the first failure; how many failed; where */
struct control
{
	int			sync;
	int			write;
	int			change;
	int			left;
	int			failed;
	char		root[1004];
};

static struct control works;
static volatile struct control *control = &works;

__attribute__((constructor)) static void
start(void)
{
	const char *path = getenv("DISK_CONTROL");
	int			fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
	void	   *found;

	if (fd < 0)
		return;
	found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (found != MAP_FAILED)
		control = found;
	close(fd);
}

static int
fails(int error)
{
	if (__atomic_sub_fetch(&control->left, 1, __ATOMIC_SEQ_CST) >= 0)
		return 0;
	__atomic_add_fetch(&control->failed, 1, __ATOMIC_SEQ_CST);
	errno = error;
	return 1;
}

static int
of_path(const char *path)
{
	const char *root = (const char *) control->root;

	return path != NULL && strncmp(path, root, strlen(root)) == 0;
}

static int
of_fd(int fd)
{
	char		link[64];
	char		target[PATH_MAX];
	ssize_t		length;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, target, sizeof(target) - 1);
	if (length < 0)
		return 0;
	target[length] = 0;
	return of_path(target);
}

#define REAL(name) \
	static __typeof__(name) *real; \
	if (real == NULL) \
		real = (__typeof__(name) *) dlsym(RTLD_NEXT, #name)

#define ON_FD(name, kind, result, arguments, values) \
	result name arguments \
	{ \
		REAL(name); \
		if (control->kind && of_fd(fd) && fails(control->kind)) \
			return -1; \
		return real values; \
	}

ON_FD(fsync, sync, int, (int fd), (fd))
ON_FD(fdatasync, sync, int, (int fd), (fd))
ON_FD(write, write, ssize_t, (int fd, const void *data, size_t n), (fd, data, n))
ON_FD(pwrite, write, ssize_t, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at))
ON_FD(pwrite64, write, ssize_t, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at))
ON_FD(ftruncate, change, int, (int fd, off_t n), (fd, n))
ON_FD(ftruncate64, change, int, (int fd, off64_t n), (fd, n))

#define ON_PATH(name, arguments, values) \
	int name arguments \
	{ \
		REAL(name); \
		if (control->change && of_path(path) && fails(control->change)) \
			return -1; \
		return real values; \
	}

ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, (const char *path, const char *to), (path, to))

#define OPENS(name) \
	int name(const char *path, int flags, ...) \
	{ \
		mode_t		mode = 0; \
		REAL(name); \
		if (flags & (O_CREAT | O_TMPFILE)) \
		{ \
			va_list		rest; \
			va_start(rest, flags); \
			mode = va_arg(rest, mode_t); \
			va_end(rest); \
		} \
		if (control->change && (flags & O_ACCMODE) != O_RDONLY && of_path(path) && fails(control->change)) \
			return -1; \
		return real(path, flags, mode); \
	}

OPENS(open)
OPENS(open64)
