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
/* Return all idle blocks to the system. */
void ck_release_idle(void);
size_t ck_idle_bytes(void);
/* For tests: refuse the block that is `count` from now, 0 for none; return what was left of that. */
long ck_fail(long count);

#endif
