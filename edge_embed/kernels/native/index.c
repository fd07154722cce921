/* Keys: XXH64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md) and the perfect hash over it. */
#include "core.h"

#include <string.h>

#define P1 UINT64_C(11400714785074694791)
#define P2 UINT64_C(14029467366897019727)
#define P3 UINT64_C(1609587929392839161)
#define P4 UINT64_C(9650029242287828579)
#define P5 UINT64_C(2870177450012600261)

/* As in reference.py. */
#define SPREAD_PILOT UINT64_C(0x9E3779B97F4A7C15)
#define SPREAD_KEY UINT64_C(0xD6E8FEB86659FD93)
#define EMPTY_ROW UINT32_C(0xFFFFFFFF)

/* Keys whose cache lines are on their way at once. */
#define UNDER_WAY 32

static inline uint64_t read64(const unsigned char *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t read32(const unsigned char *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t rotated(uint64_t value, int by) { return (value << by) | (value >> (64 - by)); }

static inline uint64_t round_of(uint64_t lane, uint64_t word) { return rotated(lane + word * P2, 31) * P1; }

uint64_t ee_hash(const unsigned char *key, size_t length, uint64_t seed) {
    const unsigned char *at = key;
    size_t left = length;
    uint64_t found;
    if (length >= 32) {
        uint64_t lanes[4] = {seed + P1 + P2, seed + P2, seed, seed - P1};
        for (; left >= 32; left -= 32)
            for (int i = 0; i < 4; i++, at += 8)
                lanes[i] = round_of(lanes[i], read64(at));
        found = rotated(lanes[0], 1) + rotated(lanes[1], 7) + rotated(lanes[2], 12) + rotated(lanes[3], 18);
        for (int i = 0; i < 4; i++)
            found = (found ^ round_of(0, lanes[i])) * P1 + P4;
    } else {
        found = seed + P5;
    }
    found += length;
    for (; left >= 8; left -= 8, at += 8)
        found = rotated(found ^ round_of(0, read64(at)), 27) * P1 + P4;
    if (left >= 4) {
        found = rotated(found ^ (read32(at) * P1), 23) * P2 + P3;
        left -= 4, at += 4;
    }
    for (; left; left--, at++)
        found = rotated(found ^ (*at * P5), 11) * P1;
    found = (found ^ (found >> 33)) * P2;
    found = (found ^ (found >> 29)) * P3;
    return found ^ (found >> 32);
}

static inline const unsigned char *pilot_of(const ee_index *index, uint64_t hash) {
    return index->pilots + 2 * (((hash & UINT64_C(0xFFFFFFFF)) * index->bucket_count) >> 32);
}

static inline const unsigned char *slot_of(const ee_index *index, uint64_t hash, const unsigned char *pilot) {
    uint64_t number = pilot[0] | (uint64_t)pilot[1] << 8;
    uint64_t spread = (hash ^ (number * SPREAD_PILOT)) * SPREAD_KEY;
    return index->slots + 8 * (((spread >> 32) * index->slot_count) >> 32);
}

static inline int64_t row_in(const unsigned char *slot, uint64_t hash) {
    uint32_t row = read32(slot + 4);
    return read32(slot) == hash >> 32 && row != EMPTY_ROW ? (int64_t)row : -1;
}

int64_t ee_find(const ee_index *index, uint64_t hash) {
    if (!index->slot_count)
        return -1;
    return row_in(slot_of(index, hash, pilot_of(index, hash)), hash);
}

void ee_find_all(const ee_index *index, const uint64_t *hashes, size_t n, int64_t *rows) {
    const unsigned char *places[UNDER_WAY];
    if (!index->slot_count) {
        for (size_t i = 0; i < n; i++)
            rows[i] = -1;
        return;
    }
    for (size_t start = 0; start < n; start += UNDER_WAY) {
        size_t count = n - start < UNDER_WAY ? n - start : UNDER_WAY;
        for (size_t i = 0; i < count; i++)
            __builtin_prefetch(places[i] = pilot_of(index, hashes[start + i]));
        for (size_t i = 0; i < count; i++)
            __builtin_prefetch(places[i] = slot_of(index, hashes[start + i], places[i]));
        for (size_t i = 0; i < count; i++)
            rows[start + i] = row_in(places[i], hashes[start + i]);
    }
}
