/* Which spelling this processor runs: asked once, when the kernels are loaded. */
#include "core.h"
#include "variants.h"

#include <string.h>
#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))
#include <sys/auxv.h>
#endif

/* Of one architecture. */
#define MOST_VARIANTS 3

/* The kernel's word counts on ARM: asking for what is not there ends in an illegal instruction
 * (arch/arm64/include/uapi/asm/hwcap.h, arch/arm's). */
const ee_kernels *const *ee_variants(void) {
    static const ee_kernels *known[MOST_VARIANTS + 1];
    size_t count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("f16c"))
        known[count++] = &ee_vnni;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"))
        known[count++] = &ee_avx2;
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & 1u << 20 /* HWCAP_ASIMDDP */)
        known[count++] = &ee_dotprod;
#elif defined(__arm__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & 1u << 12 /* HWCAP_NEON */)
        known[count++] = &ee_neon;
#endif
    known[count++] = &ee_baseline;
    known[count] = NULL;
    return known;
}

const ee_kernels *ee_choose(const char *asked) {
    const ee_kernels *const *variant = ee_variants();
    while (*variant && asked && *asked && strcmp(asked, (*variant)->name))
        variant++;
    return *variant;
}

size_t ee_scratch(const ee_rows *rows) { return rows->codec == EE_OPQ ? rows->books * rows->width : 0; }

size_t ee_scan_scratch(const ee_rows *rows) {
    if (rows->codec == EE_INT8 || rows->codec == EE_PLANE)
        return rows->dimensions + EE_PADDING;
    return rows->codec >= EE_PQ ? rows->books * (256 + rows->width) : rows->dimensions;
}
