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
#define CK_UNROLL _Pragma("GCC unroll 16")

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

enum { VL = CK_VECTOR_BYTES / (int)sizeof(real), LONGS = CK_VECTOR_BYTES / 8 };

typedef real vec __attribute__((vector_size(CK_VECTOR_BYTES)));
typedef real vec_unaligned
    __attribute__((vector_size(CK_VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef lane_int mask __attribute__((vector_size(CK_VECTOR_BYTES)));
typedef int64_t v_long __attribute__((vector_size(CK_VECTOR_BYTES)));

CK_INLINE vec v_load(const real *p) { return *(const vec_unaligned *)p; }
CK_INLINE void v_store(real *p, vec v) { *(vec_unaligned *)p = v; }
/* A value minus the zero vector is the one spelling that GCC turns into a plain broadcast load. */
CK_INLINE vec v_set1(real x) { return x - (vec){0}; }
CK_INLINE vec v_select(mask m, vec a, vec b) { return (vec)(((mask)a & m) | ((mask)b & ~m)); }

/* ---- what each instruction set adds: v_fma(a, b, c) = a*b + c; loads and stores of the first n
 * lanes, v_store_long_part those of 64-bit integers, v_widen makes them of half a vector.  A choice
 * says something of each lane: v_greater: a > b; v_unordered: a or b is NaN; v_first: it is one of
 * the first n; v_choose(c, a, b): a where c says so, otherwise b; v_load_chosen, v_store_chosen: only
 * those lanes of memory, the others loaded as zeros.  v_max(a, b) = a > b ? a : b. ---- */
#if defined(CK_ISA_AVX512)
#include <immintrin.h>
#ifdef CK_DTYPE_F64
#define CK_MM(op) _mm512_##op##_pd
#define CK_LANES(n) ((__mmask8)((1u << (n)) - 1))
#define CK_CMP _mm512_cmp_pd_mask
typedef __mmask8 choice;
CK_INLINE v_long v_widen(mask v, int half) { return (void)half, v; }
#else
#define CK_MM(op) _mm512_##op##_ps
#define CK_LANES(n) ((__mmask16)((1u << (n)) - 1))
#define CK_CMP _mm512_cmp_ps_mask
typedef __mmask16 choice;
CK_INLINE v_long v_widen(mask v, int half)
{
    const __m512i m = (__m512i)v;
    return (v_long)_mm512_cvtepi32_epi64(half ? _mm512_extracti64x4_epi64(m, 1)
                                              : _mm512_castsi512_si256(m));
}
#endif
CK_INLINE vec v_fma(vec a, vec b, vec c) { return CK_MM(fmadd)(a, b, c); }
CK_INLINE vec v_load_part(const real *p, ptrdiff_t n) { return CK_MM(maskz_loadu)(CK_LANES(n), p); }
CK_INLINE void v_store_part(real *p, vec v, ptrdiff_t n) { CK_MM(mask_storeu)(p, CK_LANES(n), v); }
CK_INLINE vec v_choose(choice c, vec a, vec b) { return CK_MM(mask_blend)(c, b, a); }
CK_INLINE choice v_unordered(vec a, vec b) { return CK_CMP(a, b, _CMP_UNORD_Q); }
CK_INLINE int v_any(choice c) { return c != 0; }
CK_INLINE choice v_greater(vec a, vec b) { return CK_CMP(a, b, _CMP_GT_OQ); }
CK_INLINE choice v_first(ptrdiff_t n) { return CK_LANES(n); }
CK_INLINE vec v_load_chosen(const real *p, choice c) { return CK_MM(maskz_loadu)(c, p); }
CK_INLINE void v_store_chosen(real *p, vec v, choice c) { CK_MM(mask_storeu)(p, c, v); }
CK_INLINE vec v_max(vec a, vec b) { return CK_MM(max)(a, b); }
CK_INLINE void v_store_long_part(int64_t *p, v_long v, ptrdiff_t n)
{
    _mm512_mask_storeu_epi64(p, (__mmask8)((1u << n) - 1), (__m512i)v);
}

#elif defined(CK_ISA_AVX2)
#include <immintrin.h>
#ifdef CK_DTYPE_F64
#define CK_MM(op) _mm256_##op##_pd
#define CK_LANES(n) (__m256i)((mask){0, 1, 2, 3} < (lane_int)(n))
CK_INLINE v_long v_widen(mask v, int half) { return (void)half, v; }
#else
#define CK_MM(op) _mm256_##op##_ps
#define CK_LANES(n) (__m256i)((mask){0, 1, 2, 3, 4, 5, 6, 7} < (lane_int)(n))
CK_INLINE v_long v_widen(mask v, int half)
{
    const __m256i m = (__m256i)v;
    return (v_long)_mm256_cvtepi32_epi64(half ? _mm256_extracti128_si256(m, 1)
                                              : _mm256_castsi256_si128(m));
}
#endif
CK_INLINE vec v_fma(vec a, vec b, vec c) { return CK_MM(fmadd)(a, b, c); }
CK_INLINE vec v_load_part(const real *p, ptrdiff_t n) { return CK_MM(maskload)(p, CK_LANES(n)); }
CK_INLINE void v_store_part(real *p, vec v, ptrdiff_t n) { CK_MM(maskstore)(p, CK_LANES(n), v); }
typedef mask choice;
CK_INLINE vec v_choose(choice c, vec a, vec b) { return CK_MM(blendv)(b, a, (vec)c); }
CK_INLINE choice v_unordered(vec a, vec b) { return (choice)CK_MM(cmp)(a, b, _CMP_UNORD_Q); }
CK_INLINE int v_any(choice c) { return CK_MM(movemask)((vec)c) != 0; }
CK_INLINE choice v_greater(vec a, vec b) { return a > b; }
CK_INLINE choice v_first(ptrdiff_t n) { return (choice)CK_LANES(n); }
CK_INLINE vec v_load_chosen(const real *p, choice c) { return CK_MM(maskload)(p, (__m256i)c); }
CK_INLINE void v_store_chosen(real *p, vec v, choice c) { CK_MM(maskstore)(p, (__m256i)c, v); }
CK_INLINE vec v_max(vec a, vec b) { return CK_MM(max)(a, b); }
CK_INLINE void v_store_long_part(int64_t *p, v_long v, ptrdiff_t n)
{
    _mm256_maskstore_epi64((long long *)p, (__m256i)((v_long){0, 1, 2, 3} < n), (__m256i)v);
}

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
typedef mask choice;
CK_INLINE vec v_choose(choice c, vec a, vec b) { return v_select(c, a, b); }
CK_INLINE choice v_unordered(vec a, vec b) { return (a != a) | (b != b); }
CK_INLINE int v_any(choice c)
{
    lane_int any = 0;
    for (int i = 0; i < VL; i++)
        any |= c[i];
    return any != 0;
}
CK_INLINE choice v_greater(vec a, vec b) { return a > b; }
CK_INLINE choice v_first(ptrdiff_t n)
{
    choice c;
    for (int i = 0; i < VL; i++)
        c[i] = i < n ? -1 : 0;
    return c;
}
CK_INLINE vec v_load_chosen(const real *p, choice c)
{
    vec v = {0};
    for (int i = 0; i < VL; i++)
        if (c[i])
            v[i] = p[i];
    return v;
}
CK_INLINE void v_store_chosen(real *p, vec v, choice c)
{
    for (int i = 0; i < VL; i++)
        if (c[i])
            p[i] = v[i];
}
CK_INLINE vec v_max(vec a, vec b) { return v_select(a > b, a, b); }
CK_INLINE v_long v_widen(mask v, int half)
{
    return (v_long){v[half * LONGS], v[half * LONGS + 1]};
}
CK_INLINE void v_store_long_part(int64_t *p, v_long v, ptrdiff_t n)
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

/* Lanes begin .. end-1, of those that there are. */
CK_INLINE choice v_between(ptrdiff_t begin, ptrdiff_t end)
{
    begin = begin < 0 ? 0 : begin > VL ? VL : begin;
    end = end < 0 ? 0 : end > VL ? VL : end;
    return (choice)(v_first(end) & ~v_first(begin));
}

/* The number of each lane. */
CK_INLINE mask v_lane_numbers(void)
{
    mask m;
    for (int i = 0; i < VL; i++)
        m[i] = i;
    return m;
}

/* The first n lanes of memory, if that many, `rest` in the others. */
CK_INLINE vec v_load_or(const real *p, ptrdiff_t n, real rest)
{
    if (n >= VL)
        return v_load(p);
    if (n <= 0)
        return v_set1(rest);
    return v_select(v_lane_numbers() < (lane_int)n, v_load_part(p, n), v_set1(rest));
}

/* Store base + v, n lanes, as 64-bit integers. */
CK_INLINE void v_store_long_n(int64_t *p, int64_t base, mask v, ptrdiff_t n)
{
    CK_UNROLL
    for (int half = 0; half < VL / LONGS; half++, p += LONGS, n -= LONGS) {
        const v_long wide = base + v_widen(v, half);
        if (n >= LONGS)
            memcpy(p, &wide, sizeof wide);
        else if (n > 0)
            v_store_long_part(p, wide, n);
    }
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

/* Interleave the lower (upper) halves of two vectors, or take every other lane of both; shuffles of
 * constants become one or two instructions. */
#if CK_VECTOR_BYTES == 64 && !defined(CK_DTYPE_F64)
#define CK_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define CK_NEXT 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
#define CK_PREVIOUS 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#define CK_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define CK_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define CK_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif CK_VECTOR_BYTES / 8 == 8 || (CK_VECTOR_BYTES == 32 && !defined(CK_DTYPE_F64))
#define CK_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define CK_NEXT 1, 2, 3, 4, 5, 6, 7, 8
#define CK_PREVIOUS 7, 8, 9, 10, 11, 12, 13, 14
#define CK_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define CK_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define CK_ODD 1, 3, 5, 7, 9, 11, 13, 15
#elif CK_VECTOR_BYTES == 32 || !defined(CK_DTYPE_F64)
#define CK_ZIP_LOW 0, 4, 1, 5
#define CK_NEXT 1, 2, 3, 4
#define CK_PREVIOUS 3, 4, 5, 6
#define CK_ZIP_HIGH 2, 6, 3, 7
#define CK_EVEN 0, 2, 4, 6
#define CK_ODD 1, 3, 5, 7
#else
#define CK_ZIP_LOW 0, 2
#define CK_NEXT 1, 2
#define CK_PREVIOUS 1, 2
#define CK_ZIP_HIGH 1, 3
#define CK_EVEN 0, 2
#define CK_ODD 1, 3
#endif
CK_INLINE vec v_zip_low(vec a, vec b) { return __builtin_shufflevector(a, b, CK_ZIP_LOW); }
CK_INLINE vec v_zip_high(vec a, vec b) { return __builtin_shufflevector(a, b, CK_ZIP_HIGH); }
CK_INLINE vec v_even(vec a, vec b) { return __builtin_shufflevector(a, b, CK_EVEN); }
CK_INLINE vec v_odd(vec a, vec b) { return __builtin_shufflevector(a, b, CK_ODD); }
/* Lane i gets what its neighbour had; the first lane of `more`, or a zero, comes in at the end. */
CK_INLINE vec v_next_of(vec v, vec more) { return __builtin_shufflevector(v, more, CK_NEXT); }
CK_INLINE vec v_next(vec v) { return v_next_of(v, (vec){0}); }
CK_INLINE vec v_previous(vec v) { return __builtin_shufflevector((vec){0}, v, CK_PREVIOUS); }

#endif
