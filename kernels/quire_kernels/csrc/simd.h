// Sixteen float lanes: one AVX-512 register or two AVX2 registers behind one type.
//
// Every kernel is written on these types alone, and every operation here rounds each lane the same way on both
// instruction sets (fused multiply-add included), so a kernel's result is bitwise the same on either.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define QUIRE_INLINE inline __attribute__((always_inline))

namespace quire {

constexpr int kLanes = 16;

QUIRE_INLINE int32_t read_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

#if defined(__AVX512F__)

// Accumulators of F32x16 that a register tile may hold: 32 registers less those that feed it.
constexpr int kTileVectors = 24;

struct F32x16 {
  __m512 v;
};

QUIRE_INLINE F32x16 zero() { return {_mm512_setzero_ps()}; }
QUIRE_INLINE F32x16 splat(float s) { return {_mm512_set1_ps(s)}; }
QUIRE_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
QUIRE_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
QUIRE_INLINE F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// a NaN in b is kept, one in a gives b
QUIRE_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 round_even(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral lanes n in [-126, 127]
QUIRE_INLINE F32x16 exp2_integral(F32x16 n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// lanes i < count from a, the others from b
QUIRE_INLINE F32x16 first_lanes(F32x16 a, F32x16 b, int count) {
  return {_mm512_mask_mov_ps(b.v, static_cast<__mmask16>((1u << count) - 1u), a.v)};
}
QUIRE_INLINE bool any_equal(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ) != 0; }
QUIRE_INLINE __m256 low_half(F32x16 a) { return _mm512_castps512_ps256(a.v); }
QUIRE_INLINE __m256 high_half(F32x16 a) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)); }
// 16 bf16 stored as columns 0 8 1 9 ... 7 15, in column order: both halves come out of one 256-bit load
QUIRE_INLINE F32x16 widen_bf16(const uint16_t* p) {
  const __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i shifts = _mm512_inserti64x4(_mm512_set1_epi32(16), _mm256_setzero_si256(), 1);
  const __m512i shifted = _mm512_sllv_epi32(twice, shifts);
  return {_mm512_castsi512_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
QUIRE_INLINE F32x16 widen_fp16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
QUIRE_INLINE F32x16 widen_int8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
QUIRE_INLINE F32x16 widen_uint8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// For each of 16 columns, side by side: four bytes; two 16-bit integers; one of 32 bits.
struct I8x64 {
  __m512i v;
};
struct I16x32 {
  __m512i v;
};
struct I32x16 {
  __m512i v;
};

// 32 bytes: columns 0 to 7 in the low halves
QUIRE_INLINE I8x64 load_nibbles(const uint8_t* p) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i spread = _mm512_inserti64x4(_mm512_castsi256_si512(both), _mm256_srli_epi16(both, 4), 1);
  return {_mm512_and_si512(spread, _mm512_set1_epi8(15))};
}
// 32 signed bytes
QUIRE_INLINE I16x32 load_bytes(const uint8_t* p) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
QUIRE_INLINE I8x64 splat(const int8_t* four) { return {_mm512_set1_epi32(read_word(four))}; }
QUIRE_INLINE I16x32 splat(const int16_t* two) { return {_mm512_set1_epi32(read_word(two))}; }
QUIRE_INLINE I16x32 add(I16x32 a, I16x32 b) { return {_mm512_add_epi16(a.v, b.v)}; }
QUIRE_INLINE I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
// products of neighbours, summed in pairs; `u` holds no sign
QUIRE_INLINE I16x32 multiply_pairs(I8x64 u, I8x64 a) { return {_mm512_maddubs_epi16(u.v, a.v)}; }
QUIRE_INLINE I32x16 multiply_pairs(I16x32 a, I16x32 b) { return {_mm512_madd_epi16(a.v, b.v)}; }
QUIRE_INLINE I32x16 sum_pairs(I16x32 a) { return {_mm512_madd_epi16(a.v, _mm512_set1_epi16(1))}; }
QUIRE_INLINE F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// integral lanes
QUIRE_INLINE void store(int8_t* p, F32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
QUIRE_INLINE void store(int16_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.v)));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

constexpr int kTileVectors = 6;

struct F32x16 {
  __m256 lo, hi;
};

QUIRE_INLINE F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
QUIRE_INLINE F32x16 splat(float s) {
  const __m256 v = _mm256_set1_ps(s);
  return {v, v};
}
QUIRE_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
QUIRE_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
QUIRE_INLINE F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
QUIRE_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
QUIRE_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
QUIRE_INLINE F32x16 div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
QUIRE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
QUIRE_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
QUIRE_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
QUIRE_INLINE F32x16 round_even(F32x16 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
QUIRE_INLINE __m256 exp2_integral_half(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
QUIRE_INLINE F32x16 exp2_integral(F32x16 n) { return {exp2_integral_half(n.lo), exp2_integral_half(n.hi)}; }
QUIRE_INLINE F32x16 first_lanes(F32x16 a, F32x16 b, int count) {
  const __m256i limit = _mm256_set1_epi32(count);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i low = _mm256_cmpgt_epi32(limit, lane);
  const __m256i high = _mm256_cmpgt_epi32(limit, _mm256_add_epi32(lane, _mm256_set1_epi32(8)));
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(low)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(high))};
}
QUIRE_INLINE bool any_equal(F32x16 a, F32x16 b) {
  const __m256 low = _mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ);
  const __m256 high = _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ);
  return _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0;
}
QUIRE_INLINE __m256 low_half(F32x16 a) { return a.lo; }
QUIRE_INLINE __m256 high_half(F32x16 a) { return a.hi; }
QUIRE_INLINE F32x16 widen_bf16(const uint16_t* p) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
QUIRE_INLINE F32x16 widen_fp16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
QUIRE_INLINE __m256 widen_int8_half(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
QUIRE_INLINE F32x16 widen_int8(const int8_t* p) { return {widen_int8_half(p), widen_int8_half(p + 8)}; }
QUIRE_INLINE __m256 widen_uint8_half(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
QUIRE_INLINE F32x16 widen_uint8(const uint8_t* p) { return {widen_uint8_half(p), widen_uint8_half(p + 8)}; }

struct I8x64 {
  __m256i lo, hi;
};
struct I16x32 {
  __m256i lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};

QUIRE_INLINE I8x64 load_nibbles(const uint8_t* p) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
}
QUIRE_INLINE I16x32 load_bytes(const uint8_t* p) {
  const auto* halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(halves)), _mm256_cvtepi8_epi16(_mm_loadu_si128(halves + 1))};
}
QUIRE_INLINE I8x64 splat(const int8_t* four) {
  const __m256i word = _mm256_set1_epi32(read_word(four));
  return {word, word};
}
QUIRE_INLINE I16x32 splat(const int16_t* two) {
  const __m256i word = _mm256_set1_epi32(read_word(two));
  return {word, word};
}
QUIRE_INLINE I16x32 add(I16x32 a, I16x32 b) { return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)}; }
QUIRE_INLINE I32x16 add(I32x16 a, I32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
QUIRE_INLINE I16x32 multiply_pairs(I8x64 u, I8x64 a) {
  return {_mm256_maddubs_epi16(u.lo, a.lo), _mm256_maddubs_epi16(u.hi, a.hi)};
}
QUIRE_INLINE I32x16 multiply_pairs(I16x32 a, I16x32 b) {
  return {_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi)};
}
QUIRE_INLINE I32x16 sum_pairs(I16x32 a) {
  const __m256i ones = _mm256_set1_epi16(1);
  return multiply_pairs(a, I16x32{ones, ones});
}
QUIRE_INLINE F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
QUIRE_INLINE __m256i to_words(F32x16 a) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  return _mm256_permute4x64_epi64(words, 0xd8);  // packs works on each half alone
}
QUIRE_INLINE void store(int8_t* p, F32x16 a) {
  const __m256i words = to_words(a);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
QUIRE_INLINE void store(int16_t* p, F32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_words(a)); }

#else
#error "compile with AVX2, FMA and F16C at least"
#endif

// The first `count` (0 to 16) floats at p, zero in the other lanes. Touches nothing beyond them.
QUIRE_INLINE F32x16 load_some(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, sizeof(float) * static_cast<size_t>(count));
  return load(lanes);
}

QUIRE_INLINE void store_some(float* p, F32x16 a, int64_t count) {
  if (count >= kLanes) return store(p, a);
  float lanes[kLanes];
  store(lanes, a);
  std::memcpy(p, lanes, sizeof(float) * static_cast<size_t>(count));
}

// Sum of the lanes, halves folded onto each other: 8, 4, 2, 1.
QUIRE_INLINE float sum_lanes(F32x16 a) {
  const __m256 eight = _mm256_add_ps(low_half(a), high_half(a));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

QUIRE_INLINE float max_lanes(F32x16 a) {
  const __m256 eight = _mm256_max_ps(low_half(a), high_half(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// e^x within 2 ulp for x in [-87.33, 88.02], clamped to that range outside, NaN for NaN, exactly 1 for 0. Cody-Waite
// reduction and the minimax polynomial of Cephes' expf (Moshier, netlib.org/cephes).
QUIRE_INLINE F32x16 exp(F32x16 x) {
  x = min(splat(88.02f), max(splat(-87.33f), x));
  const F32x16 n = round_even(mul(x, splat(1.44269504088896341f)));
  F32x16 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  F32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), splat(1.0f));
  return mul(p, exp2_integral(n));
}

}  // namespace quire
