/* Dot products of whole numbers, the hot loop of a scan: one loop for all, and a section for each instruction set.
 *
 * A section says how the products of one stride of a row (STRIDE bytes) are added to sums side by side:
 *
 *     add_int8(sums, codes, query, at)    codes -128 to 127, one a byte, times the query's levels from at on
 *     add_plane(sums, codes, query, at)   codes 0 to 15, two a byte, times the query's bytes from at on
 *     total(sums)                         the sum of sums
 *     lay_out(levels, padded, ready)      keep a query of int8 rows in the form in which add_int8 reads it
 *
 * - Sums are exact, so every section gives the same bits.
 * - A query is padded with zeros to whole strides, so it does not matter what a row's last stride holds beyond the row;
 *   but nothing behind the table's last byte is read: its file may end there.
 */
#ifndef EDGE_EMBED_DOTS_H
#define EDGE_EMBED_DOTS_H

#include "core.h"

#include <string.h>

#if defined(__AVX2__) || defined(__AVX512VNNI__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

/* Products of this many codes and levels, 128 * 32512 each at most, add up within 32 bits; a multiple of the stride. */
#define PART 512

/* Bytes of a row that are multiplied at a time; a section may take more, up to EE_PADDING. */
#define STRIDE 32

#if defined(__AVX512VNNI__)

#undef STRIDE
#define STRIDE 64

typedef __m512i ee_sums;

static inline ee_sums add_int8(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    __m512i low = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)codes));
    __m512i high = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(codes + 32)));
    sums = _mm512_dpwssd_epi32(sums, low, _mm512_loadu_si512(query->levels + at));
    return _mm512_dpwssd_epi32(sums, high, _mm512_loadu_si512(query->levels + at + 32));
}

static inline ee_sums add_plane(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    __m512i both = _mm512_loadu_si512(codes), mask = _mm512_set1_epi8(15);
    __m512i lows = _mm512_and_si512(both, mask), highs = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    sums = _mm512_dpbusd_epi32(sums, lows, _mm512_loadu_si512(query->lows + at));
    return _mm512_dpbusd_epi32(sums, highs, _mm512_loadu_si512(query->highs + at));
}

static inline int32_t total(ee_sums sums) { return _mm512_reduce_add_epi32(sums); }

#elif defined(__AVX2__)

typedef __m256i ee_sums;

static inline ee_sums add_codes(ee_sums sums, const unsigned char *codes, const int16_t *levels) {
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)codes));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(wide, _mm256_loadu_si256((const __m256i *)levels)));
}

static inline ee_sums add_int8(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    return add_codes(add_codes(sums, codes, query->levels + at), codes + 16, query->levels + at + 16);
}

static inline ee_sums add_plane(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    __m256i both = _mm256_loadu_si256((const __m256i *)codes), mask = _mm256_set1_epi8(15);
    __m256i lows = _mm256_and_si256(both, mask), highs = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    /* Two products of 15 * 127 at most, and those of two halves: 7,620 in 16 bits. */
    __m256i pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(lows, _mm256_loadu_si256((const __m256i *)(query->lows + at))),
                         _mm256_maddubs_epi16(highs, _mm256_loadu_si256((const __m256i *)(query->highs + at))));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

static inline int32_t total(ee_sums sums) {
    __m128i folded = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    folded = _mm_add_epi32(folded, _mm_shuffle_epi32(folded, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(folded, _mm_shuffle_epi32(folded, 0xB1)));
}

#elif defined(__SSE2__)

typedef __m128i ee_sums;

/* SSE2 widens a byte by putting it into the upper half of 16 bits, where a shift gives it its sign. */
static inline ee_sums add_codes(ee_sums sums, __m128i codes, const int16_t *levels) {
    __m128i first = _mm_srai_epi16(_mm_unpacklo_epi8(codes, codes), 8);
    __m128i second = _mm_srai_epi16(_mm_unpackhi_epi8(codes, codes), 8);
    sums = _mm_add_epi32(sums, _mm_madd_epi16(first, _mm_loadu_si128((const __m128i *)levels)));
    return _mm_add_epi32(sums, _mm_madd_epi16(second, _mm_loadu_si128((const __m128i *)(levels + 8))));
}

static inline ee_sums add_int8(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    for (size_t i = 0; i < STRIDE; i += 16)
        sums = add_codes(sums, _mm_loadu_si128((const __m128i *)(codes + i)), query->levels + at + i);
    return sums;
}

static inline ee_sums add_nibbles(ee_sums sums, __m128i codes, const int8_t *levels) {
    __m128i zero = _mm_setzero_si128(), bytes = _mm_loadu_si128((const __m128i *)levels);
    __m128i first = _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
    __m128i second = _mm_srai_epi16(_mm_unpackhi_epi8(bytes, bytes), 8);
    sums = _mm_add_epi32(sums, _mm_madd_epi16(first, _mm_unpacklo_epi8(codes, zero)));
    return _mm_add_epi32(sums, _mm_madd_epi16(second, _mm_unpackhi_epi8(codes, zero)));
}

static inline ee_sums add_plane(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    __m128i mask = _mm_set1_epi8(15);
    for (size_t i = 0; i < STRIDE; i += 16) {
        __m128i both = _mm_loadu_si128((const __m128i *)(codes + i));
        sums = add_nibbles(sums, _mm_and_si128(both, mask), query->lows + at + i);
        sums = add_nibbles(sums, _mm_and_si128(_mm_srli_epi16(both, 4), mask), query->highs + at + i);
    }
    return sums;
}

static inline int32_t total(ee_sums sums) {
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xB1)));
}

#elif defined(__ARM_FEATURE_DOTPROD)

/* SDOT multiplies bytes: a level is 256 times its high byte and a low one from -128 to 127. */
#define LEVELS_ARE_BYTES

typedef struct {
    int32x4_t highs, lows;
} ee_sums;

static inline ee_sums add_int8(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    for (size_t i = 0; i < STRIDE; i += 16) {
        int8x16_t row = vreinterpretq_s8_u8(vld1q_u8(codes + i));
        sums.highs = vdotq_s32(sums.highs, row, vld1q_s8(query->highs + at + i));
        sums.lows = vdotq_s32(sums.lows, row, vld1q_s8(query->lows + at + i));
    }
    return sums;
}

static inline ee_sums add_plane(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    for (size_t i = 0; i < STRIDE; i += 16) {
        uint8x16_t both = vld1q_u8(codes + i);
        int8x16_t lows = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        sums.lows = vdotq_s32(sums.lows, lows, vld1q_s8(query->lows + at + i));
        sums.lows = vdotq_s32(sums.lows, vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), vld1q_s8(query->highs + at + i));
    }
    return sums;
}

static inline int32_t total(ee_sums sums) { return 256 * vaddvq_s32(sums.highs) + vaddvq_s32(sums.lows); }

#elif defined(__ARM_NEON)

typedef int32x4_t ee_sums;

static inline ee_sums add_codes(ee_sums sums, int8x8_t codes, const int16_t *levels) {
    int16x8_t wide = vmovl_s8(codes), of_query = vld1q_s16(levels);
    sums = vmlal_s16(sums, vget_low_s16(wide), vget_low_s16(of_query));
    return vmlal_s16(sums, vget_high_s16(wide), vget_high_s16(of_query));
}

static inline ee_sums add_int8(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    for (size_t i = 0; i < STRIDE; i += 16) {
        int8x16_t row = vreinterpretq_s8_u8(vld1q_u8(codes + i));
        sums = add_codes(sums, vget_low_s8(row), query->levels + at + i);
        sums = add_codes(sums, vget_high_s8(row), query->levels + at + i + 8);
    }
    return sums;
}

static inline ee_sums add_plane(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    /* Eight products of 15 * 127 at most: 15,240 in 16 bits. */
    int16x8_t products = vdupq_n_s16(0);
    for (size_t i = 0; i < STRIDE; i += 16) {
        uint8x16_t both = vld1q_u8(codes + i);
        int8x16_t lows = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        int8x16_t highs = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        int8x16_t with_lows = vld1q_s8(query->lows + at + i), with_highs = vld1q_s8(query->highs + at + i);
        products = vmlal_s8(products, vget_low_s8(lows), vget_low_s8(with_lows));
        products = vmlal_s8(products, vget_high_s8(lows), vget_high_s8(with_lows));
        products = vmlal_s8(products, vget_low_s8(highs), vget_low_s8(with_highs));
        products = vmlal_s8(products, vget_high_s8(highs), vget_high_s8(with_highs));
    }
    return vpadalq_s16(sums, products);
}

static inline int32_t total(ee_sums sums) {
    int32x2_t folded = vadd_s32(vget_low_s32(sums), vget_high_s32(sums));
    return vget_lane_s32(vpadd_s32(folded, folded), 0);
}

#else

typedef int32_t ee_sums;

static inline ee_sums add_int8(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    for (size_t i = 0; i < STRIDE; i++)
        sums += (int8_t)codes[i] * query->levels[at + i];
    return sums;
}

static inline ee_sums add_plane(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at) {
    for (size_t i = 0; i < STRIDE; i++)
        sums += (codes[i] & 15) * query->lows[at + i] + (codes[i] >> 4) * query->highs[at + i];
    return sums;
}

static inline int32_t total(ee_sums sums) { return sums; }

#endif

/* The levels (padded,) become what the instruction set reads; behind them is room for as many bytes again. */
static inline void lay_out(int16_t *levels, size_t padded, ee_query *ready) {
#ifdef LEVELS_ARE_BYTES
    int8_t *highs = (int8_t *)(levels + padded), *lows = highs + padded;
    for (size_t i = 0; i < padded; i++) {
        lows[i] = (int8_t)((levels[i] + 128) % 256 - 128);
        highs[i] = (int8_t)((levels[i] - lows[i]) / 256);
    }
    ready->highs = highs;
    ready->lows = lows;
#else
    (void)padded;
#endif
    ready->levels = levels;
}

/* Where a row's last stride is read: in a copy, if it goes beyond the end of the table. */
static inline const unsigned char *last_stride(const unsigned char *at, size_t left, const unsigned char *end,
                                               unsigned char *copy) {
    if ((size_t)(end - at) >= STRIDE)
        return at;
    memset(copy, 0, STRIDE);
    return memcpy(copy, at, left);
}

typedef ee_sums (*ee_add)(ee_sums sums, const unsigned char *codes, const ee_query *query, size_t at);

/* Return the dot product of a row with a query. One row at a time: neighbours in one loop would read less of the query,
 * but four of them took twice as long (EPYC, 2026-11); long scans read at several places instead, a row at each in turn
 * (EE_STREAMS). add is a constant, and gone once this is inlined. */
static inline __attribute__((always_inline)) int64_t dot_row(ee_add add, const unsigned char *row, size_t row_bytes,
                                                             const unsigned char *end, const ee_query *query) {
    size_t whole = row_bytes / STRIDE * STRIDE, at = 0;
    int64_t sum = 0;
    do {
        size_t first = at, stop = whole - at < PART ? whole : at + PART;
        ee_sums sums;
        memset(&sums, 0, sizeof sums);
        for (; at < stop; at += STRIDE)
            sums = add(sums, row + at, query, at);
        /* A part that is full has no room for what is left of the row. */
        if (at - first < PART && at < row_bytes) {
            unsigned char copy[STRIDE];
            sums = add(sums, last_stride(row + at, row_bytes - at, end, copy), query, at);
            at = row_bytes;
        }
        sum += total(sums);
    } while (at < row_bytes);
    return sum;
}

#endif
