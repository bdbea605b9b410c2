/* The 32-byte vectors that this folder's C code computes with: of floats or, if REAL is double, of doubles. */

#ifndef REAL
#define REAL float
#endif

typedef REAL vector __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));

enum { LANES = 32 / sizeof(REAL) };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

INLINE vector load(const REAL *from) { return *(const vector *)from; }
INLINE void store(REAL *to, vector values) { *(vector *)to = values; }
