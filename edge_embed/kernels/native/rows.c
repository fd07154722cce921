/* Rows: decoding of every codec, and bags. Compiled once for each instruction set (see variants.h). */
#include "core.h"
#include "dots.h"
#include "variants.h"

#include <math.h>
#include <string.h>

/* Rows whose cache lines are on their way while one is decoded, and how many lines of each are asked for: the
 * processor follows by itself from there (Xeon, 2026-11: 3 to 12 rows and 4 to 20 lines are all alike). */
#define AHEAD 6
#define AHEAD_LINES 6
#define LINE 64

static inline float read_float(const unsigned char *at) {
    float value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Every float16 is a float32: the exponent moves by a multiplication that rounds nothing. */
static inline float read_half(const unsigned char *at) {
    uint32_t half = at[0] | (uint32_t)at[1] << 8;
    float magnitude = of_bits((half & 0x7FFF) << 13) * 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &magnitude, sizeof bits);
    bits |= (half & 0x7C00) == 0x7C00 ? UINT32_C(0x7F800000) : 0;
    return of_bits(bits | (half & 0x8000) << 16);
}

static inline float length_of(const ee_rows *rows, int64_t id) {
    return read_float(rows->length_levels + 4 * rows->length_codes[id]);
}

static void decode_float32(const ee_rows *rows, int64_t id, float *restrict out) {
    memcpy(out, rows->rows + (size_t)id * rows->row_bytes, rows->row_bytes);
}

static void decode_float16(const ee_rows *rows, int64_t id, float *restrict out) {
    const unsigned char *row = rows->rows + (size_t)id * rows->row_bytes;
    size_t d = rows->dimensions, i = 0;
    /* What is no number stays none, though maybe another one. */
#if defined(__F16C__)
    for (; i + 8 <= d; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + 2 * i))));
#elif defined(__aarch64__)
    for (; i + 4 <= d; i += 4)
        vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(row + 2 * i))));
#endif
    for (; i < d; i++)
        out[i] = read_half(row + 2 * i);
}

static void decode_int8(const ee_rows *rows, int64_t id, float *restrict out) {
    const signed char *row = (const signed char *)rows->rows + (size_t)id * rows->row_bytes;
    float scale = read_float(rows->scales + 4 * (size_t)id);
    for (size_t i = 0; i < rows->dimensions; i++)
        out[i] = (float)row[i] * scale;
}

/* Write the numbers of one block of int4. */
static inline void decode_block(const unsigned char *pairs, float scale, float *restrict out) {
#if defined(__AVX2__)
    __m128i both = _mm_loadu_si128((const __m128i *)pairs), mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    __m128i lows = _mm_and_si128(both, mask), highs = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
    __m128i codes[2] = {_mm_sub_epi8(_mm_unpacklo_epi8(lows, highs), eight),
                        _mm_sub_epi8(_mm_unpackhi_epi8(lows, highs), eight)};
    for (size_t half = 0; half < 2; half++)
        for (size_t i = 0; i < 16; i += 8) {
            __m128i eight_codes = i ? _mm_srli_si128(codes[half], 8) : codes[half];
            __m256 numbers = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_codes));
            _mm256_storeu_ps(out + 16 * half + i, _mm256_mul_ps(numbers, _mm256_set1_ps(scale)));
        }
#else
    for (size_t i = 0; i < EE_INT4_BLOCK / 2; i++) {
        int pair = pairs[i];
        out[2 * i] = (float)((pair & 15) - 8) * scale;
        out[2 * i + 1] = (float)((pair >> 4) - 8) * scale;
    }
#endif
}

static void decode_int4(const ee_rows *rows, int64_t id, float *restrict out) {
    const unsigned char *row = rows->rows + (size_t)id * rows->row_bytes;
    size_t blocks = (rows->dimensions + EE_INT4_BLOCK - 1) / EE_INT4_BLOCK;
    const unsigned char *scales = rows->scales + 2 * blocks * (size_t)id;
    size_t d = rows->dimensions, i = 0;
    for (; i + EE_INT4_BLOCK <= d; i += EE_INT4_BLOCK, scales += 2) {
        decode_block(row + i / 2, read_half(scales), out + i);
    }
    if (i < d) {
        float scale = read_half(scales);
        for (; i < d; i++)
            out[i] = (float)((row[i / 2] >> (i % 2 * 4) & 15) - 8) * scale;
    }
}

static void decode_plane(const ee_rows *rows, int64_t id, float *restrict out) {
    const unsigned char *row = rows->rows + (size_t)id * rows->row_bytes;
    float scale = read_float(rows->scales + 4 * (size_t)id);
    for (size_t i = 0; i < rows->dimensions; i++)
        out[i] = (float)((row[i / 2] >> (i % 2 * 4) & 15) - 8) * scale;
}

/* The centroids of one row, times its length; a constant width lets the compiler keep a centroid in registers. */
#define DECODE_PQ(WIDTH)                                                                                            \
    for (; left >= (WIDTH); left -= (WIDTH), out += (WIDTH), book += 256 * 4 * (WIDTH)) {                           \
        const unsigned char *centroid = book + 4 * (WIDTH) * (size_t)*codes++;                                      \
        for (size_t i = 0; i < (WIDTH); i++)                                                                        \
            out[i] = read_float(centroid + 4 * i) * length;                                                         \
    }

typedef float four __attribute__((vector_size(16)));

/* Centroids of three numbers by four of them, an eighth faster (Xeon, 2026-11; of five and six it is no faster). What is
 * read behind a centroid lies in its book or in the next one, which there is while so much is left; what is written
 * behind it, the next one writes over. */
#define DECODE_PQ_OF_THREE                                                                                          \
    for (; left >= 4; left -= 3, out += 3, book += 256 * 4 * 3) {                                                   \
        four numbers;                                                                                               \
        memcpy(&numbers, book + 4 * 3 * (size_t)*codes++, sizeof numbers);                                          \
        numbers *= length;                                                                                          \
        memcpy(out, &numbers, sizeof numbers);                                                                      \
    }                                                                                                               \
    DECODE_PQ(3)

static inline void decode_centroids(const ee_rows *rows, int64_t id, float length, size_t left, float *restrict out) {
    const unsigned char *codes = rows->rows + (size_t)id * rows->row_bytes;
    const unsigned char *book = rows->codebooks;
    size_t width = rows->width;
    switch (width) {
        case 1: DECODE_PQ(1); break;
        case 2: DECODE_PQ(2); break;
        case 3: DECODE_PQ_OF_THREE; break;
        case 4: DECODE_PQ(4); break;
        case 5: DECODE_PQ(5); break;
        case 6: DECODE_PQ(6); break;
        case 8: DECODE_PQ(8); break;
        case 12: DECODE_PQ(12); break;
        case 16: DECODE_PQ(16); break;
        default: DECODE_PQ(width); break;
    }
    if (left) {
        const unsigned char *centroid = book + 4 * width * (size_t)*codes;
        for (size_t i = 0; i < left; i++)
            out[i] = read_float(centroid + 4 * i) * length;
    }
}

static void decode_pq(const ee_rows *rows, int64_t id, float *restrict out) {
    decode_centroids(rows, id, length_of(rows, id), rows->dimensions, out);
}

static void decode_opq(const ee_rows *rows, int64_t id, float *restrict out, float *restrict parts) {
    size_t total = rows->books * rows->width;
    float length = length_of(rows, id);
    decode_centroids(rows, id, 1.0f, total, parts);
    for (size_t i = 0; i < rows->dimensions; i++) {
        const unsigned char *of_number = rows->rotation + 4 * total * i;
        /* Sums of opq are exact (SPEC.md), so lanes may be added in any order. */
        float lanes[16] = {0};
        size_t j = 0;
        for (; j + 16 <= total; j += 16)
            for (size_t lane = 0; lane < 16; lane++)
                lanes[lane] += read_float(of_number + 4 * (j + lane)) * parts[j + lane];
        float sum = 0;
        for (size_t lane = 0; lane < 16; lane++)
            sum += lanes[lane];
        for (; j < total; j++)
            sum += read_float(of_number + 4 * j) * parts[j];
        out[i] = sum * length;
    }
}

static void decode_rq(const ee_rows *rows, int64_t id, float *restrict out) {
    const unsigned char *codes = rows->rows + (size_t)id * rows->row_bytes;
    size_t d = rows->dimensions, book_bytes = 256 * 4 * d;
    float length = length_of(rows, id);
    memcpy(out, rows->codebooks + 4 * d * codes[0], 4 * d);
    for (size_t book = 1; book < rows->books; book++) {
        const unsigned char *centroid = rows->codebooks + book * book_bytes + 4 * d * codes[book];
        for (size_t i = 0; i < d; i++)
            out[i] += read_float(centroid + 4 * i);
    }
    for (size_t i = 0; i < d; i++)
        out[i] *= length;
}

static inline void decode_row(const ee_rows *rows, int64_t id, float *restrict out, float *restrict scratch) {
    switch (rows->codec) {
        case EE_FLOAT32: decode_float32(rows, id, out); break;
        case EE_FLOAT16: decode_float16(rows, id, out); break;
        case EE_INT8: decode_int8(rows, id, out); break;
        case EE_INT4: decode_int4(rows, id, out); break;
        case EE_PLANE: decode_plane(rows, id, out); break;
        case EE_PQ: decode_pq(rows, id, out); break;
        case EE_OPQ: decode_opq(rows, id, out, scratch); break;
        case EE_RQ: decode_rq(rows, id, out); break;
    }
}

/* Inlined at once: GCC 12 takes a function that only fetches for one without effect, and drops its calls. */
static inline __attribute__((always_inline)) void fetch(const ee_rows *rows, int64_t id) {
    const unsigned char *row = rows->rows + (size_t)id * rows->row_bytes;
    size_t lines = rows->row_bytes / LINE + 1;
    for (size_t line = 0; line < (lines < AHEAD_LINES ? lines : AHEAD_LINES); line++)
        __builtin_prefetch(row + LINE * line);
    if (rows->scales)
        __builtin_prefetch(rows->scales + (rows->codec == EE_INT4 ? 2 * ((rows->dimensions + 31) / 32) : 4) * (size_t)id);
    if (rows->length_codes)
        __builtin_prefetch(rows->length_codes + id);
}

/* Ask for the lines that the next row is written to: a tenth of a batch's time on a Xeon. Cortex cores see by themselves
 * that whole lines are written, and read none; asked to, they would. */
static inline __attribute__((always_inline)) void fetch_to_write(float *out, size_t d) {
#if defined(__x86_64__)
    for (size_t i = 0; i < d; i += LINE / sizeof *out)
        __builtin_prefetch(out + i, 1);
#else
    (void)out, (void)d;
#endif
}

static void decode(const ee_rows *rows, const int64_t *ids, size_t n, float *out, float *scratch) {
    for (size_t i = 0; i < n && i < AHEAD; i++)
        fetch(rows, ids[i]);
    for (size_t i = 0; i < n; i++) {
        if (i + AHEAD < n)
            fetch(rows, ids[i + AHEAD]);
        if (i + 1 < n)
            fetch_to_write(out + (i + 1) * rows->dimensions, rows->dimensions);
        decode_row(rows, ids[i], out + i * rows->dimensions, scratch);
    }
}

static inline void add(float *restrict total, const float *restrict vector, size_t d) {
    for (size_t i = 0; i < d; i++)
        total[i] += vector[i];
}

/* As numpy's maximum: what is no number stays, and of two the first. */
static inline void raise_to(float *restrict largest, const float *restrict vector, size_t d) {
    for (size_t i = 0; i < d; i++)
        largest[i] = (largest[i] >= vector[i]) | (largest[i] != largest[i]) ? largest[i] : vector[i];
}

static inline void finish(float *out, int64_t count, size_t d, ee_mode mode) {
    if (mode == EE_MEAN && count) {
        float divisor = (float)count;
        for (size_t i = 0; i < d; i++)
            out[i] /= divisor;
    }
}

/* Add an int8 row as it is decoded: what pooling does most. */
static inline void add_int8_row(const ee_rows *rows, int64_t id, float *restrict total) {
    const signed char *row = (const signed char *)rows->rows + (size_t)id * rows->row_bytes;
    float scale = read_float(rows->scales + 4 * (size_t)id);
    for (size_t i = 0; i < rows->dimensions; i++)
        total[i] += (float)row[i] * scale;
}

static void pool(const ee_rows *rows, const int64_t *ids, const int64_t *counts, size_t b, const float *weights,
                 ee_mode mode, float *out, float *scratch) {
    size_t d = rows->dimensions, n = 0, at = 0;
    float *vector = scratch;
    scratch += d;
    for (size_t bag = 0; bag < b; bag++)
        n += (size_t)counts[bag];
    for (size_t i = 0; i < n && i < AHEAD; i++)
        fetch(rows, ids[i]);
    for (size_t bag = 0; bag < b; bag++, out += d) {
        if (!counts[bag])
            memset(out, 0, d * sizeof *out);
        for (int64_t place = 0; place < counts[bag]; place++, at++) {
            /* The first row of a bag is where its sum begins. */
            float *into = place ? vector : out;
            if (at + AHEAD < n)
                fetch(rows, ids[at + AHEAD]);
            if (place && rows->codec == EE_INT8 && mode != EE_MAX && !weights) {
                add_int8_row(rows, ids[at], out);
                continue;
            }
            decode_row(rows, ids[at], into, scratch);
            if (weights)
                for (size_t i = 0; i < d; i++)
                    into[i] *= weights[at];
            if (place && mode == EE_MAX)
                raise_to(out, vector, d);
            else if (place)
                add(out, vector, d);
        }
        finish(out, counts[bag], d, mode);
    }
}

static void pool_vectors(const float *vectors, const int64_t *counts, size_t b, size_t d, ee_mode mode, float *out) {
    for (size_t bag = 0; bag < b; bag++, out += d) {
        if (!counts[bag])
            memset(out, 0, d * sizeof *out);
        for (int64_t place = 0; place < counts[bag]; place++, vectors += d) {
            if (!place)
                memcpy(out, vectors, d * sizeof *out);
            else if (mode == EE_MAX)
                raise_to(out, vectors, d);
            else
                add(out, vectors, d);
        }
        finish(out, counts[bag], d, mode);
    }
}

#define LANES 16

/* Sixteen sums at a time: float additions have an order, and this one is the same for every instruction set. */
static inline float sum_of(const float *lanes) {
    float sum = 0;
    for (size_t lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

static inline float dot_floats(const unsigned char *row, const float *query, size_t d) {
    float lanes[LANES] = {0}, sum;
    size_t i = 0;
    for (; i + LANES <= d; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            lanes[lane] += read_float(row + 4 * (i + lane)) * query[i + lane];
    sum = sum_of(lanes);
    for (; i < d; i++)
        sum += read_float(row + 4 * i) * query[i];
    return sum;
}

/* A query of whole numbers from -32512 to 32512, so that products add up to the same sum in any order and at any width.
 * Processors multiply 16 bits by 16 bits and add up pairs in one step (pmaddwd, smlal). */
#define LEVELS 32512

/* Return what one of so many levels counts: NaN of a query that is not finite. */
static double step_of(const float *query, size_t d, int levels) {
    double largest = 0;
    for (size_t i = 0; i < d; i++) {
        if (!isfinite(query[i]))
            return NAN;
        largest = fmax(largest, fabs((double)query[i]));
    }
    return largest / levels;
}

/* Write the levels of a query and return what one counts. */
static double levels_of(const float *query, size_t d, int16_t *levels) {
    double step = step_of(query, d, LEVELS);
    memset(levels, 0, ee_padded(d) * sizeof *levels);
    if (step > 0)
        for (size_t i = 0; i < d; i++)
            levels[i] = (int16_t)rint(query[i] / step);
    return step;
}

/* A plane's queries have 8 bits a number: what they lose is far below what 4 bits of a row lose. */
#define PLANE_LEVELS 127

static void bytes_of(const ee_rows *rows, const float *query, int8_t *bytes, ee_query *ready) {
    size_t padded = ee_padded(rows->row_bytes);
    memset(bytes, 0, 2 * padded);
    ready->lows = bytes;
    ready->highs = bytes + padded;
    ready->step = step_of(query, rows->dimensions, PLANE_LEVELS);
    for (size_t i = 0; ready->step > 0 && i < rows->dimensions; i++) {
        int8_t level = (int8_t)rint(query[i] / ready->step);
        bytes[i % 2 * padded + i / 2] = level;
        ready->lowered += 8 * level;
    }
}

/* Ask for what a scan of a row reads. */
static inline __attribute__((always_inline)) void fetch_whole(const ee_rows *rows, size_t id) {
    const unsigned char *row = rows->rows + id * rows->row_bytes;
    for (size_t at = 0; at < rows->row_bytes; at += LINE)
        __builtin_prefetch(row + at);
    if (rows->codec == EE_INT8 || rows->codec == EE_PLANE)
        __builtin_prefetch(rows->scales + 4 * id);
}

/* Return the score of a row of whole numbers, and ask for the one that is ahead. */
static inline __attribute__((always_inline)) float score_whole(ee_add add, const ee_rows *rows, const ee_query *query,
                                                               size_t id, size_t ahead) {
    const unsigned char *end = rows->rows + rows->row_count * rows->row_bytes;
    const unsigned char *row = rows->rows + id * rows->row_bytes;
    int64_t sum = dot_row(add, row, rows->row_bytes, end, query) - query->lowered;
    fetch_whole(rows, ahead);
    return (float)((double)sum * query->step * read_float(rows->scales + 4 * id));
}

static inline __attribute__((always_inline)) void scores_whole(ee_add add, const ee_rows *rows, const ee_query *query,
                                                               size_t first, size_t count, size_t ahead, float *out) {
    for (size_t i = 0; i < count; i++)
        out[i] = score_whole(add, rows, query, first + i, ahead + i);
}

static void scores_in_streams(const ee_rows *rows, const ee_query *query, size_t first, size_t count, size_t segment,
                              size_t ahead, float *out) {
    for (size_t i = 0; i < count; i++)
        for (size_t place = 0; place < EE_STREAMS; place++) {
            size_t offset = place * segment + i;
            out[place * count + i] = score_whole(add_int8, rows, query, first + offset, ahead + offset);
        }
}

/* The query's dot product with each centroid, (books, 256), so that a row's is a sum of as many as it has codes. */
static void products_of(const ee_rows *rows, const float *query, float *products, float *parts) {
    size_t d = rows->dimensions, width = rows->width, total = rows->books * width;
    if (rows->codec == EE_OPQ) {
        memset(parts, 0, total * sizeof *parts);
        for (size_t i = 0; i < d; i++)
            for (size_t j = 0; j < total; j++)
                parts[j] += read_float(rows->rotation + 4 * (total * i + j)) * query[i];
    } else if (rows->codec == EE_PQ) {
        memcpy(parts, query, d * sizeof *parts);
        memset(parts + d, 0, (total - d) * sizeof *parts);
    } else {
        parts = (float *)query;
    }
    for (size_t book = 0; book < rows->books; book++)
        for (size_t code = 0; code < 256; code++)
            products[256 * book + code] = dot_floats(rows->codebooks + 4 * width * (256 * book + code),
                                                     parts + (rows->codec == EE_RQ ? 0 : book * width), width);
}

static ee_query prepare(const ee_rows *rows, const float *query, float *scratch) {
    ee_query ready = {.query = query, .row = scratch};
    if (rows->codec == EE_INT8) {
        ready.step = levels_of(query, rows->dimensions, (int16_t *)scratch);
        lay_out((int16_t *)scratch, ee_padded(rows->dimensions), &ready);
    } else if (rows->codec == EE_PLANE) {
        bytes_of(rows, query, (int8_t *)scratch, &ready);
    } else if (rows->codec >= EE_PQ) {
        products_of(rows, query, scratch, scratch + 256 * rows->books);
        ready.products = scratch;
    }
    return ready;
}

static inline float dot_codes(const ee_rows *rows, const ee_query *query, size_t id) {
    const unsigned char *row = rows->rows + id * rows->row_bytes;
    float sum = 0;
    for (size_t book = 0; book < rows->books; book++)
        sum += query->products[256 * book + row[book]];
    return sum * length_of(rows, (int64_t)id);
}

static void scores(const ee_rows *rows, const ee_query *query, size_t first, size_t count, size_t ahead, float *out) {
    size_t d = rows->dimensions;
    if (rows->codec == EE_INT8) {
        scores_whole(add_int8, rows, query, first, count, ahead, out);
        return;
    }
    if (rows->codec == EE_PLANE) {
        scores_whole(add_plane, rows, query, first, count, ahead, out);
        return;
    }
    for (size_t id = first; id < first + count; id++) {
        fetch_whole(rows, ahead++);
        if (rows->codec == EE_FLOAT32) {
            *out++ = dot_floats(rows->rows + id * rows->row_bytes, query->query, d);
        } else if (rows->codec >= EE_PQ) {
            *out++ = dot_codes(rows, query, id);
        } else {
            decode_row(rows, (int64_t)id, query->row, NULL);
            *out++ = dot_floats((const unsigned char *)query->row, query->query, d);
        }
    }
}

const ee_kernels EE_VARIANT = {EE_VARIANT_NAME, decode, pool, pool_vectors, prepare, scores, scores_in_streams};
