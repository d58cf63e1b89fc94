/* Vectors of `real` for one instruction set.
 *
 * The compiler's vector extensions do the arithmetic; an instruction set adds
 * its width, its fused multiply-add and its partial loads and stores, nothing
 * more.  Compiled once per dtype and instruction set with CK_ISA_<NAME> and
 * CK_DTYPE_F32 or CK_DTYPE_F64 defined by the build.
 */
#ifndef CK_VEC_H
#define CK_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CK_INLINE static inline __attribute__((always_inline))

#ifdef CK_DTYPE_F64
typedef double real;
typedef int64_t lane_int;
#else
typedef float real;
typedef int32_t lane_int;
#endif

#if defined(CK_ISA_AVX512)
#define CK_VECTOR_BYTES 64
#define CK_REGISTERS 32
#elif defined(CK_ISA_AVX2)
#define CK_VECTOR_BYTES 32
#define CK_REGISTERS 16
#elif defined(CK_ISA_NEON)
#define CK_VECTOR_BYTES 16
#define CK_REGISTERS 32
#else
#define CK_VECTOR_BYTES 16
#define CK_REGISTERS 16
#endif

enum { VL = CK_VECTOR_BYTES / (int)sizeof(real) };

typedef real vec __attribute__((vector_size(CK_VECTOR_BYTES)));
typedef real vec_unaligned
    __attribute__((vector_size(CK_VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef lane_int mask __attribute__((vector_size(CK_VECTOR_BYTES)));

CK_INLINE vec v_load(const real *p) { return *(const vec_unaligned *)p; }
CK_INLINE void v_store(real *p, vec v) { *(vec_unaligned *)p = v; }
/* A value minus the zero vector is the one spelling that GCC turns into a plain broadcast load. */
CK_INLINE vec v_set1(real x) { return x - (vec){0}; }
CK_INLINE vec v_select(mask m, vec a, vec b) { return (vec)(((mask)a & m) | ((mask)b & ~m)); }

/* ---- what each instruction set adds: v_fma(a, b, c) = a*b + c; the first n lanes ---- */
#if defined(CK_ISA_AVX512)
#include <immintrin.h>
#ifdef CK_DTYPE_F64
#define CK_MM(op) _mm512_##op##_pd
#define CK_LANES(n) ((__mmask8)((1u << (n)) - 1))
#else
#define CK_MM(op) _mm512_##op##_ps
#define CK_LANES(n) ((__mmask16)((1u << (n)) - 1))
#endif
CK_INLINE vec v_fma(vec a, vec b, vec c) { return CK_MM(fmadd)(a, b, c); }
CK_INLINE vec v_load_part(const real *p, ptrdiff_t n) { return CK_MM(maskz_loadu)(CK_LANES(n), p); }
CK_INLINE void v_store_part(real *p, vec v, ptrdiff_t n) { CK_MM(mask_storeu)(p, CK_LANES(n), v); }

#elif defined(CK_ISA_AVX2)
#include <immintrin.h>
#ifdef CK_DTYPE_F64
#define CK_MM(op) _mm256_##op##_pd
#define CK_LANES(n) (__m256i)((mask){0, 1, 2, 3} < (lane_int)(n))
#else
#define CK_MM(op) _mm256_##op##_ps
#define CK_LANES(n) (__m256i)((mask){0, 1, 2, 3, 4, 5, 6, 7} < (lane_int)(n))
#endif
CK_INLINE vec v_fma(vec a, vec b, vec c) { return CK_MM(fmadd)(a, b, c); }
CK_INLINE vec v_load_part(const real *p, ptrdiff_t n) { return CK_MM(maskload)(p, CK_LANES(n)); }
CK_INLINE void v_store_part(real *p, vec v, ptrdiff_t n) { CK_MM(maskstore)(p, CK_LANES(n), v); }

#else /* NEON and the portable path */
#if defined(CK_ISA_NEON)
#include <arm_neon.h>
#ifdef CK_DTYPE_F64
CK_INLINE vec v_fma(vec a, vec b, vec c) { return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
CK_INLINE vec v_fma(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#endif
#else
CK_INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }
#endif
CK_INLINE vec v_load_part(const real *p, ptrdiff_t n)
{
    vec v = {0};
    for (ptrdiff_t i = 0; i < n; i++)
        v[i] = p[i];
    return v;
}
CK_INLINE void v_store_part(real *p, vec v, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        p[i] = v[i];
}
#endif

/* ---- built on those ---- */

/* *acc += a * b in place.  Where GCC is free to choose the operand that an FMA overwrites, it
 * shuffles full tiles of accumulators between registers and spills; naming the instruction pins
 * them. */
CK_INLINE void v_accumulate(vec *acc, vec a, vec b)
{
#if defined(CK_ISA_AVX512) || defined(CK_ISA_AVX2)
#ifdef CK_DTYPE_F64
    __asm__("vfmadd231pd %2, %1, %0" : "+v"(*acc) : "v"(a), "v"(b));
#else
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(*acc) : "v"(a), "v"(b));
#endif
#else
    *acc = v_fma(a, b, *acc);
#if defined(__x86_64__)
    __asm__("" : "+x"(*acc));
#endif
#endif
}

/* Load or store n lanes where n == VL is the common case. */
CK_INLINE vec v_load_n(const real *p, ptrdiff_t n) { return n == VL ? v_load(p) : v_load_part(p, n); }
CK_INLINE void v_store_n(real *p, vec v, ptrdiff_t n)
{
    if (n == VL)
        v_store(p, v);
    else
        v_store_part(p, v, n);
}

/* The sum of the lanes, halves added to halves: the same tree for every caller. */
CK_INLINE real v_sum(vec v)
{
    real lane[VL];
    memcpy(lane, &v, sizeof v);
#pragma GCC unroll 4
    for (int width = VL / 2; width > 0; width /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return lane[0];
}

/* Interleave the lower (upper) halves of two vectors; shuffles of constants become one or two
 * instructions. */
#if CK_VECTOR_BYTES == 64 && !defined(CK_DTYPE_F64)
#define CK_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define CK_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define CK_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#elif CK_VECTOR_BYTES / 8 == 8 || (CK_VECTOR_BYTES == 32 && !defined(CK_DTYPE_F64))
#define CK_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define CK_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define CK_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#elif CK_VECTOR_BYTES == 32 || !defined(CK_DTYPE_F64)
#define CK_ZIP_LOW 0, 4, 1, 5
#define CK_ZIP_HIGH 2, 6, 3, 7
#define CK_EVEN 0, 2, 4, 6
#else
#define CK_ZIP_LOW 0, 2
#define CK_ZIP_HIGH 1, 3
#define CK_EVEN 0, 2
#endif
CK_INLINE vec v_zip_low(vec a, vec b) { return __builtin_shufflevector(a, b, CK_ZIP_LOW); }
CK_INLINE vec v_zip_high(vec a, vec b) { return __builtin_shufflevector(a, b, CK_ZIP_HIGH); }
/* Lanes 0, 2, 4, ... of the two. */
CK_INLINE vec v_even(vec a, vec b) { return __builtin_shufflevector(a, b, CK_EVEN); }

#endif
