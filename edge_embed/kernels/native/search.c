/* The best rows by cosine: one scan of runs of rows for all queries that want them, and a closer look at a few. */
#define _POSIX_C_SOURCE 199309L

#include "core.h"

#include <math.h>
#include <string.h>
#include <time.h>

/* Rows whose scores are made before they are looked at; of wide rows fewer, so that they are still in the cache when
 * the next query asks for them. */
#define BLOCK_ROWS 256
#define BLOCK_BYTES (64 * 1024)
/* Rows for a query that nothing was scanned for before the deadline. */
#define LATE_ROWS 16
#define LINE 64
/* A run of so many rows is read in several streams; in fewer the first rows of each would come too late. */
#define LONG_ROWS 4096
/* Fewer hits than this are sorted one by one. */
#define FEW 16

float ee_length(const float *query, size_t d) {
    double sum = 0;
    for (size_t i = 0; i < d; i++)
        sum += (double)query[i] * query[i];
    return (float)sqrt(sum);
}

/* A hit is a number: of two the smaller comes first in an answer. Its upper half is the score, turned so that the best
 * one is smallest and what is no number comes last; its lower half is the row, so that of equal scores the first row
 * wins. Numbers are put in order without a jump that a processor may guess wrong. */
static inline ee_hit hit_of(float score, size_t row) {
    float one_zero = score + 0.0f;
    uint32_t bits, descending;
    memcpy(&bits, &one_zero, sizeof bits);
    descending = bits >> 31 ? bits : ~bits ^ 0x80000000u;
    return (ee_hit)(isnan(score) ? UINT32_MAX : descending) << 32 | (uint32_t)row;
}

int64_t ee_row_of(ee_hit hit) { return (int64_t)(uint32_t)hit; }

float ee_score_of(ee_hit hit) {
    uint32_t descending = (uint32_t)(hit >> 32), bits = descending >> 31 ? descending : ~descending ^ 0x80000000u;
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

/* Return the place of the middle one of three. */
static inline size_t middle_of(const ee_hit *hits, size_t a, size_t b, size_t c) {
    size_t low = hits[a] < hits[b] ? a : b, high = hits[a] < hits[b] ? b : a;
    return hits[c] < hits[low] ? low : hits[c] < hits[high] ? c : high;
}

/* Put what is smaller than one of them in front of it, and the rest behind; return where it is then. It is one of three
 * from within, so that hits that come in order, or up and down again, cost no more than others. */
static size_t parted(ee_hit *hits, size_t count) {
    size_t last = count - 1, chosen = middle_of(hits, count / 4, count / 2, count - 1 - count / 4), after = 0;
    ee_hit pivot = hits[chosen];
    hits[chosen] = hits[last];
    for (size_t i = 0; i < last; i++) {
        ee_hit hit = hits[i];
        hits[i] = hits[after];
        hits[after] = hit;
        after += hit < pivot;
    }
    hits[last] = hits[after];
    hits[after] = pivot;
    return after;
}

/* Put all in order (Hoare, "Algorithm 64: Quicksort", CACM 4, 1961; the last few by insertion). */
static void sort(ee_hit *hits, size_t count) {
    while (count > FEW) {
        size_t middle = parted(hits, count), after = middle + 1;
        /* The shorter part is sorted first, so that calls are few deep. */
        if (middle < count - after) {
            sort(hits, middle);
            hits += after;
            count -= after;
        } else {
            sort(hits + after, count - after);
            count = middle;
        }
    }
    for (size_t i = 1; i < count; i++) {
        ee_hit hit = hits[i];
        size_t at = i;
        for (; at && hits[at - 1] > hit; at--)
            hits[at] = hits[at - 1];
        hits[at] = hit;
    }
}

/* Put the k that come first to the front, in any order (Hoare, "Algorithm 65: Find", CACM 4, 1961). */
static void select_first(ee_hit *hits, size_t count, size_t k) {
    while (count > 1) {
        size_t middle = parted(hits, count);
        if (middle == k || middle + 1 == k)
            return;
        if (middle > k) {
            count = middle;
        } else {
            hits += middle + 1;
            count -= middle + 1;
            k -= middle + 1;
        }
    }
}

/* Keep the k best alone, and know the worst of them: what others have to pass. */
static void keep_best(ee_best *best) {
    if (best->count > best->k) {
        select_first(best->hits, best->count, best->k);
        best->count = best->k;
    }
    if (best->count == best->k && best->k) {
        best->bar = best->hits[0];
        for (size_t i = 1; i < best->k; i++)
            if (best->hits[i] > best->bar)
                best->bar = best->hits[i];
        best->bar_score = ee_score_of(best->bar);
        best->has_bar = 1;
    }
}

static inline float cosine(float product, float norm, float length) {
    float lengths = norm * length;
    return lengths > 0 ? product / lengths : 0;
}

/* Make scores of products; base: of the run, or null. */
static void weigh(const ee_scan *scan, const float *base, size_t first, size_t count, float length, float *products) {
    const float *norms = scan->norms + first;
    if (base)
        for (size_t i = 0; i < count; i++)
            products[i] = length > 0 ? products[i] / length + *base : 0;
    else
        for (size_t i = 0; i < count; i++)
            products[i] = cosine(products[i], norms[i], length);
}

static void offer_block(size_t first, size_t count, const float *scores, ee_best *best) {
    for (size_t i = 0; i < count; i++) {
        ee_hit hit;
        /* Nearly all rows end here. */
        if (best->has_bar && scores[i] < best->bar_score)
            continue;
        hit = hit_of(scores[i], first + i);
        if ((int64_t)(first + i) == best->without || (best->has_bar && hit > best->bar))
            continue;
        best->hits[best->count++] = hit;
        if (best->count == best->room)
            keep_best(best);
    }
}

static int is_late(int64_t deadline_ns) {
    struct timespec now;
    if (!deadline_ns || clock_gettime(CLOCK_MONOTONIC, &now))
        return 0;
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec >= deadline_ns;
}

/* Whether a query has an answer, if only from the first rows that it was offered. */
static inline int is_answered(const ee_best *best) { return best->count || !best->k; }

static int all_answered(const ee_best *best, size_t q) {
    for (size_t i = 0; i < q; i++)
        if (!is_answered(&best[i]))
            return 0;
    return 1;
}

/* How far a scan is. */
typedef struct {
    int late, is_whole, is_over;
} ee_progress;

/* Offer the best rows from start to stop of a run, which is read in one stream or in EE_STREAMS of equal length. */
static void scan_part(const ee_kernels *kernels, const ee_scan *scan, size_t run, size_t start, size_t stop,
                      size_t streams, ee_best *best, ee_progress *progress) {
    float scores[BLOCK_ROWS];
    size_t fitting = BLOCK_BYTES / (scan->rows->row_bytes + 1), block = BLOCK_ROWS;
    size_t segment = (stop - start) / streams, distance = ee_rows_ahead(scan->rows);
    if (scan->q > 1 && fitting < block)
        block = fitting ? fitting : 1;
    block = block / streams ? block / streams : 1;
    if (streams > 1)
        distance = (distance + 1) / 2;
    for (size_t first = start, end = start + segment, count; first < end; first += count) {
        size_t ahead = first + distance;
        count = end - first < block ? end - first : block;
        if (ahead >= end && streams == 1 && run + 1 < scan->r)
            /* The next run's first rows are asked for while this one's last are compared. */
            ahead = (size_t)scan->runs[2 * run + 2] + (ahead - end);
        else if (ahead < end && count > end - ahead)
            count = end - ahead;
        for (size_t place = 0; !scan->bases && place < streams; place++)
            for (size_t i = 0; i < count; i += LINE / sizeof *scan->norms)
                __builtin_prefetch(scan->norms + ahead + place * segment + i);
        if ((progress->is_over = progress->late && all_answered(best, scan->q))) {
            progress->is_whole = 0;
            return;
        }
        for (size_t q = 0; q < scan->q; q++) {
            const float *base = scan->bases ? &scan->bases[q * scan->r + run] : NULL;
            size_t looked_at = progress->late && count > LATE_ROWS ? LATE_ROWS : count;
            if (scan->wanted && !scan->wanted[q * scan->r + run])
                continue;
            if (progress->late && is_answered(&best[q]))
                looked_at = 0;
            progress->is_whole = progress->is_whole && looked_at == count;
            if (!looked_at)
                continue;
            if (streams > 1)
                kernels->scores_in_streams(scan->rows, &scan->queries[q], first, looked_at, segment, ahead, scores);
            else
                kernels->scores(scan->rows, &scan->queries[q], first, looked_at, ahead, scores);
            for (size_t place = 0; place < streams; place++) {
                size_t there = first + place * segment;
                float *found = scores + place * looked_at;
                weigh(scan, base, there, looked_at, best[q].length, found);
                offer_block(there, looked_at, found, &best[q]);
            }
            progress->late = progress->late || is_late(scan->deadline_ns);
        }
    }
}

int ee_nearest(const ee_kernels *kernels, const ee_scan *scan, ee_best *best) {
    ee_progress progress = {0, 1, 0};
    for (size_t run = 0; run < scan->r && !progress.is_over; run++) {
        size_t start = (size_t)scan->runs[2 * run], stop = (size_t)scan->runs[2 * run + 1], middle = start;
        if (EE_STREAMS > 1 && scan->rows->codec == EE_INT8 && !scan->bases && stop - start >= LONG_ROWS) {
            middle = stop - (stop - start) % EE_STREAMS;
            scan_part(kernels, scan, run, start, middle, EE_STREAMS, best, &progress);
        }
        if (middle < stop && !progress.is_over)
            scan_part(kernels, scan, run, middle, stop, 1, best, &progress);
    }
    for (size_t q = 0; q < scan->q; q++)
        keep_best(&best[q]);
    return progress.is_whole;
}

void ee_compare(const ee_kernels *kernels, const ee_rows *rows, const float *norms, const ee_query *query, size_t k,
                ee_best *best) {
    /* In the order in which they lie: a page of flash is read once. */
    for (size_t i = 0; i < best->count; i++)
        best->hits[i] = best->hits[i] << 32 | best->hits[i] >> 32;
    sort(best->hits, best->count);
    for (size_t i = 0; i < best->count; i++) {
        size_t row = best->hits[i] >> 32, next = i + EE_FETCHED;
        float product;
        kernels->scores(rows, query, row, 1, next < best->count ? best->hits[next] >> 32 : row, &product);
        best->hits[i] = hit_of(cosine(product, norms[row], best->length), row);
    }
    best->k = k;
    keep_best(best);
}

void ee_in_order(ee_best *best) { sort(best->hits, best->count); }
