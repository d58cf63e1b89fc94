/* Blocks of memory whose pages stay mapped between calls.
 *
 * The first touch of fresh pages costs more than many a convolution, so
 * scratch and large results come from blocks that are kept, up to a bound,
 * when they are given back.  All of it runs under the GIL, which is its lock.
 */
#ifndef CK_MEMORY_H
#define CK_MEMORY_H

#include <stddef.h>

/* A block of at least `size` bytes, aligned to a cache line, or NULL. */
void *ck_take(size_t size);
/* The same contents in a block of another size, or NULL and the old block stays. */
void *ck_resize(void *block, size_t size);
/* Give a block back; NULL is allowed. */
void ck_give(void *block);

/* Scratch memory of a team: `bytes` for each of its `threads`, that of one `stride` behind that of
 * another, and before it `shared` bytes for all. */
typedef struct {
    char *memory; /* a block */
    size_t shared, stride;
    int threads;
} ck_scratch;

/* Find some; tell whether there is any.  A thread gets what it had before, whatever was called:
 * otherwise lines that one has written would travel to another. */
int ck_take_scratch(ck_scratch *scratch, size_t shared, size_t bytes, int threads);
void ck_give_scratch(const ck_scratch *scratch);

/* Return all idle blocks to the system. */
void ck_release_idle(void);
size_t ck_idle_bytes(void);
/* For tests: refuse the block that is `count` from now, 0 for none; return what was left of that. */
long ck_fail(long count);

#endif
