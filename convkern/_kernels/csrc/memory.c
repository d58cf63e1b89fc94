/* The kept blocks of memory.h: a short list of idle blocks, the oldest released first. */
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { LINE = 64, HUGE_PAGE = 2 << 20, MOST_IDLE = 256, CACHED = 4 << 20 };
#ifdef CK_CHECKED /* checkers see what lies beyond blocks of the exact size, and freed ones */
enum { KEEP = 0 };
#else
enum { KEEP = 1 };
#endif
#define IDLE_LIMIT (KEEP * (size_t)768 << 20)

/* A block starts with one line that holds its capacity. */
typedef struct {
    size_t capacity;
} header;

static header *idle[MOST_IDLE]; /* oldest first */
static int idle_count;
static size_t idle_bytes;
static long until_failure; /* blocks to come up to the one that is refused; 0: none is */

static header *remove_idle(int i)
{
    header *block = idle[i];
    idle_bytes -= block->capacity;
    idle_count--;
    memmove(idle + i, idle + i + 1, (size_t)(idle_count - i) * sizeof *idle);
    return block;
}

void *ck_take(size_t size)
{
    if (size > SIZE_MAX / 2 || (until_failure > 0 && --until_failure == 0))
        return NULL;
    /* Of blocks that fit and are not much too large: what was given back last may still be in the
     * caches; where that is more than they hold, the smallest, or large ones would be made anew. */
    int best = -1;
    for (int i = idle_count - 1; i >= 0 && (best < 0 || size >= CACHED); i--)
        if (idle[i]->capacity >= size && idle[i]->capacity / 4 <= size
            && (best < 0 || idle[i]->capacity < idle[best]->capacity))
            best = i;
    header *block;
    if (best >= 0) {
        block = remove_idle(best);
    } else {
        const int huge = KEEP && size >= HUGE_PAGE;
        const size_t unit = huge ? HUGE_PAGE : LINE, step = KEEP ? unit : 1;
        const size_t bytes = (size + LINE + step - 1) / step * step;
        void *memory = NULL;
        if (posix_memalign(&memory, unit, bytes) != 0) {
            ck_release_idle();
            if (posix_memalign(&memory, unit, bytes) != 0)
                return NULL;
        }
#if defined(__linux__)
        if (huge)
            madvise(memory, bytes, MADV_HUGEPAGE);
#endif
        block = memory;
        block->capacity = bytes - LINE;
    }
    return (char *)block + LINE;
}

void *ck_resize(void *memory, size_t size)
{
    if (memory == NULL)
        return ck_take(size);
    const size_t capacity = ((header *)((char *)memory - LINE))->capacity;
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
    header *block = (header *)((char *)memory - LINE);
    if (block->capacity > IDLE_LIMIT) {
        free(block);
        return;
    }
    while (idle_count == MOST_IDLE || idle_bytes + block->capacity > IDLE_LIMIT)
        free(remove_idle(0));
    idle[idle_count++] = block;
    idle_bytes += block->capacity;
}

void ck_release_idle(void)
{
    while (idle_count > 0)
        free(remove_idle(idle_count - 1));
}

size_t ck_idle_bytes(void) { return idle_bytes; }

long ck_fail(long count)
{
    const long left = until_failure;
    until_failure = count;
    return left;
}
