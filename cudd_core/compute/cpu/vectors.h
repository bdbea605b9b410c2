/* The vectors that this folder's C code computes with: of floats or, if REAL is double, of doubles; of 32 bytes unless
   a source defines VECTOR_BYTES before it includes this. */

#ifndef REAL
#define REAL float
#endif

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 32
#endif

typedef REAL vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

enum { LANES = VECTOR_BYTES / sizeof(REAL) };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

INLINE vector load(const REAL *from) { return *(const vector *)from; }
INLINE void store(REAL *to, vector values) { *(vector *)to = values; }
