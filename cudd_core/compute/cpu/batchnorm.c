/* BatchNorm with running statistics and what follows it, for cudd_core/compute/cpu/batchnorm.py, which has the
   equations. Compiled on the machine that runs it.

   Images are n × h × w × channels, contiguous; channels are a multiple of LANES. Every value is read once and written
   once. Four pixels are processed at a time, so that scales and sums are read only once for them. Results do not depend
   on how images are divided among threads, because sums are returned per image. */

#include <string.h>

#include "vectors.h"

typedef __typeof__((vector){0} > (vector){0}) mask;

enum { TOGETHER = 4 /* pixels processed together; with pooling, those of one output */ };

/* What follows normalisation: nothing; ReLU; ReLU and 2 × 2 average pooling; or adding other images, then ReLU. */
enum { NOTHING, RELU, POOL, JOIN };

/* `values` where `condition` is positive, else 0; NaN passes, as in torch's ReLU. */
INLINE vector where_positive(vector condition, vector values)
{
    return (vector)((mask)values & ~(mask)(condition <= (vector){0}));
}

typedef struct {
    long h, w, channels;
} shape;

/* One value per channel each. */
typedef struct {
    const REAL *scale, *shift;
    const REAL *centre;         /* forward: subtracted before summing; NULL: no sums */
    const REAL *slope, *offset; /* backward: the sums add slope · x + offset to the gradient; NULL: nothing */
} parameters;

/* Pixels that are processed together: their positions in an image, and their number. */
typedef struct {
    long at[TOGETHER];
    int count;
} group;

INLINE long groups_in(int after, const shape *s)
{
    return after == POOL ? s->h / 2 * (s->w / 2) : (s->h * s->w + TOGETHER - 1) / TOGETHER;
}

INLINE group group_of(int after, const shape *s, long number)
{
    if (after == POOL) {
        long across = s->w / 2, first = number / across * 2 * s->w + number % across * 2;
        return (group){{first, first + 1, first + s->w, first + s->w + 1}, TOGETHER};
    }
    long first = number * TOGETHER, left = s->h * s->w - first;
    return (group){{first, first + 1, first + 2, first + 3}, left < TOGETHER ? left : TOGETHER};
}

/* Whether pooling leaves a pixel out, because it is in the last row or column of an odd side. */
INLINE int is_left_out(const shape *s, long pixel)
{
    return pixel / s->w >= s->h / 2 * 2 || pixel % s->w >= s->w / 2 * 2;
}

INLINE void forward_group(int after, int watched, int count, const group *g, long number, long channels, const REAL *x,
                          const REAL *others, const parameters *p, REAL *sums, REAL *out)
{
    for (long c = 0; c < channels; c += LANES) {
        vector scale = load(p->scale + c), shift = load(p->shift + c), pooled = {0};
        vector centre = {0}, sum = {0}, squares = {0};
        if (watched) {
            centre = load(p->centre + c);
            sum = load(sums + c);
            squares = load(sums + channels + c);
        }
        UNROLL for (int i = 0; i < count; i++) {
            long at = g->at[i] * channels + c;
            vector value = load(x + at);
            if (watched) {
                vector distance = value - centre;
                sum += distance;
                squares += distance * distance;
            }
            value = scale * value + shift;
            if (after == JOIN)
                value += load(others + at);
            if (after != NOTHING)
                value = where_positive(value, value);
            if (after == POOL)
                pooled += value;
            else
                store(out + at, value);
        }
        if (watched) {
            store(sums + c, sum);
            store(sums + channels + c, squares);
        }
        if (after == POOL)
            store(out + number * channels + c, pooled * (REAL)0.25);
    }
}

INLINE void forward(int after, int watched, const shape *s, const REAL *x, const REAL *others, const parameters *p,
                    REAL *sums, REAL *out)
{
    long count = groups_in(after, s);
    if (watched)
        memset(sums, 0, 2 * s->channels * sizeof(REAL));
    for (long number = 0; number < count; number++) {
        group g = group_of(after, s, number);
        if (g.count == TOGETHER)
            forward_group(after, watched, TOGETHER, &g, number, s->channels, x, others, p, sums, out);
        else
            forward_group(after, watched, g.count, &g, number, s->channels, x, others, p, sums, out);
    }
    if (after == POOL && watched && (s->h % 2 || s->w % 2))
        for (long pixel = 0; pixel < s->h * s->w; pixel++)
            if (is_left_out(s, pixel))
                for (long c = 0; c < s->channels; c += LANES) {
                    vector distance = load(x + pixel * s->channels + c) - load(p->centre + c);
                    store(sums + c, load(sums + c) + distance);
                    store(sums + s->channels + c, load(sums + s->channels + c) + distance * distance);
                }
}

INLINE void backward_group(int after, int watched, int count, const group *g, long number, long channels, const REAL *x,
                           const REAL *out, const parameters *p, const REAL *gradient, REAL *to_x, REAL *to_others)
{
    for (long c = 0; c < channels; c += LANES) {
        vector scale = load(p->scale + c), shift = load(p->shift + c), slope = {0}, offset = {0}, pooled = {0};
        if (watched) {
            slope = load(p->slope + c);
            offset = load(p->offset + c);
        }
        if (after == POOL)
            pooled = load(gradient + number * channels + c) * (REAL)0.25;
        UNROLL for (int i = 0; i < count; i++) {
            long at = g->at[i] * channels + c;
            vector value = watched || after == RELU || after == POOL ? load(x + at) : (vector){0};
            vector passed = after == POOL ? pooled : load(gradient + at);
            if (after == JOIN) {
                passed = where_positive(load(out + at), passed);
                store(to_others + at, passed);
            } else if (after != NOTHING)
                passed = where_positive(scale * value + shift, passed);
            passed *= scale;
            if (watched)
                passed += slope * value + offset;
            store(to_x + at, passed);
        }
    }
}

INLINE void backward(int after, int watched, const shape *s, const REAL *x, const REAL *out, const parameters *p,
                     const REAL *gradient, REAL *to_x, REAL *to_others)
{
    long count = groups_in(after, s);
    for (long number = 0; number < count; number++) {
        group g = group_of(after, s, number);
        if (g.count == TOGETHER)
            backward_group(after, watched, TOGETHER, &g, number, s->channels, x, out, p, gradient, to_x, to_others);
        else
            backward_group(after, watched, g.count, &g, number, s->channels, x, out, p, gradient, to_x, to_others);
    }
    if (after == POOL && (s->h % 2 || s->w % 2))
        for (long pixel = 0; pixel < s->h * s->w; pixel++)
            if (is_left_out(s, pixel))
                for (long c = 0; c < s->channels; c += LANES) {
                    vector value = {0};
                    if (watched)
                        value = load(p->slope + c) * load(x + pixel * s->channels + c) + load(p->offset + c);
                    store(to_x + pixel * s->channels + c, value);
                }
}

/* `call` with constants in place of `after` and `watched`, so that each pair is compiled separately. */
#define CHOSEN(call, ...)                                                                                              \
    switch (after) {                                                                                                   \
    case NOTHING: watched ? call(NOTHING, 1, __VA_ARGS__) : call(NOTHING, 0, __VA_ARGS__); break;                      \
    case RELU: watched ? call(RELU, 1, __VA_ARGS__) : call(RELU, 0, __VA_ARGS__); break;                               \
    case POOL: watched ? call(POOL, 1, __VA_ARGS__) : call(POOL, 0, __VA_ARGS__); break;                               \
    case JOIN: watched ? call(JOIN, 1, __VA_ARGS__) : call(JOIN, 0, __VA_ARGS__); break;                               \
    }

/* Writes `out` for n images x (for JOIN, also `others`), and sums [n, 2, channels] of x − centre and its square. */
void cudd_batchnorm(int after, long n, shape s, const REAL *x, const REAL *others, parameters p, REAL *sums, REAL *out)
{
    int watched = p.centre != NULL;
    long size = s.h * s.w * s.channels, made = after == POOL ? s.h / 2 * (s.w / 2) * s.channels : size;
    for (long image = 0; image < n; image++) {
        CHOSEN(forward, &s, x, others, &p, sums, out)
        x += size, out += made;
        others += after == JOIN ? size : 0;
        sums += watched ? 2 * s.channels : 0;
    }
}

/* Writes to_x and, for JOIN, to_others, given the gradient to `out`. Only JOIN reads `out`. */
void cudd_batchnorm_back(int after, long n, shape s, const REAL *x, const REAL *out, parameters p, const REAL *gradient,
                         REAL *to_x, REAL *to_others)
{
    int watched = p.slope != NULL;
    long size = s.h * s.w * s.channels, made = after == POOL ? s.h / 2 * (s.w / 2) * s.channels : size;
    for (long image = 0; image < n; image++) {
        CHOSEN(backward, &s, x, out, &p, gradient, to_x, to_others)
        x += size, to_x += size, gradient += made;
        out += after == JOIN ? size : 0;
        to_others += after == JOIN ? size : 0;
    }
}
