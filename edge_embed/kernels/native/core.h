/* The kernels in C: the same answers as ``reference.py``, which is their meaning, and no word of Python.
 *
 * - Integers and decoded numbers agree with the reference bit for bit: every number is rounded where numpy rounds it
 *   (the build forbids fused multiplications and additions).
 * - Memory that belongs to a bundle may start at any address: it is read by memcpy, never through a wider pointer.
 * - Ids are checked by the caller; codes, pilots and slots are whatever a file said and can lead nowhere outside.
 * - Nothing here allocates; what needs room is handed it.
 */
#ifndef EDGE_EMBED_CORE_H
#define EDGE_EMBED_CORE_H

#include <stddef.h>
#include <stdint.h>

/* From a key to its row (SPEC.md, "Key index"). */
typedef struct {
    const unsigned char *pilots; /* uint16 x bucket_count */
    const unsigned char *slots;  /* (fingerprint, row) uint32 x slot_count */
    uint64_t bucket_count, slot_count, seed;
} ee_index;

uint64_t ee_hash(const unsigned char *key, size_t length, uint64_t seed);

/* Return the row of a key by its hash, or -1. */
int64_t ee_find(const ee_index *index, uint64_t hash);

/* Find many: as ee_find for each, with the reads of several keys under way at a time. */
void ee_find_all(const ee_index *index, const uint64_t *hashes, size_t n, int64_t *rows);

typedef enum { EE_FLOAT32, EE_FLOAT16, EE_INT8, EE_INT4, EE_PQ, EE_OPQ, EE_RQ } ee_codec;

/* A table as its codec stores it; the tensors are those of SPEC.md, "Codecs", and null where a codec has none. */
typedef struct {
    ee_codec codec;
    size_t row_count, dimensions;
    const unsigned char *rows;
    size_t row_bytes;
    const unsigned char *scales;        /* int8: float32 x n; int4: float16 x (n, blocks) */
    const unsigned char *codebooks;     /* float32 (books, 256, width) */
    size_t books, width;
    const unsigned char *rotation;      /* opq: float32 (d, books * width) */
    const unsigned char *length_codes;  /* uint8 x n */
    const unsigned char *length_levels; /* float32 x 256 */
} ee_rows;

#define EE_INT4_BLOCK 32

typedef enum { EE_SUM, EE_MEAN, EE_MAX } ee_mode;

/* One spelling of the hot loops for one instruction set. */
typedef struct {
    const char *name;

    /* Write the rows of n ids to out (n, d). scratch: ee_scratch(rows) floats. */
    void (*decode)(const ee_rows *rows, const int64_t *ids, size_t n, float *out, float *scratch);

    /* Write one vector for each of b bags to out (b, d): counts[i] of the ids make the i-th; none make zeros.
     * weights: a factor for each id, or null. scratch: d + ee_scratch(rows) floats. */
    void (*pool)(const ee_rows *rows, const int64_t *ids, const int64_t *counts, size_t b, const float *weights,
                 ee_mode mode, float *out, float *scratch);

    /* The same for vectors (n, d) that are already decoded. */
    void (*pool_vectors)(const float *vectors, const int64_t *counts, size_t b, size_t d, ee_mode mode, float *out);

    /* Write the dot product of every row with the query (d,) to out (n,). scratch: ee_scan_scratch(rows) floats. */
    void (*scores)(const ee_rows *rows, const float *query, float *out, float *scratch);
} ee_kernels;

/* How many floats of scratch a decoder and a scan need. */
size_t ee_scratch(const ee_rows *rows);
size_t ee_scan_scratch(const ee_rows *rows);

/* Return the spelling that this processor runs best. */
const ee_kernels *ee_choose(void);

#endif
