/* A QEMU plugin that counts, for every virtual CPU and every 4 KB page of guest memory, the bytes read and written.
 *
 *   -plugin remote.so,out=FOLDER,mb=N[,slow=K]      N: megabytes of guest memory
 *
 * Counting happens between two marker instructions that the guest executes: an 8-byte no-op with a number in it
 * (0f 1f 84 00 <imm32>). START clears the counters; STOP writes FOLDER/<k>.counts, k = 0, 1, ...: an array of `record`.
 * Until the first START the guest runs without instrumentation, at the emulator's full speed.
 *
 * With slow=K, and this library in LD_PRELOAD too, QEMU's clock runs K times slower while counting: an emulated CPU does so much less
 * in a second than a real one that a token would have dozens of timer ticks for each one it really has. What the guest takes its time
 * from must come from that clock: no TSC, which QEMU takes from the host's.
 *
 * The declarations are those of version 1 of QEMU's plugin interface (QEMU 4.2 to 8.2), as far as they are used here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
typedef uint32_t access_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
struct guest_info {
    const char *target;
    struct { int min, cur; } version;
    bool system_emulation;
    struct { int cpus, max_cpus; } system;
};
enum { NO_REGISTERS = 0, READ_AND_WRITE = 3 };

void qemu_plugin_reset(plugin_id, void (*then)(plugin_id));
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned cpu, void *), int registers, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, void (*)(unsigned cpu, access_info, uint64_t vaddr, void *),
                                      int registers, int kind, void *);
unsigned qemu_plugin_mem_size_shift(access_info);
bool qemu_plugin_mem_is_store(access_info);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(access_info, uint64_t vaddr);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *);
EXPORT int qemu_plugin_version = 1;

enum { START = 0x4e554d01, STOP = 0x4e554d02, PAGE_SHIFT = 12, MAX_CPUS = 64 };
static const uint8_t no_op[4] = {0x0f, 0x1f, 0x84, 0x00};

typedef struct { uint64_t read, written; } count;
typedef struct { uint32_t cpu, page; count bytes; } record;

static plugin_id self;
static const char *folder;
static int n_cpus, n_dumps;
static volatile bool counting, instrumenting;
static uint64_t n_pages;          /* addresses as the plugin interface gives them: see README.md, "Addresses" */
static count *counts[MAX_CPUS];   /* n_pages each; a row has one writer, its CPU's thread */

/* ---- the clock: told = since + (true - from) / slow ---------------------------------------------------------------------------- */

typedef struct { int64_t from, since; int slow; } pace;

static pace paces[2] = {{0, 0, 1}};      /* one is read while the other is written: changes are seconds apart */
static _Atomic(pace *) current = paces;
static int slow_while_counting = 1;

static int64_t true_ns(clockid_t which) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    struct timespec t;
    return real(which, &t) ? -1 : t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int64_t told_ns(void) {
    pace p = *atomic_load(&current);
    return p.since + (true_ns(CLOCK_MONOTONIC) - p.from) / p.slow;
}

static void set_pace(int slow) {
    pace *next = &paces[atomic_load(&current) == paces];
    *next = (pace){true_ns(CLOCK_MONOTONIC), told_ns(), slow};
    atomic_store(&current, next);
}

EXPORT int clock_gettime(clockid_t which, struct timespec *t) {
    int64_t ns = which == CLOCK_MONOTONIC ? told_ns() : true_ns(which);
    *t = (struct timespec){ns / 1000000000, ns % 1000000000};
    return ns < 0 ? -1 : 0;
}

/* QEMU's main loop waits here for the guest's next timer. */
EXPORT int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask) {
    static int (*real)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);
    if (!real) real = dlsym(RTLD_NEXT, "ppoll");
    if (!timeout) return real(fds, n, NULL, mask);
    int64_t ns = (timeout->tv_sec * 1000000000ll + timeout->tv_nsec) * atomic_load(&current)->slow;
    return real(fds, n, &(struct timespec){ns / 1000000000, ns % 1000000000}, mask);
}

/* ---- counting ------------------------------------------------------------------------------------------------------------------ */

static void on_access(unsigned cpu, access_info info, uint64_t vaddr, void *nothing) {
    if (!counting || cpu >= (unsigned)n_cpus) return;
    struct qemu_plugin_hwaddr *where = qemu_plugin_get_hwaddr(info, vaddr);
    if (!where || qemu_plugin_hwaddr_is_io(where)) return;
    uint64_t page = qemu_plugin_hwaddr_phys_addr(where) >> PAGE_SHIFT;
    if (page >= n_pages) return;
    uint64_t bytes = 1u << qemu_plugin_mem_size_shift(info);
    if (qemu_plugin_mem_is_store(info)) counts[cpu][page].written += bytes;
    else counts[cpu][page].read += bytes;
}

static void dump(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%d.counts", folder, n_dumps++);
    FILE *f = fopen(path, "wb");
    if (!f) { perror(path); exit(1); }
    for (int cpu = 0; cpu < n_cpus; cpu++)
        for (uint64_t page = 0; page < n_pages; page++) {
            record r = {(uint32_t)cpu, (uint32_t)page, counts[cpu][page]};
            if (r.bytes.read | r.bytes.written) fwrite(&r, sizeof r, 1, f);
        }
    if (fclose(f)) { perror(path); exit(1); }
}

static void translated(plugin_id, struct qemu_plugin_tb *);

static void translate_anew(plugin_id id) { qemu_plugin_register_vcpu_tb_trans_cb(id, translated); }

static void on_marker(unsigned cpu, void *number) {
    if ((uintptr_t)number == START && !counting) {
        for (int i = 0; i < n_cpus; i++) memset(counts[i], 0, n_pages * sizeof *counts[i]);
        counting = true;
        set_pace(slow_while_counting);
        /* Throws all translated code away, once: the next reset would free callbacks that another CPU may be about to call. */
        if (!instrumenting) qemu_plugin_reset(self, translate_anew);
        instrumenting = true;
    } else if ((uintptr_t)number == STOP && counting) {
        counting = false;
        set_pace(1);
        dump();
    }
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    for (size_t i = 0, n = qemu_plugin_tb_n_insns(block); i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
        const uint8_t *code = qemu_plugin_insn_data(insn);
        uint32_t number;
        if (qemu_plugin_insn_size(insn) == 8 && !memcmp(code, no_op, 4)) {
            memcpy(&number, code + 4, 4);
            if (number == START || number == STOP)
                qemu_plugin_register_vcpu_insn_exec_cb(insn, on_marker, NO_REGISTERS, (void *)(uintptr_t)number);
        }
        if (instrumenting) qemu_plugin_register_vcpu_mem_cb(insn, on_access, NO_REGISTERS, READ_AND_WRITE, NULL);
    }
}

EXPORT int qemu_plugin_install(plugin_id id, const struct guest_info *guest, int argc, char **argv) {
    self = id;
    n_cpus = guest->system.max_cpus;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4)) folder = argv[i] + 4;
        else if (!strncmp(argv[i], "slow=", 5)) slow_while_counting = atoi(argv[i] + 5);
        else if (!strncmp(argv[i], "mb=", 3)) n_pages = 2 * strtoull(argv[i] + 3, NULL, 10) << (20 - PAGE_SHIFT);
    }
    if (!guest->system_emulation || n_cpus > MAX_CPUS || !folder || !n_pages || slow_while_counting < 1) {
        fprintf(stderr, "remote: wanted a machine of at most %d CPUs, out=FOLDER, mb=N and slow=K of at least 1\n", MAX_CPUS);
        return 1;
    }
    for (int i = 0; i < n_cpus; i++)
        if (!(counts[i] = calloc(n_pages, sizeof *counts[i]))) return 1;
    translate_anew(id);
    return 0;
}
