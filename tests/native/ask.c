/* A program without Python that asks the kernels: what stands on its input, in order, until there is no more.
 *
 * A case, whole numbers of 64 bits unless said otherwise (see test_processors.py, which writes and reads them):
 *
 *     codec n d row_bytes books width k     the table, and how many neighbours
 *     6 tensors                             rows scales codebooks rotation length_codes length_levels: bytes, then they
 *     norms                                 float32 (n,)
 *     ids                                   m, then (m,)
 *     queries                               q, then float32 (q, d)
 *
 * Its answer: decoded ids (m, d), their mean (d,), scores (q, n), nearest rows (q, k) and their cosines (q, k).
 * The first answer is the name of the kernels, 16 bytes.
 */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *room(size_t bytes) {
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory)
        exit(2);
    return memory;
}

/* Return so many bytes of the input, which end where the memory ends: a reader that goes too far is caught. */
static void *taken(size_t bytes) {
    void *memory = room(bytes);
    if (bytes && fread(memory, bytes, 1, stdin) != 1)
        exit(3);
    return memory;
}

static size_t number(void) {
    int64_t *at = taken(sizeof *at), value = *at;
    free(at);
    return (size_t)value;
}

static void say(const void *answer, size_t bytes) {
    if (bytes && fwrite(answer, bytes, 1, stdout) != 1)
        exit(4);
}

static const unsigned char *tensor(void) {
    size_t bytes = number();
    return bytes ? taken(bytes) : NULL;
}

static void answer_ids(const ee_kernels *kernels, const ee_rows *rows) {
    size_t m = number(), d = rows->dimensions;
    int64_t *ids = taken(m * sizeof *ids), count = (int64_t)m;
    float *vectors = room(m * d * sizeof *vectors), *mean = room(d * sizeof *mean);
    float *scratch = room((d + ee_scratch(rows)) * sizeof *scratch);
    kernels->decode(rows, ids, m, vectors, scratch);
    kernels->pool(rows, ids, &count, 1, NULL, EE_MEAN, mean, scratch);
    say(vectors, m * d * sizeof *vectors);
    say(mean, d * sizeof *mean);
    free(ids), free(vectors), free(mean), free(scratch);
}

/* The exit status where this processor does not run what was asked for. */
#define NOT_HERE 6

static void answer_queries(const ee_kernels *kernels, const ee_rows *rows, const float *norms, size_t k) {
    size_t q = number(), n = rows->row_count, d = rows->dimensions, wide = ee_scan_scratch(rows);
    float *asked = taken(q * d * sizeof *asked), *scratch = room(q * wide * sizeof *scratch);
    float *scores = room(n * sizeof *scores);
    ee_query *queries = room(q * sizeof *queries);
    ee_best *best = room(q * sizeof *best);
    int64_t run[2] = {0, (int64_t)n};
    ee_scan scan = {rows, norms, queries, q, run, 1, NULL, NULL, 0};
    for (size_t i = 0; i < q; i++) {
        ee_best none = {0, k, n + 1, room((n + 1) * sizeof(ee_hit)), ee_length(asked + i * d, d), -1, 0, 0, 0};
        queries[i] = kernels->prepare(rows, asked + i * d, scratch + i * wide);
        best[i] = none;
        kernels->scores(rows, &queries[i], 0, n, 0, scores);
        say(scores, n * sizeof *scores);
    }
    if (!ee_nearest(kernels, &scan, best))
        exit(5);
    for (size_t i = 0; i < q; i++) {
        ee_in_order(&best[i]);
        for (size_t place = 0; place < k; place++) {
            int64_t row = ee_row_of(best[i].hits[place]);
            say(&row, sizeof row);
        }
    }
    for (size_t i = 0; i < q; i++) {
        for (size_t place = 0; place < k; place++) {
            float score = ee_score_of(best[i].hits[place]);
            say(&score, sizeof score);
        }
        free(best[i].hits);
    }
    free(asked), free(scratch), free(scores), free(queries), free(best);
}

int main(void) {
    const ee_kernels *kernels = ee_choose(getenv("EDGE_EMBED_VARIANT"));
    char name[16] = {0};
    int first;
    if (!kernels)
        return NOT_HERE;
    strncpy(name, kernels->name, sizeof name - 1);
    say(name, sizeof name);
    while ((first = getchar()) != EOF) {
        ee_rows rows = {0};
        size_t k;
        const float *norms;
        ungetc(first, stdin);
        rows.codec = (ee_codec)number();
        rows.row_count = number();
        rows.dimensions = number();
        rows.row_bytes = number();
        rows.books = number();
        rows.width = number();
        k = number();
        rows.rows = tensor();
        rows.scales = tensor();
        rows.codebooks = tensor();
        rows.rotation = tensor();
        rows.length_codes = tensor();
        rows.length_levels = tensor();
        norms = taken(rows.row_count * sizeof *norms);
        answer_ids(kernels, &rows);
        answer_queries(kernels, &rows, norms, k);
        free((void *)rows.rows), free((void *)rows.scales), free((void *)rows.codebooks), free((void *)rows.rotation);
        free((void *)rows.length_codes), free((void *)rows.length_levels), free((void *)norms);
    }
    return 0;
}
