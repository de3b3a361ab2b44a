/* Token halting in C, forward and backward, on the files of an exchange folder.

       refvt golden export work --cases '*op-halt_tokens-*'
       gcc -O2 -o halt_tokens halt_tokens.c -lm
       ls work | grep op- | while read case; do ./halt_tokens "work/$case"; done
       refvt check work

   Reads given/states.npy [L, N, D], the cotangents of y [N, D] and ponder [N], and scale, center and epsilon from
   case.json. Writes y, ponder, halting_layer and d(states). With -DDETACHED=1 the remainder is a constant for the
   gradient: the bug that this example plants. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef DETACHED
#define DETACHED 0
#endif

typedef struct { long shape[3]; long size; float *values; } Array;

static void fail(const char *what, const char *path) { fprintf(stderr, "halt_tokens: %s: %s\n", path, what); exit(2); }

/* A .npy file of float32 in C order: magic and version (8 bytes), length of the header (2), header, numbers. */
static Array read_npy(const char *folder, const char *name) {
    char path[4096], header[65536] = "";
    unsigned char start[10];
    Array array = {{1, 1, 1}, 1, NULL};
    snprintf(path, sizeof path, "%s/given/%s.npy", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file || fread(start, 1, 10, file) != 10) fail("cannot be read", path);
    size_t length = start[8] + 256u * start[9];
    if (fread(header, 1, length, file) != length) fail("is too short", path);
    if (!strstr(header, "'<f4'") || !strstr(header, "False")) fail("expected float32 in C order", path);
    char *at = strchr(strstr(header, "'shape'"), '(') + 1;
    for (int axis = 0; axis < 3 && *at != ')'; axis++) {
        array.shape[axis] = strtol(at, &at, 10);
        array.size *= array.shape[axis];
        while (*at == ',' || *at == ' ') at++;
    }
    array.values = malloc(sizeof(float) * (size_t)array.size);
    if (fread(array.values, sizeof(float), (size_t)array.size, file) != (size_t)array.size) fail("is too short", path);
    fclose(file);
    return array;
}

static void write_npy(const char *folder, const char *name, const char *type, const char *shape, const void *values,
                      size_t bytes) {
    char path[4096], header[128];
    snprintf(path, sizeof path, "%s/results/%s.npy", folder, name);
    FILE *file = fopen(path, "wb");
    if (!file) fail("cannot be written", path);
    int length = snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", type, shape);
    memset(header + length, ' ', sizeof header - (size_t)length);
    header[117] = '\n'; /* 10 + 118 bytes: the numbers begin at a multiple of 64 */
    const unsigned char start[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, 118, 0};
    fwrite(start, 1, 10, file);
    fwrite(header, 1, 118, file);
    fwrite(values, 1, bytes, file);
    fclose(file);
}

static double setting(const char *folder, const char *name) {
    char path[4096], text[65536] = "", key[64];
    snprintf(path, sizeof path, "%s/case.json", folder);
    snprintf(key, sizeof key, "\"%s\":", name);
    FILE *file = fopen(path, "rb");
    if (!file || !fread(text, 1, sizeof text - 1, file)) fail("cannot be read", path);
    fclose(file);
    char *at = strstr(text, key);
    if (!at) fail("lacks a setting", path);
    return strtod(at + strlen(key), NULL);
}

int main(int argc, char **argv) {
    if (argc != 2) fail("expected the folder of one case", "arguments");
    const char *folder = argv[1];
    double scale = setting(folder, "scale"), center = setting(folder, "center"), epsilon = setting(folder, "epsilon");
    Array states = read_npy(folder, "states"), dy = read_npy(folder, "cotangent/y");
    Array dponder = read_npy(folder, "cotangent/ponder");
    long L = states.shape[0], N = states.shape[1], D = states.shape[2];
    float *y = calloc((size_t)(N * D), sizeof *y), *ponder = calloc((size_t)N, sizeof *ponder);
    float *dstates = calloc((size_t)states.size, sizeof *dstates);
    long long *halting_layer = calloc((size_t)N, sizeof *halting_layer);
    double *score = calloc((size_t)L, sizeof *score);

    for (long n = 0; n < N; n++) {
        /* forward: scores add up until they pass 1 - epsilon; the last one is replaced by the remainder */
        double used = 0;
        long last = 0;
        for (long l = 0; l < L; l++) {
            double logit = scale * states.values[(l * N + n) * D] - center;
            score[l] = l == L - 1 ? 1 : 1 / (1 + exp(-logit));
            last = l;
            if (used + score[l] > 1 - epsilon) break;
            used += score[l];
        }
        double remainder = 1 - used;
        halting_layer[n] = last + 1;
        ponder[n] = (float)(last + 1 + remainder);
        for (long c = 0; c < D; c++) {
            double sum = 0;
            for (long l = 0; l <= last; l++) sum += (l < last ? score[l] : remainder) * states.values[(l * N + n) * D + c];
            y[n * D + c] = (float)sum;
        }
        /* backward: every state gets its weight's share of dy; a score before the last moves weight to the remainder */
        for (long l = 0; l <= last; l++) {
            double dscore = 0;
            for (long c = 0; c < D; c++) {
                double g = dy.values[n * D + c], x = states.values[(l * N + n) * D + c];
                dstates[(l * N + n) * D + c] = (float)((l < last ? score[l] : remainder) * g);
                dscore += g * x;
                if (!DETACHED) dscore -= g * states.values[(last * N + n) * D + c];
            }
            if (!DETACHED) dscore -= dponder.values[n];
            if (l < last) dstates[(l * N + n) * D] += (float)(scale * score[l] * (1 - score[l]) * dscore);
        }
    }
    char shape[128];
    snprintf(shape, sizeof shape, "%ld, %ld", N, D);
    write_npy(folder, "y", "<f4", shape, y, sizeof *y * (size_t)(N * D));
    snprintf(shape, sizeof shape, "%ld,", N);
    write_npy(folder, "ponder", "<f4", shape, ponder, sizeof *ponder * (size_t)N);
    write_npy(folder, "halting_layer", "<i8", shape, halting_layer, sizeof *halting_layer * (size_t)N);
    snprintf(shape, sizeof shape, "%ld, %ld, %ld", L, N, D);
    write_npy(folder, "d(states)", "<f4", shape, dstates, sizeof *dstates * (size_t)states.size);
    return 0;
}
