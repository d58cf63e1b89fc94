/* The kept memory of memory.h: ranges of mapped pages, cut and joined as blocks come and go.
 *
 * As long as there is little, blocks stay as they are.  The next one of the size is mostly that of the
 * same array, one training step later, and has the lines which its threads wrote there in their caches;
 * in one cut elsewhere they would belong to others, and travel.
 */
#if defined(__linux__)
#define _DEFAULT_SOURCE /* madvise, MAP_ANONYMOUS */
#endif
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    LINE = 64,
    APART = 128, /* what one thread writes from what another one does: lines come in pairs */
    UNIT = 64 << 10, /* what ranges are cut in: a page of any system */
    HUGE_PAGE = 2 << 20,
    LITTLE = 32 << 20, /* mapped bytes up to which blocks stay as they are */
    MOST_RECENT = 64,
    MOST_IDLE = 256
};
#define IDLE_LIMIT ((size_t)768 << 20)
#define SET_LIMIT ((size_t)4 << 20) /* of a thread's scratch memory; more is a block like others */
#ifdef CK_CHECKED /* checkers see what lies beyond blocks of the exact size, and freed ones */
#define MAPPED_FROM SIZE_MAX
enum { MOST_SETS = 0 };
#else
#define MAPPED_FROM ((size_t)UNIT) /* smaller blocks are the system's */
enum { MOST_SETS = 8 };
#endif

/* A block begins with a line for its header. */
typedef struct {
    size_t size; /* of the block with the header; of mapped ones a multiple of UNIT */
} header;

typedef struct {
    char *start;
    size_t size;
} range;

static range idle[MOST_IDLE]; /* oldest first; no two of them touch */
static int idle_count;
static size_t idle_bytes;
static range recent[MOST_RECENT]; /* oldest first */
static int recent_count;
static size_t recent_bytes;
static size_t mapped_bytes; /* of all pages, in use or not */
static char *edge;         /* the lowest mapped page, or NULL; new ones are wanted right below */
static long until_failure; /* blocks to come up to the one that is refused; 0: none is */

/* Scratch memory between calls, the youngest last: as much as there have been calls at a time. */
static ck_scratch sets[MOST_SETS + 1];
static int set_count;
static size_t set_bytes;

static size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

static size_t size_of(const ck_scratch *set)
{
    return set->shared + set->stride * (size_t)set->threads;
}

static void remove_idle(int i)
{
    idle_bytes -= idle[i].size;
    idle_count--;
    memmove(idle + i, idle + i + 1, (size_t)(idle_count - i) * sizeof *idle);
}

/* Return the first bytes of an idle range to the system. */
static void unmap_idle(int i, size_t bytes)
{
    char *start = idle[i].start;
    munmap(start, bytes);
    mapped_bytes -= bytes;
    if (start == edge)
        edge += bytes;
    if (bytes == idle[i].size) {
        remove_idle(i);
    } else {
        idle[i].start += bytes;
        idle[i].size -= bytes;
        idle_bytes -= bytes;
    }
}

/* Join a range with the idle ones that it touches; it becomes the youngest. */
static void add_idle(char *start, size_t size)
{
    for (int i = idle_count - 1; i >= 0; i--) {
        const range other = idle[i];
        if (other.start + other.size != start && start + size != other.start)
            continue;
        remove_idle(i);
        start = other.start < start ? other.start : start;
        size += other.size;
    }
    if (idle_count == MOST_IDLE)
        unmap_idle(0, idle[0].size);
    idle[idle_count++] = (range){start, size};
    idle_bytes += size;
}

/* Cut a block off the end of the smallest idle range that holds it, of several the youngest, or return
 * NULL: so one call after the other finds the same block, and in it what is in its caches. */
static char *take_idle(size_t bytes)
{
    int best = -1;
    for (int i = 0; i < idle_count; i++)
        if (idle[i].size >= bytes && (best < 0 || idle[i].size <= idle[best].size))
            best = i;
    if (best < 0)
        return NULL;
    char *block = idle[best].start + idle[best].size - bytes;
    if (block == idle[best].start) {
        remove_idle(best);
    } else {
        idle[best].size -= bytes;
        idle_bytes -= bytes;
    }
    return block;
}

static range remove_recent(int i)
{
    const range block = recent[i];
    recent_bytes -= block.size;
    recent_count--;
    memmove(recent + i, recent + i + 1, (size_t)(recent_count - i) * sizeof *recent);
    return block;
}

/* Join the oldest recent block with other idle memory. */
static void settle(void)
{
    const range block = remove_recent(0);
    add_idle(block.start, block.size);
}

static void settle_all(void)
{
    while (recent_count > 0)
        settle();
}

static void add_recent(char *start, size_t size)
{
    if (recent_count == MOST_RECENT)
        settle();
    recent[recent_count++] = (range){start, size};
    recent_bytes += size;
}

/* Return the youngest recent block of a size, or NULL. */
static char *take_recent(size_t bytes)
{
    for (int i = recent_count - 1; i >= 0; i--)
        if (recent[i].size == bytes)
            return remove_recent(i).start;
    return NULL;
}

/* Return what is more than the limit, the oldest first. */
static void trim_idle(void)
{
    if (ck_idle_bytes() > IDLE_LIMIT)
        settle_all();
    while (idle_count > 0 && ck_idle_bytes() > IDLE_LIMIT) {
        const size_t over = ck_idle_bytes() - IDLE_LIMIT;
        unmap_idle(0, over < idle[0].size ? over : idle[0].size);
    }
}

static char *map_pages(char *wanted, size_t bytes)
{
    void *pages = mmap(wanted, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

/* Map what is missing below the lowest page, or else the whole anew; tell whether that went well. */
static int grow(size_t bytes)
{
    size_t room = 0, missing;
    char *pages = NULL;
    for (int i = 0; i < idle_count; i++)
        if (idle[i].start == edge)
            room = idle[i].size;
    missing = round_up(bytes - room, HUGE_PAGE);
    if ((uintptr_t)edge > missing) {
        pages = map_pages(edge - missing, missing);
        if (pages != NULL && pages != edge - missing) { /* something else is there */
            munmap(pages, missing);
            pages = NULL;
        }
    }
    if (pages == NULL) {
        missing = round_up(bytes, HUGE_PAGE);
        char *found = map_pages(NULL, missing + HUGE_PAGE);
        if (found == NULL)
            return 0;
        const size_t before = HUGE_PAGE - (uintptr_t)found % HUGE_PAGE;
        pages = found + before;
        munmap(found, before);
        if (before < HUGE_PAGE)
            munmap(pages + missing, HUGE_PAGE - before);
    }
#if defined(__linux__)
    madvise(pages, missing, MADV_HUGEPAGE);
#endif
    edge = pages;
    mapped_bytes += missing;
    add_idle(pages, missing);
    return 1;
}

static char *take_mapped(size_t bytes)
{
    char *block = take_recent(bytes);
    if (block == NULL)
        block = take_idle(bytes);
    if (block == NULL && mapped_bytes + bytes > LITTLE) {
        settle_all();
        block = take_idle(bytes);
    }
    if (block != NULL)
        return block;
    if (!grow(bytes)) {
        ck_release_idle();
        if (!grow(bytes))
            return NULL;
    }
    return take_idle(bytes);
}

void *ck_take(size_t size)
{
    if (size > SIZE_MAX / 2 || (until_failure > 0 && --until_failure == 0))
        return NULL;
    size_t bytes = LINE + size;
    void *block = NULL;
    if (bytes >= MAPPED_FROM) {
        bytes = round_up(bytes, UNIT);
        block = take_mapped(bytes);
    } else if (posix_memalign(&block, LINE, bytes) != 0) {
        ck_release_idle();
        if (posix_memalign(&block, LINE, bytes) != 0)
            block = NULL;
    }
    if (block == NULL)
        return NULL;
    ((header *)block)->size = bytes;
    return (char *)block + LINE;
}

void *ck_resize(void *memory, size_t size)
{
    if (memory == NULL)
        return ck_take(size);
    const size_t capacity = ((header *)((char *)memory - LINE))->size - LINE;
    void *other = ck_take(size);
    if (other != NULL) {
        memcpy(other, memory, size < capacity ? size : capacity);
        ck_give(memory);
    }
    return other;
}

void ck_give(void *memory)
{
    if (memory == NULL)
        return;
    char *block = (char *)memory - LINE;
    const size_t bytes = ((header *)block)->size;
    if (bytes < MAPPED_FROM) {
        free(block);
        return;
    }
    if (mapped_bytes <= LITTLE)
        add_recent(block, bytes);
    else
        add_idle(block, bytes);
    trim_idle();
}

int ck_take_scratch(ck_scratch *scratch, size_t shared, size_t bytes, int threads)
{
    ck_scratch set, wanted = {NULL, round_up(shared, APART), round_up(bytes, APART), threads};
    if (set_count > 0 && bytes <= SET_LIMIT) {
        set = sets[--set_count];
        set_bytes -= size_of(&set);
        if (set.shared >= shared && set.stride >= bytes && set.threads >= threads) {
            *scratch = set;
            return 1;
        }
        wanted.shared = most(wanted.shared, set.shared);
        wanted.stride = most(wanted.stride, set.stride);
        wanted.threads = threads > set.threads ? threads : set.threads;
        ck_give(set.memory);
    }
    wanted.memory = ck_take(size_of(&wanted));
    *scratch = wanted;
    return wanted.memory != NULL;
}

void ck_give_scratch(const ck_scratch *scratch)
{
    if (scratch->stride > SET_LIMIT || set_count == MOST_SETS
        || set_bytes + size_of(scratch) > IDLE_LIMIT) {
        ck_give(scratch->memory);
        return;
    }
    sets[set_count++] = *scratch;
    set_bytes += size_of(scratch);
    trim_idle();
}

void ck_release_idle(void)
{
    while (set_count > 0)
        ck_give(sets[--set_count].memory);
    set_bytes = 0;
    settle_all();
    while (idle_count > 0)
        unmap_idle(idle_count - 1, idle[idle_count - 1].size);
}

size_t ck_idle_bytes(void) { return idle_bytes + recent_bytes + set_bytes; }

long ck_fail(long count)
{
    const long left = until_failure;
    until_failure = count;
    return left;
}
