/* Which kernel tables this build holds and which of them this CPU can run; the floating-point
 * environment; how many threads may be started. */
#include "ck.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define CK_TABLES(isa) extern const ck_kernels ck_f32_table__##isa, ck_f64_table__##isa;
CK_TABLES(baseline)
#ifdef CK_HAVE_AVX2
CK_TABLES(avx2)
#endif
#ifdef CK_HAVE_AVX512
CK_TABLES(avx512)
#endif
#ifdef CK_HAVE_NEON
CK_TABLES(neon)
#endif

static int always(void) { return 1; }
#if defined(CK_HAVE_AVX2)
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#if defined(CK_HAVE_AVX512)
static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* Best last. */
static const struct {
    const char *name;
    int (*supported)(void);
    const ck_kernels *tables[CK_DTYPES];
} isas[] = {
#define CK_ROW(isa, supported) {#isa, supported, {&ck_f32_table__##isa, &ck_f64_table__##isa}},
    CK_ROW(baseline, always)
#ifdef CK_HAVE_AVX2
    CK_ROW(avx2, has_avx2)
#endif
#ifdef CK_HAVE_AVX512
    CK_ROW(avx512, has_avx512)
#endif
#ifdef CK_HAVE_NEON
    CK_ROW(neon, always)
#endif
};
enum { ISAS = sizeof isas / sizeof *isas };

const char *const *ck_isa_names(void)
{
    static const char *names[ISAS + 1];
    for (int i = 0; i < ISAS; i++)
        names[i] = isas[i].name;
    return names;
}

const ck_kernels *ck_table(const char *name, int dtype)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
#endif
    for (int i = 0; i < ISAS; i++)
        if (strcmp(isas[i].name, name) == 0 && isas[i].supported())
            return isas[i].tables[dtype];
    return NULL;
}

int ck_isa_supported(const char *name) { return ck_table(name, CK_F32) != NULL; }

/* ---------------------------------------------------------------- floating-point environment */

#if defined(__x86_64__) || defined(__SSE__)
#include <xmmintrin.h>
uint64_t ck_fp_default(void)
{
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1f80); /* all exceptions masked, round to nearest, subnormals kept */
    return saved;
}
void ck_fp_restore(uint64_t saved) { _mm_setcsr((unsigned)saved); }
#elif defined(__aarch64__)
uint64_t ck_fp_default(void)
{
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return saved;
}
void ck_fp_restore(uint64_t saved) { __asm__ volatile("msr fpcr, %0" : : "r"(saved)); }
#else
uint64_t ck_fp_default(void) { return 0; }
void ck_fp_restore(uint64_t saved) { (void)saved; }
#endif

/* ---------------------------------------------------------------- threads */

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* The stack that libgomp gives to its threads, or 0 for the usual one. */
static size_t stack_size(void)
{
    const char *text = getenv("OMP_STACKSIZE");
    char *unit = NULL;
    if (text == NULL)
        return 0;
    const unsigned long long count = strtoull(text, &unit, 10);
    while (isspace((unsigned char)*unit))
        unit++;
    int shift = 10;
    switch (tolower((unsigned char)*unit)) {
    case 'b': shift = 0; break;
    case 'm': shift = 20; break;
    case 'g': shift = 30; break;
    }
    return count > SIZE_MAX >> shift ? 0 : (size_t)count << shift;
}

static pthread_mutex_t release = PTHREAD_MUTEX_INITIALIZER;

/* The thread of a probe: leaves its number and waits. */
static void *wait_for_release(void *number)
{
#if defined(__linux__)
    *(long *)number = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(&release);
    pthread_mutex_unlock(&release);
    return number;
}

/* Wait until a thread that has ended does not count any more: joining it comes before that. */
static void wait_for_end(long number)
{
#if defined(__linux__)
    for (int i = 0; i < 100000 && syscall(SYS_tgkill, getpid(), number, 0) == 0; i++)
        sched_yield();
#else
    (void)number;
#endif
}

/* How many of `wanted` further threads can live at once, found by starting them. */
static int probe_threads(int wanted)
{
    enum { MOST = 1024 };
    pthread_t threads[MOST];
    long numbers[MOST];
    pthread_attr_t attributes;
    int started = 0;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack_size()); /* one too small is refused, as there */
    pthread_mutex_lock(&release);
    while (started < wanted && started < MOST
           && pthread_create(&threads[started], &attributes, wait_for_release,
                             &numbers[started]) == 0)
        started++;
    pthread_attr_destroy(&attributes);
    pthread_mutex_unlock(&release);
    for (int i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
        wait_for_end(numbers[i]);
    }
    return started;
}
#else
static int probe_threads(int wanted) { return wanted; }
#endif

int ck_grow_team(int wanted, void (*start)(int threads))
{
    static _Thread_local int team = 1; /* what this thread's pool held at its last region */
    if (wanted > team) {
        const int places = probe_threads(wanted);
        wanted = places > 1 ? places : 1; /* one place is left for others */
        start(wanted);
    }
    team = wanted;
    return wanted;
}
