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

typedef enum { EE_FLOAT32, EE_FLOAT16, EE_INT8, EE_INT4, EE_PLANE, EE_PQ, EE_OPQ, EE_RQ } ee_codec;

/* A table as its codec stores it; the tensors are those of SPEC.md, "Codecs", and null where a codec has none. */
typedef struct {
    ee_codec codec;
    size_t row_count, dimensions;
    const unsigned char *rows;
    size_t row_bytes;
    const unsigned char *scales;        /* int8, plane: float32 x n; int4: float16 x (n, blocks) */
    const unsigned char *codebooks;     /* float32 (books, 256, width) */
    size_t books, width;
    const unsigned char *rotation;      /* opq: float32 (d, books * width) */
    const unsigned char *length_codes;  /* uint8 x n */
    const unsigned char *length_levels; /* float32 x 256 */
} ee_rows;

#define EE_INT4_BLOCK 32

/* Whole numbers are multiplied up to so many bytes of a row at a time; a query is padded with zeros to a multiple. */
#define EE_PADDING 64

static inline size_t ee_padded(size_t bytes) { return (bytes + EE_PADDING - 1) / EE_PADDING * EE_PADDING; }

typedef enum { EE_SUM, EE_MEAN, EE_MAX } ee_mode;

/* A query in the form in which a codec's rows are compared with it. */
typedef struct {
    const float *query;         /* (d,) */
    const int16_t *levels;      /* int8: whole numbers, each worth step */
    const int8_t *lows, *highs; /* plane: those of the numbers in low and in high halves of a byte; int8: of a level */
    int64_t lowered;            /* plane: what codes that were stored with 8 added count too much */
    double step;
    const float *products;      /* pq, opq, rq: (books, 256), with each centroid */
    float *row;                 /* others: room for a decoded one */
} ee_query;

/* How far in front of a scan its bytes are asked for: what processors fetch by themselves is less than memory can give
 * (Xeon, 2026-11: 20 instead of 8 GB/s of 25; the same between 4 and 8 KiB). */
#define EE_SCAN_AHEAD 4096

static inline size_t ee_rows_ahead(const ee_rows *rows) { return EE_SCAN_AHEAD / (rows->row_bytes + 1) + 1; }

/* Places at which a long scan of int8 rows reads side by side: memory gives more to four streams than to one, be they
 * fetched ahead or not (Xeon, 2026-11: 24 % more rows in a second; two streams 12 %, eight as many as four). Elsewhere one:
 * it costs 12 instructions a row, and boards wait for the processor before they wait for memory. */
#if defined(__x86_64__)
#define EE_STREAMS 4
#else
#define EE_STREAMS 1
#endif

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

    /* Make a query (d,) ready for scores. scratch: ee_scan_scratch(rows) floats, the query's as long as it is asked. */
    ee_query (*prepare)(const ee_rows *rows, const float *query, float *scratch);

    /* Write the dot products of count rows from first on with the query to out (count,). Meanwhile as many rows from
     * ahead on are asked for: those that are scored next. */
    void (*scores)(const ee_rows *rows, const ee_query *query, size_t first, size_t count, size_t ahead, float *out);

    /* The same of int8 rows at EE_STREAMS places that are segment rows apart, to out (EE_STREAMS, count). */
    void (*scores_in_streams)(const ee_rows *rows, const ee_query *query, size_t first, size_t count, size_t segment,
                              size_t ahead, float *out);
} ee_kernels;

/* A row and its score, in one number: see search.c. */
typedef uint64_t ee_hit;

int64_t ee_row_of(ee_hit hit);
float ee_score_of(ee_hit hit);

/* The best rows of one query so far, in any order: k of them and more, until there is no room. */
typedef struct {
    size_t count, k, room; /* room: more than k, or the rows there are */
    ee_hit *hits;
    float length;    /* of the query */
    int64_t without; /* a row that is left out, or -1 */
    int has_bar;
    ee_hit bar;      /* what comes after it is none of the k best */
    float bar_score;
} ee_best;

/* Whose cosines are asked for: q queries over runs of rows, in their order. */
typedef struct {
    const ee_rows *rows;
    const float *norms;           /* (n,), of the decoded rows; where there are bases, all are 1 */
    const ee_query *queries;      /* (q,) */
    size_t q;
    const int64_t *runs;          /* (r, 2): rows from the first to before the second */
    size_t r;
    const unsigned char *wanted;  /* (q, r): which query wants which run; null: all want all */
    const float *bases;           /* (q, r): the cosine of a query with what a run's rows are beyond; null: with nothing */
    int64_t deadline_ns;          /* on the clock that only goes forward; 0: as long as it takes */
} ee_scan;

/* Find the k best rows of each query by cosine; of equal ones the first. Return whether all were looked at before the
 * deadline; a block of rows is, whatever the deadline says. */
int ee_nearest(const ee_kernels *kernels, const ee_scan *scan, ee_best *best);

/* Rows that are on their way while one is compared. */
#define EE_FETCHED 8

/* Replace scores by those of a finer table of the same rows, and keep the k best. */
void ee_compare(const ee_kernels *kernels, const ee_rows *rows, const float *norms, const ee_query *query, size_t k,
                ee_best *best);

/* Put the best one first. */
void ee_in_order(ee_best *best);

/* Return the Euclidean length of a query. */
float ee_length(const float *query, size_t d);

/* How many floats of scratch a decoder and a scan need. */
size_t ee_scratch(const ee_rows *rows);
size_t ee_scan_scratch(const ee_rows *rows);

/* Return the spelling of a name, or what this processor runs best if it is null or empty; null if this build has none of
 * that name that the processor runs. */
const ee_kernels *ee_choose(const char *asked);

/* Return all that this processor runs, best first, with null behind them. */
const ee_kernels *const *ee_variants(void);

#endif
