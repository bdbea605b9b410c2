/* Winograd's F(4×4, 3×3) for cudd_core/compute/cpu/winograd.py, which has the equations. Compiled on the machine that runs
   it.

   Images are n × h × w × channels, contiguous; channels are multiples of CHANNELS. A block of tiles is cut,
   transformed, multiplied and put together before the next one begins, so that intermediate values stay in the caches.
   In scratch memory, value ξ of tile t is a row of channels. PAD separates rows and planes, since a stride that is a
   power of two would map them all to the same few places of a cache. Outputs do not depend on how tiles are grouped
   into blocks; the last bits of the filters' gradients do. No bit depends on how wide vectors are. */

#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && !defined(VECTOR_BYTES)
#define VECTOR_BYTES 64
#endif
#include "vectors.h"

enum {
    /* A product makes ROWS rows of ACROSS vectors at a time: with 32 bytes all that 16 registers hold; with 64 as many
       sums as hide how long each takes. */
    ROWS = VECTOR_BYTES == 64 ? 8 : 6,
    ACROSS = VECTOR_BYTES == 64 ? 1 : 2,
    COLUMNS = ACROSS * LANES,
    DEPTH = 128,         /* values summed before the next columns of the other factor are read */
    CHANNELS = 16,
    TOGETHER = 64,       /* filters whose transforms fit into a cache */
    PAD = 16,
    TILE = 4,
    SIDE = 6,            /* side of an input tile */
    VALUES = SIDE * SIDE
};

static long at_most(long value, long limit) { return value < limit ? value : limit; }

/* The following read values `step` apart from `x` (six, or four in times_a_back) and write them `step` apart to `y`. */

INLINE void times_b(const vector *x, vector *y, int step) /* Bᵀ x */
{
    vector even = x[4 * step] - 4 * x[2 * step], odd = x[3 * step] - 4 * x[step];
    vector even_2 = x[4 * step] - x[2 * step], odd_2 = 2 * (x[3 * step] - x[step]);
    vector first = 4 * x[0] - 5 * x[2 * step] + x[4 * step];
    vector last = 4 * x[step] - 5 * x[3 * step] + x[5 * step];
    y[0] = first;
    y[step] = even + odd;
    y[2 * step] = even - odd;
    y[3 * step] = even_2 + odd_2;
    y[4 * step] = even_2 - odd_2;
    y[5 * step] = last;
}

INLINE void times_a(const vector *x, vector *y, int step) /* Aᵀ x */
{
    vector sum = x[step] + x[2 * step], difference = x[step] - x[2 * step];
    vector sum_2 = x[3 * step] + x[4 * step], difference_2 = x[3 * step] - x[4 * step];
    vector last = x[5 * step];
    y[0] = x[0] + sum + sum_2;
    y[step] = difference + 2 * difference_2;
    y[2 * step] = sum + 4 * sum_2;
    y[3 * step] = difference + 8 * difference_2 + last;
}

INLINE void times_a_back(const vector *x, vector *y, int step) /* A x */
{
    vector even = x[0] + x[2 * step], odd = x[step] + x[3 * step];
    vector even_2 = x[0] + 4 * x[2 * step], odd_2 = 2 * x[step] + 8 * x[3 * step];
    vector last = x[3 * step];
    y[0] = x[0];
    y[step] = even + odd;
    y[2 * step] = even - odd;
    y[3 * step] = even_2 + odd_2;
    y[4 * step] = even_2 - odd_2;
    y[5 * step] = last;
}

INLINE void times_g(const vector *x, vector *y, int step) /* G x, of three adjacent values */
{
    vector even = (REAL)-1 / 6 * (x[0] + x[2]), odd = (REAL)-1 / 6 * x[1];
    vector even_2 = (REAL)1 / 24 * x[0] + (REAL)1 / 6 * x[2], odd_2 = (REAL)1 / 12 * x[1];
    y[0] = (REAL)1 / 4 * x[0];
    y[step] = even + odd;
    y[2 * step] = even - odd;
    y[3 * step] = even_2 + odd_2;
    y[4 * step] = even_2 - odd_2;
    y[5 * step] = x[2];
}

INLINE void times_g_back(const vector *x, vector *y, int step) /* Gᵀ x, three values, `step` apart */
{
    vector even = x[step] + x[2 * step], odd = x[2 * step] - x[step];
    vector even_2 = x[3 * step] + x[4 * step], odd_2 = x[3 * step] - x[4 * step];
    vector last = x[5 * step];
    y[0] = (REAL)1 / 4 * x[0] - (REAL)1 / 6 * even + (REAL)1 / 24 * even_2;
    y[step] = (REAL)1 / 6 * odd + (REAL)1 / 12 * odd_2;
    y[2 * step] = (REAL)1 / 6 * (even_2 - even) + last;
}

/* How images are cut: n images of h × w pixels, each into rows × columns tiles. */
typedef struct {
    long n, h, w, rows, columns;
} cut;

static cut cut_of(long n, long h, long w)
{
    return (cut){n, h, w, (h + TILE - 1) / TILE, (w + TILE - 1) / TILE};
}

static long tiles_in(const cut *c) { return c->n * c->rows * c->columns; }

/* Tiles per block: few enough for the caches, and enough that reading the weights costs little beside the products. */
static long block_of(long channels) { return channels > 128 ? 114 : 48; }

static size_t row_of(long channels) { return channels + PAD; }
static size_t plane_of(long block, long channels) { return block * row_of(channels) + PAD; }

/* The addresses of an image's side × side pixels from (top, left) on; `zeros` for pixels beyond the edge. */
INLINE void pixels_of(const cut *c, const REAL *image, long channels, long top, long left, int side, const REAL *zeros,
                      const REAL **pixels)
{
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) {
            long y = top + i, x = left + j;
            int inside = y >= 0 && y < c->h && x >= 0 && x < c->w;
            pixels[side * i + j] = inside ? image + (y * c->w + x) * channels : zeros;
        }
}

/* The place of tile t: its image, and the top left pixel of its outputs. */
INLINE void place_of(const cut *c, long t, long *image, long *top, long *left)
{
    *image = t / (c->rows * c->columns);
    *top = t / c->columns % c->rows * TILE;
    *left = t % c->columns * TILE;
}

/* For `count` tiles from tile `first` on: V = Bᵀ (x) B of the inputs (side = SIDE) or A (y) Aᵀ of a gradient to the
   outputs (side = TILE). Pixels beyond the edge are zero. */
INLINE void read_tiles(int side, const cut *c, const REAL *images, long channels, long first, long count,
                       const REAL *zeros, REAL *v, size_t plane)
{
    long margin = (side - TILE) / 2;
    for (long t = 0; t < count; t++) {
        long image, top, left;
        const REAL *pixels[VALUES];
        place_of(c, first + t, &image, &top, &left);
        pixels_of(c, images + image * c->h * c->w * channels, channels, top - margin, left - margin, side, zeros,
                  pixels);
        REAL *to = v + t * row_of(channels);
        for (long lane = 0; lane < channels; lane += LANES) {
            vector x[VALUES];
            UNROLL for (int i = 0; i < side; i++) {
                vector row[SIDE];
                UNROLL for (int j = 0; j < side; j++) row[j] = load(pixels[side * i + j] + lane);
                if (side == SIDE) times_b(row, x + SIDE * i, 1);
                else times_a_back(row, x + SIDE * i, 1);
            }
            UNROLL for (int j = 0; j < SIDE; j++) {
                vector y[VALUES];
                if (side == SIDE) times_b(x + j, y, SIDE);
                else times_a_back(x + j, y, SIDE);
                UNROLL for (int i = 0; i < SIDE; i++) store(to + (SIDE * i + j) * plane + lane, y[SIDE * i]);
            }
        }
    }
}

/* Write Aᵀ (M) A, plus the bias unless that is NULL, to the images; values beyond the edge are dropped. */
static void write_outputs(const cut *c, const REAL *m, size_t plane, long channels, long first, long count,
                          const REAL *bias, REAL *images)
{
    for (long t = 0; t < count; t++) {
        long image, top, left;
        place_of(c, first + t, &image, &top, &left);
        long high = at_most(TILE, c->h - top), wide = at_most(TILE, c->w - left);
        const REAL *from = m + t * row_of(channels);
        REAL *to = images + ((image * c->h + top) * c->w + left) * channels;
        for (long lane = 0; lane < channels; lane += LANES) {
            vector x[TILE * SIDE];
            UNROLL for (int j = 0; j < SIDE; j++) {
                vector column[VALUES];
                UNROLL for (int i = 0; i < SIDE; i++)
                    column[SIDE * i] = load(from + (SIDE * i + j) * plane + lane);
                times_a(column, x + j, SIDE);
            }
            for (int i = 0; i < high; i++) {
                vector y[TILE];
                times_a(x + SIDE * i, y, 1);
                if (bias)
                    UNROLL for (int j = 0; j < TILE; j++) y[j] += load(bias + lane);
                for (int j = 0; j < wide; j++) store(to + (i * c->w + j) * channels + lane, y[j]);
            }
        }
    }
}

/* COLUMNS values of each of `rows` rows (eight at most): c[i][·] = Σ_p a[i, p] b[p][·], or c[i][·] += that. Rows of b
   and c are b_row and c_row apart; a[i, p] is a[i · a_row + p · a_step]. */
INLINE void few_rows(int rows, long depth, const REAL *a, size_t a_row, size_t a_step, const REAL *b, size_t b_row,
                     REAL *c, size_t c_row, int add)
{
    vector sums[8][ACROSS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < ACROSS; j++) sums[i][j] = (vector){0};
    for (long p = 0; p < depth; p++) {
        vector row[ACROSS];
        for (int j = 0; j < ACROSS; j++) row[j] = load(b + p * b_row + j * LANES);
        for (int i = 0; i < rows; i++) {
            REAL factor = a[i * a_row + p * a_step];
            for (int j = 0; j < ACROSS; j++) sums[i][j] += factor * row[j];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < ACROSS; j++) {
            REAL *to = c + i * c_row + j * LANES;
            if (add) sums[i][j] += load(to);
            store(to, sums[i][j]);
        }
}

static void product(long rows, long depth, const REAL *a, size_t a_row, size_t a_step, const REAL *b, size_t b_row,
                    REAL *c, size_t c_row, int add)
{
    long i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        few_rows(ROWS, depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, add);
    a += i * a_row;
    c += i * c_row;
    switch (rows - i) { /* with a number of rows known to the compiler, sums stay in registers */
    case 1: few_rows(1, depth, a, a_row, a_step, b, b_row, c, c_row, add); break;
    case 2: few_rows(2, depth, a, a_row, a_step, b, b_row, c, c_row, add); break;
    case 3: few_rows(3, depth, a, a_row, a_step, b, b_row, c, c_row, add); break;
    case 4: few_rows(4, depth, a, a_row, a_step, b, b_row, c, c_row, add); break;
    case 5: few_rows(5, depth, a, a_row, a_step, b, b_row, c, c_row, add); break;
    case 6: few_rows(6, depth, a, a_row, a_step, b, b_row, c, c_row, add); break; /* these two where ROWS is 8 */
    case 7: few_rows(7, depth, a, a_row, a_step, b, b_row, c, c_row, add); break;
    }
}

/* Filters: value [output, input, i, j] is at[output · to_output + input · to_input + i · to_row + j · to_column]. */
typedef struct {
    const REAL *at;
    long to_output, to_input, to_row, to_column;
} filters;

/* U = G (w) Gᵀ of COLUMNS filters from `output` on, value ξ as u[ξ · plane + input · COLUMNS + output]. */
static void read_filters(const filters *w, long output, long inputs, REAL *u, size_t plane)
{
    for (long first = 0; first < inputs; first += CHANNELS) {
        REAL near[CHANNELS][9][COLUMNS]; /* gathered from distant places in `w` */
        for (int tap = 0; tap < 9; tap++) {
            const REAL *from = w->at + output * w->to_output + first * w->to_input;
            from += tap / 3 * w->to_row + tap % 3 * w->to_column;
            if (w->to_output == 1)
                for (int input = 0; input < CHANNELS; input++, from += w->to_input) {
                    __builtin_prefetch(from + CHANNELS * w->to_input);
                    memcpy(near[input][tap], from, sizeof near[input][tap]);
                }
            else
                for (int k = 0; k < COLUMNS; k++, from += w->to_output) {
                    __builtin_prefetch(from + CHANNELS * w->to_input);
                    for (int input = 0; input < CHANNELS; input++) near[input][tap][k] = from[input * w->to_input];
                }
        }
        for (int input = 0; input < CHANNELS; input++)
            for (int lane = 0; lane < COLUMNS; lane += LANES) {
                REAL *to = u + (first + input) * COLUMNS + lane;
                vector columns[VALUES];
                UNROLL for (int j = 0; j < 3; j++) {
                    vector x[3];
                    UNROLL for (int i = 0; i < 3; i++) x[i] = load(near[input][3 * i + j] + lane);
                    times_g(x, columns + j, SIDE);
                }
                UNROLL for (int i = 0; i < SIDE; i++) {
                    vector y[SIDE];
                    times_g(columns + SIDE * i, y, 1);
                    UNROLL for (int j = 0; j < SIDE; j++) store(to + (SIDE * i + j) * plane, y[j]);
                }
            }
    }
}

/* y [n, h, w, outputs] = convolution of x [n, h, w, inputs] with the filters, padding 1, plus the bias unless that is
   NULL. Returns 0 if there is not enough memory, else 1. */
int cudd_convolve(const REAL *x, long n, long h, long w, long inputs, filters with, long outputs, const REAL *bias,
                  REAL *y)
{
    cut c = cut_of(n, h, w);
    long block = block_of(inputs), tiles = tiles_in(&c);
    /* If there is only one block, a few filters at a time are transformed, and used while they are in the caches. */
    long most = tiles > block ? outputs : TOGETHER;
    size_t v_plane = plane_of(block, inputs), m_plane = plane_of(block, outputs), u_plane = most * inputs + PAD;
    REAL *scratch = malloc((VALUES * (v_plane + m_plane + u_plane) + inputs) * sizeof(REAL));
    if (!scratch) return 0;
    REAL *v = scratch, *m = v + VALUES * v_plane, *u = m + VALUES * m_plane, *zeros = u + VALUES * u_plane;
    memset(zeros, 0, inputs * sizeof(REAL));
    for (long output = 0; output < outputs; output += most) {
        long together = at_most(most, outputs - output);
        for (long column = 0; column < together; column += COLUMNS)
            read_filters(&with, output + column, inputs, u + column * inputs, u_plane);
        for (long first = 0; first < tiles; first += block) {
            long count = at_most(block, tiles - first);
            if (output == 0) read_tiles(SIDE, &c, x, inputs, first, count, zeros, v, v_plane);
            for (int value = 0; value < VALUES; value++)
                for (long column = 0; column < together; column += COLUMNS)
                    for (long depth = 0; depth < inputs; depth += DEPTH)
                        product(count, at_most(DEPTH, inputs - depth), v + value * v_plane + depth, row_of(inputs), 1,
                                u + value * u_plane + column * inputs + depth * COLUMNS, COLUMNS,
                                m + value * m_plane + output + column, row_of(outputs), depth > 0);
            if (output + together == outputs) write_outputs(&c, m, m_plane, outputs, first, count, bias, y);
        }
    }
    free(scratch);
    return 1;
}

/* ∂L/∂w as dw[output][row][column][input], given x and ∂L/∂y. Returns 0 if there is not enough memory, else 1. */
int cudd_filters_gradient(const REAL *x, long n, long h, long w, long inputs, const REAL *dy, long outputs, REAL *dw)
{
    cut c = cut_of(n, h, w);
    long block = block_of(inputs), tiles = tiles_in(&c);
    size_t v_plane = plane_of(block, inputs), m_plane = plane_of(block, outputs), plane = outputs * inputs + PAD;
    REAL *scratch = malloc((VALUES * (v_plane + m_plane + plane) + inputs + outputs) * sizeof(REAL));
    if (!scratch) return 0;
    REAL *v = scratch, *m = v + VALUES * v_plane, *du = m + VALUES * m_plane, *zeros = du + VALUES * plane;
    memset(zeros, 0, (inputs + outputs) * sizeof(REAL));
    for (long first = 0; first < tiles; first += block) {
        long count = at_most(block, tiles - first);
        read_tiles(SIDE, &c, x, inputs, first, count, zeros, v, v_plane);
        read_tiles(TILE, &c, dy, outputs, first, count, zeros, m, m_plane);
        for (int value = 0; value < VALUES; value++)
            for (long column = 0; column < inputs; column += COLUMNS)
                product(outputs, count, m + value * m_plane, 1, row_of(outputs), v + value * v_plane + column,
                        row_of(inputs), du + value * plane + column, inputs, first > 0);
    }
    for (long output = 0; output < outputs; output++)
        for (long input = 0; input < inputs; input += LANES) {
            vector columns[3 * SIDE], y[3];
            UNROLL for (int j = 0; j < SIDE; j++) {
                vector x[SIDE], three[3];
                UNROLL for (int i = 0; i < SIDE; i++)
                    x[i] = load(du + (SIDE * i + j) * plane + output * inputs + input);
                times_g_back(x, three, 1);
                for (int i = 0; i < 3; i++) columns[SIDE * i + j] = three[i];
            }
            for (int i = 0; i < 3; i++) {
                times_g_back(columns + SIDE * i, y, 1);
                for (int j = 0; j < 3; j++) store(dw + ((output * 3 + i) * 3 + j) * inputs + input, y[j]);
            }
        }
    free(scratch);
    return 1;
}
