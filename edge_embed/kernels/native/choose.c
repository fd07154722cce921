/* Which spelling this processor runs: asked once, when the kernels are loaded. */
#include "core.h"
#include "variants.h"

#include <string.h>
#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))
#include <sys/auxv.h>
#endif

/* Return what this processor has beyond the baseline of its architecture, or null. The kernel's word counts on ARM:
 * asking for what is not there ends in an illegal instruction (arch/arm64/include/uapi/asm/hwcap.h, arch/arm's).
 * AVX-512 and its VNNI have no spelling of their own: a scan by AVX2 already waits for memory, and VNNI's sums wait for
 * one another (int8 even, planes a fifth slower on a Xeon of 2023, int8 twice as slow on an EPYC; 2026-11). */
static const ee_kernels *best_variant(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? &ee_avx2 : NULL;
#elif defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) & 1u << 20 /* HWCAP_ASIMDDP */ ? &ee_dotprod : NULL;
#elif defined(__arm__) && defined(__linux__)
    return getauxval(AT_HWCAP) & 1u << 12 /* HWCAP_NEON */ ? &ee_neon : NULL;
#else
    return NULL;
#endif
}

const ee_kernels *ee_choose(const char *asked) {
    const ee_kernels *best = best_variant();
    if (!asked || !*asked)
        return best ? best : &ee_baseline;
    if (best && !strcmp(asked, best->name))
        return best;
    return strcmp(asked, ee_baseline.name) ? NULL : &ee_baseline;
}

size_t ee_scratch(const ee_rows *rows) { return rows->codec == EE_OPQ ? rows->books * rows->width : 0; }

size_t ee_scan_scratch(const ee_rows *rows) {
    if (rows->codec == EE_INT8 || rows->codec == EE_PLANE)
        return rows->dimensions + EE_STRIDE;
    return rows->codec >= EE_PQ ? rows->books * (256 + rows->width) : rows->dimensions;
}
