/* Which spelling this processor runs: asked once, when the kernels are loaded. */
#include "core.h"
#include "variants.h"

#include <stdlib.h>
#include <string.h>

/* EDGE_EMBED_VARIANT=baseline asks for less than the processor has: for comparisons, and for a bug's trail. */
static int is_asked_for(const ee_kernels *kernels) {
    const char *asked = getenv("EDGE_EMBED_VARIANT");
    return !asked || !*asked || !strcmp(asked, kernels->name);
}

const ee_kernels *ee_choose(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && is_asked_for(&ee_avx2))
        return &ee_avx2;
#endif
    return &ee_baseline;
}

size_t ee_scratch(const ee_rows *rows) { return rows->codec == EE_OPQ ? rows->books * rows->width : 0; }

size_t ee_scan_scratch(const ee_rows *rows) {
    if (rows->codec == EE_PLANE)
        return rows->dimensions + EE_PLANE_STRIDE;
    return rows->codec >= EE_PQ ? rows->books * (256 + rows->width) : rows->dimensions;
}
