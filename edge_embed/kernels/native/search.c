/* The best rows by cosine: one scan of runs of rows for all queries that want them, and a closer look at a few. */
#define _POSIX_C_SOURCE 199309L

#include "core.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

/* Rows whose scores are made before they are looked at; of wide rows fewer, so that they are still in the cache when
 * the next query asks for them. */
#define BLOCK_ROWS 256
#define BLOCK_BYTES (64 * 1024)
/* Rows for a query that nothing was scanned for before the deadline. */
#define LATE_ROWS 16
#define LINE 64

float ee_length(const float *query, size_t d) {
    double sum = 0;
    for (size_t i = 0; i < d; i++)
        sum += (double)query[i] * query[i];
    return (float)sqrt(sum);
}

/* The order of an answer: of equal scores the first row; what is no number comes last. */
static inline int is_before(ee_hit a, ee_hit b) {
    if (a.score > b.score)
        return 1;
    if (a.score < b.score)
        return 0;
    if (isnan(a.score) != isnan(b.score))
        return isnan(b.score);
    return a.row < b.row;
}

static int by_score(const void *a, const void *b) {
    return is_before(*(const ee_hit *)a, *(const ee_hit *)b) ? -1 : 1;
}

static int by_row(const void *a, const void *b) {
    return ((const ee_hit *)a)->row < ((const ee_hit *)b)->row ? -1 : 1;
}

static inline void swap(ee_hit *hits, size_t a, size_t b) {
    ee_hit hit = hits[a];
    hits[a] = hits[b];
    hits[b] = hit;
}

/* Put the k that come first to the front, in any order (Hoare, "Algorithm 65: Find", CACM 4, 1961). */
static void select_first(ee_hit *hits, size_t count, size_t k) {
    size_t from = 0, to = count;
    while (to - from > 1) {
        size_t middle = from + (to - from) / 2, first_after = from + 1;
        /* The middle one of three, so that hits that come in order cost no more than others. */
        if (is_before(hits[middle], hits[from]))
            swap(hits, middle, from);
        if (is_before(hits[to - 1], hits[from]))
            swap(hits, to - 1, from);
        if (is_before(hits[to - 1], hits[middle]))
            swap(hits, to - 1, middle);
        swap(hits, from, middle);
        for (size_t i = from + 1; i < to; i++)
            if (is_before(hits[i], hits[from]))
                swap(hits, i, first_after++);
        swap(hits, from, first_after - 1);
        if (first_after - 1 == k || first_after == k)
            return;
        if (first_after <= k)
            from = first_after;
        else
            to = first_after - 1;
    }
}

/* Note a hit: where the room is full, the k best stay, and the worst of them is what others have to pass. */
static void offer(ee_best *best, ee_hit hit) {
    if (hit.row == best->without || (best->has_bar && !is_before(hit, best->bar)))
        return;
    best->hits[best->count++] = hit;
    if (best->count < best->room)
        return;
    if (best->k < best->count) {
        select_first(best->hits, best->count, best->k);
        best->count = best->k;
    }
    if (best->count == best->k && best->k) {
        best->bar = best->hits[0];
        for (size_t i = 1; i < best->k; i++)
            if (is_before(best->bar, best->hits[i]))
                best->bar = best->hits[i];
        best->has_bar = 1;
    }
}

static inline ee_hit hit_of(float product, float norm, float length, size_t row) {
    float lengths = norm * length;
    ee_hit hit = {lengths > 0 ? product / lengths : 0, (int64_t)row};
    return hit;
}

static void offer_block(const ee_scan *scan, size_t first, size_t count, const float *products, ee_best *best) {
    for (size_t i = 0; i < count; i++) {
        ee_hit hit = hit_of(products[i], scan->norms[first + i], best->length, first + i);
        /* Nearly all rows end here. */
        if (!best->has_bar || !(hit.score < best->bar.score))
            offer(best, hit);
    }
}

static int is_late(int64_t deadline_ns) {
    struct timespec now;
    if (!deadline_ns || clock_gettime(CLOCK_MONOTONIC, &now))
        return 0;
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec >= deadline_ns;
}

static void keep_best(ee_best *best) {
    if (best->count > best->k) {
        select_first(best->hits, best->count, best->k);
        best->count = best->k;
    }
}

/* Whether a query has an answer, if only from the first rows that it was offered. */
static inline int is_answered(const ee_best *best) { return best->count || !best->k; }

static int all_answered(const ee_best *best, size_t q) {
    for (size_t i = 0; i < q; i++)
        if (!is_answered(&best[i]))
            return 0;
    return 1;
}

int ee_nearest(const ee_kernels *kernels, const ee_scan *scan, ee_best *best) {
    float products[BLOCK_ROWS];
    size_t fitting = BLOCK_BYTES / (scan->rows->row_bytes + 1), block = BLOCK_ROWS;
    int late = 0, is_whole = 1, is_over = 0;
    if (scan->q > 1 && fitting < block)
        block = fitting ? fitting : 1;
    for (size_t run = 0; run < scan->r && !is_over; run++) {
        size_t stop = (size_t)scan->runs[2 * run + 1];
        for (size_t first = (size_t)scan->runs[2 * run], count; first < stop; first += count) {
            count = stop - first < block ? stop - first : block;
            if ((is_over = late && all_answered(best, scan->q))) {
                is_whole = 0;
                break;
            }
            for (size_t q = 0; q < scan->q; q++) {
                size_t looked_at = late && count > LATE_ROWS ? LATE_ROWS : count;
                if (scan->wanted && !scan->wanted[q * scan->r + run])
                    continue;
                if (late && is_answered(&best[q]))
                    looked_at = 0;
                is_whole = is_whole && looked_at == count;
                if (!looked_at)
                    continue;
                kernels->scores(scan->rows, &scan->queries[q], first, looked_at, products);
                offer_block(scan, first, looked_at, products, &best[q]);
                late = late || is_late(scan->deadline_ns);
            }
        }
    }
    for (size_t q = 0; q < scan->q; q++)
        keep_best(&best[q]);
    return is_whole;
}

/* Inlined at once: see rows.c. */
static inline __attribute__((always_inline)) void fetch(const ee_rows *rows, int64_t row) {
    const unsigned char *at = rows->rows + (size_t)row * rows->row_bytes;
    for (size_t i = 0; i < rows->row_bytes; i += LINE)
        __builtin_prefetch(at + i);
    if (rows->codec == EE_INT8)
        __builtin_prefetch(rows->scales + 4 * (size_t)row);
}

void ee_compare(const ee_kernels *kernels, const ee_rows *rows, const float *norms, const ee_query *query, size_t k,
                ee_best *best) {
    /* In the order in which they lie: a page of flash is read once. */
    qsort(best->hits, best->count, sizeof *best->hits, by_row);
    for (size_t i = 0; i < best->count && i < EE_FETCHED; i++)
        fetch(rows, best->hits[i].row);
    for (size_t i = 0; i < best->count; i++) {
        size_t row = (size_t)best->hits[i].row;
        float product;
        if (i + EE_FETCHED < best->count)
            fetch(rows, best->hits[i + EE_FETCHED].row);
        kernels->scores(rows, query, row, 1, &product);
        best->hits[i] = hit_of(product, norms[row], best->length, row);
    }
    best->k = k;
    keep_best(best);
}

void ee_in_order(ee_best *best) { qsort(best->hits, best->count, sizeof *best->hits, by_score); }
