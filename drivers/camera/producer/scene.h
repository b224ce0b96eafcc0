/* What lies under the camera, and what optics and sensor make of it. */
#ifndef VQI_SCENE_H
#define VQI_SCENE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "features.h"
#include "source.h"

typedef enum { TARGET_BELT, TARGET_UNIFORM, TARGET_DARK, TARGET_LATTICE } Target;

typedef struct {
    const uint8_t *pixels;
    int64_t rows;
    int64_t cycle; /* its rows repeat after so many */
} Picture;

typedef struct {
    void *mapping; /* the file's; NULL for what is made here */
    size_t mapped_bytes;
    int64_t width, period_rows, belt_rows;
    double pixel_pitch_mm, nominal_exposure_us;
    const uint8_t *belt;
    Picture *pictures;
    const SourcePlacement *placements;
    int64_t placement_count;
    uint8_t *lattice; /* lattice_rows of dots */
    int64_t lattice_rows;
    uint8_t *even, *dark; /* one row each */
} Scene;

/* The source at `path`, or plates of a lattice for "". False: `why` says what is wrong. */
bool scene_open(Scene *scene, const char *path, char *why, size_t why_bytes);
void scene_close(Scene *scene);
/* A scan line of the belt, as wide as the sensor. */
const uint8_t *scene_row(const Scene *scene, Target target, int64_t row);
/* Whether a plate lies at this scan line, and how many begin before it. */
bool scene_is_covered(const Scene *scene, int64_t row);
int64_t scene_edges_before(const Scene *scene, int64_t row);

/* What changes a level on its way. Everything neutral: the source's pixels come out as they are. */
typedef struct {
    double factor; /* exposure, gain and light against the source's */
    double vignetting, non_uniformity, dark_level, noise, defocus, dirt_contrast;
    int64_t dirt_position, dirt_width, dead_pixel;
} Optics;

typedef struct {
    Optics optics;
    bool is_neutral;
    int64_t width;
    uint16_t *coefficients; /* of each pixel, 4096 is 1 */
    int16_t *noise;         /* NOISE_VALUES and one scan line more */
    uint32_t *blurred;      /* scratch: two rows of sums, then one of pixels */
} Sensor;

/* Prepares for rows of `width` px. False if memory is short. */
bool sensor_set(Sensor *sensor, const Optics *optics, int64_t width);
void sensor_free(Sensor *sensor);
/* Exposes `count` pixels from `offset` of the scan line `row` of the belt: Mono8, or Mono12 in two
 * bytes. `moment` chooses the noise. */
void sensor_expose(Sensor *sensor, const Scene *scene, Target target, int64_t row, int64_t moment,
                   int64_t offset, int64_t count, bool is_mono12, uint8_t *out);

#endif
