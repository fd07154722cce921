/* The instruction sets that rows.c is compiled for; the build gives EE_VARIANT and EE_VARIANT_NAME their values. */
#ifndef EDGE_EMBED_VARIANTS_H
#define EDGE_EMBED_VARIANTS_H

#include "core.h"

extern const ee_kernels ee_baseline;
#if defined(__x86_64__)
extern const ee_kernels ee_avx2, ee_vnni;
#elif defined(__aarch64__) && defined(__linux__)
extern const ee_kernels ee_dotprod;
#elif defined(__arm__) && defined(__linux__)
extern const ee_kernels ee_neon;
#endif

#endif
