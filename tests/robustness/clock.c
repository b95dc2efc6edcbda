/* Preloaded into a process, this makes its wall clock jump: by days forwards and backwards, every quarter of a
 * second of real time. HOLDS_CLOCK is the list of jumps in seconds, separated by commas; one number stays as it is.
 * The monotonic clock, which never jumps, is left alone. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jumps[64];
static int count = -1;

static void load(void) {
    const char *text = getenv("HOLDS_CLOCK");
    int n = 0;
    while (text && *text && n < 64) {
        char *end;
        jumps[n++] = strtol(text, &end, 10);
        text = *end ? end + 1 : end;
    }
    count = n;
}

static long jump(void) {
    struct timespec now;
    if (count < 0) load();
    if (count <= 0) return 0;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return jumps[(now.tv_sec * 4 + now.tv_nsec / 250000000) % count];
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    int result = (int)syscall(SYS_clock_gettime, clock, out);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) out->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
