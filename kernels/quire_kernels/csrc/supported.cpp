// What the loader asks before it calls anything else. Compiled for the baseline, so that asking is safe anywhere.

// Hash of the sources and flags that the variant was compiled from.
extern "C" __attribute__((visibility("default"))) const char* quire_sources() { return QUIRE_SOURCES; }

// Whether this processor runs the variant that it is linked into.
extern "C" __attribute__((visibility("default"))) int quire_supported() {
  __builtin_cpu_init();
#if defined(QUIRE_VARIANT_AVX512)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c");
#elif defined(QUIRE_VARIANT_AVX2)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
#error "name the variant"
#endif
}
